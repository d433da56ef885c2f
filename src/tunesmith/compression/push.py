"""Uploading a model to the hub: private unless asked otherwise, and without paths of this machine in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.compression.export import EXPORTS
from tunesmith.errors import NotFoundError, ResourceError, UsageError
from tunesmith.models.bases import ADAPTER_CONFIG, renamed
from tunesmith.models.saving import NOTES
from tunesmith.runs import Run

REWRITTEN = (NOTES, ADAPTER_CONFIG, "README.md")
"""Files that name folders of this machine: they are uploaded with what they say changed, and left as they are here."""


def push(opened: Run, repository: str, *, export: str | None = None, public: bool = False, api: Any = None) -> str:
    """Upload a run's model, or one of its exports.

    Args:
        opened: A finished run.
        repository: ``owner/name``; made if there is none.
        export: Folder below ``exports/`` of the run; default: the model itself.
        public: Whether a repository that is made is public.
        api: Of the hub; default: ``huggingface_hub.HfApi()``, which finds the user's token by itself. It is never read
            or printed here.

    Returns:
        The page of what was uploaded.

    Raises:
        NotFoundError: The run has no such export.
        UsageError: The repository's name is malformed.
        ResourceError: The hub refuses, or is out of reach.
    """
    opened.summary()
    folder = opened.model_folder if export is None else opened.path / EXPORTS / export
    if not folder.is_dir():
        has = [path.name for path in sorted((opened.path / EXPORTS).glob("*"))]
        raise NotFoundError(
            f"the run has no export {export!r}",
            where=str(opened.path),
            fix=f"exports: {', '.join(has)}" if has else f"tunesmith export {opened.path} --to safetensors",
        )
    owner, _, name = repository.partition("/")
    if not owner or not name or "/" in name:
        raise UsageError(f"{repository!r} is no repository", where="REPO", fix="give OWNER/NAME")
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=str(folder), ignore_patterns=list(REWRITTEN),
            commit_message=f"Upload {opened.id} by Tunesmith",
        )  # fmt: skip
        for file in REWRITTEN:
            if (folder / file).is_file():
                content = without_local_paths(folder / file, opened)
                api.upload_file(path_or_fileobj=content.encode(), path_in_repo=file, repo_id=repository)
    except (OSError, ValueError, RuntimeError) as error:  # the hub's errors derive from these
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = f"{type(error).__name__}{f' ({status})' if status else ''}"  # its text may quote what was sent
        raise ResourceError(
            f"the hub did not take the upload: {said}",
            where=repository,
            fix="log in with `hf auth login`, with a token that may write there, and see that the hub can be reached",
        ) from error
    return f"https://huggingface.co/{repository}"


def without_local_paths(path: Path, opened: Run) -> str:
    """A file's text with the base model's name for its folder, and the run's name for its own."""
    text = path.read_text(encoding="utf-8")
    model = opened.recipe.model
    base = Path(model).name if Path(model).exists() else model
    if path.suffix != ".json":
        return text.replace(str(opened.path), opened.id).replace(model, base)
    return json.dumps(renamed(json.loads(text), base), indent=2, ensure_ascii=False)
