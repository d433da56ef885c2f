"""From the model names that clients send to folders on disk.

``models.yaml`` maps names to local models, so that code written for OpenAI runs unchanged::

    gpt-4.1-mini: smollm2-135m-instruct          # a catalog name, a folder (relative to this file), a hub id
    support: {model: ../models/base, recipe: {parameters: {kind: lora, rank: 32}}}

Without the file the models of the catalog go by their own names. A client can name nothing else: no path, no hub id.
OpenAI's guides write dated names: ``gpt-4.1-mini-2025-04-14`` finds ``gpt-4.1-mini`` where the file has no such date.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import select

from tunesmith import catalog, strict_yaml
from tunesmith.errors import RecipeError, UsageError
from tunesmith.server.auth import Principal
from tunesmith.server.database import CheckpointRow, Database, JobRow, PermissionRow
from tunesmith.server.errors import ApiError
from tunesmith.server.folders import Folders
from tunesmith.server.recipes import METHODS, job_recipe

DATE = re.compile(r"-20\d\d-\d\d-\d\d$")
"""The end of OpenAI's names for one version of a model."""


@dataclass(frozen=True)
class Base:
    """A model to start from.

    Attributes:
        name: As clients call it.
        model: As a recipe calls it: a folder, a catalog name or a hub id.
        recipe: What jobs on this base set in their recipe, beside what the client asks for.
    """

    name: str
    model: str
    recipe: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Served:
    """Something that answers.

    Attributes:
        id: The name that clients use.
        base: The base it is, or was tuned from.
        folder: A run's artefact (:func:`tunesmith.models.saving.load_artefact`); ``None`` for a base.
        owner: Whose it is; ``None`` for bases, which are everybody's.
        created_at: Unix seconds; 0 for bases.
        job_id: The job that made it.
    """

    id: str
    base: str
    folder: Path | None = None
    owner: str | None = None
    created_at: int = 0
    job_id: str | None = None


class Registry:
    """All models that the server knows.

    Args:
        database: Where finished jobs are.
        folders: Where their artefacts are.
        models: ``models.yaml``.

    Raises:
        UsageError: The file is malformed.
    """

    def __init__(self, database: Database, folders: Folders, models: Path | None = None) -> None:
        self.database = database
        self.folders = folders
        self.bases = read_models(models) if models else _catalog_models()

    def base(self, name: str) -> Base:
        """The base that a client names.

        Raises:
            ApiError: 404 ``model_not_found``.
        """
        base = self._base(name)
        if base is None:
            raise self._unknown(name)
        return base

    def find(self, name: str, who: Principal) -> Served:
        """A base, a tuned model (``ft:...``) or a checkpoint of one (``ft:...:ckpt-step-N``).

        Raises:
            ApiError: 404 ``model_not_found``; so too for what belongs to others.
        """
        if (base := self._base(name)) is not None:
            return Served(name, base.name)
        with self.database.read() as session:
            job = session.scalar(select(JobRow).where(JobRow.fine_tuned_model == name, JobRow.status == "succeeded"))
            if job is not None:
                found = self._tuned(job)
            else:
                pair = session.execute(
                    select(CheckpointRow, JobRow)
                    .join(JobRow, JobRow.id == CheckpointRow.job_id)
                    .where(CheckpointRow.model == name)
                ).first()
                if pair is None:
                    raise self._unknown(name)
                found = self._checkpoint(*pair)
            if not who.sees(found.owner or "") and not self._is_permitted(session, name, who):
                raise self._unknown(name)
        if found.folder is None or not found.folder.is_dir():
            raise self._unknown(name)
        return found

    def all(self, who: Principal) -> list[Served]:
        """Bases first, then the tuned models that ``who`` may use, newest first."""
        with self.database.read() as session:
            query = select(JobRow).where(JobRow.status == "succeeded", JobRow.fine_tuned_model.is_not(None))
            if not who.is_admin:
                permitted = select(PermissionRow.checkpoint).where(PermissionRow.project == who.owner)
                query = query.where((JobRow.owner == who.owner) | JobRow.fine_tuned_model.in_(permitted))
            jobs = session.scalars(query.order_by(JobRow.number.desc())).all()
        tuned = [served for served in map(self._tuned, jobs) if served.folder and served.folder.is_dir()]
        return [Served(base.name, base.name) for base in self.bases.values()] + tuned

    def remove(self, served: Served) -> None:
        """Delete a tuned model with its checkpoints, or one checkpoint. The job and its measurements stay."""
        assert served.folder is not None and served.job_id is not None
        self.folders.remove(served.folder)
        if served.folder == self.folders.run(served.job_id) / "model":
            self.folders.remove(self.folders.job(served.job_id) / "checkpoints")

    def _base(self, name: str) -> Base | None:
        return self.bases.get(name) or self.bases.get(DATE.sub("", name))

    def _tuned(self, job: JobRow) -> Served:
        assert job.fine_tuned_model is not None and job.finished_at is not None
        folder = self.folders.run(job.id) / "model"
        return Served(job.fine_tuned_model, job.model, folder, job.owner, int(job.finished_at), job.id)

    def _checkpoint(self, checkpoint: CheckpointRow, job: JobRow) -> Served:
        folder = self.folders.checkpoint(job.id, checkpoint.step)
        return Served(checkpoint.model, job.model, folder, job.owner, int(checkpoint.created_at), job.id)

    def _is_permitted(self, session: Any, name: str, who: Principal) -> bool:
        query = select(PermissionRow.id).where(PermissionRow.checkpoint == name, PermissionRow.project == who.owner)
        return session.scalar(query) is not None

    def _unknown(self, name: str) -> ApiError:
        near = difflib.get_close_matches(name, self.bases, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else f" Known: {', '.join(self.bases)}."
        message = f"The model '{name}' does not exist or you do not have access to it.{hint}"
        return ApiError(404, message, code="model_not_found", param="model")


def read_models(path: Path) -> dict[str, Base]:
    """Read ``models.yaml``.

    Raises:
        UsageError: It is no mapping of names to models.
        RecipeError: A ``recipe`` in it has a key or value that no job can have.
    """
    try:
        tree = strict_yaml.load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read the models: {error}", where=str(path)) from error
    if not isinstance(tree, dict) or not tree:
        raise UsageError("a mapping of names to models is wanted", where=str(path), fix="gpt-4.1-mini: MODEL")
    bases = {}
    for name, value in tree.items():
        entry = {"model": value} if isinstance(value, str) else value
        if not isinstance(entry, dict) or not isinstance(entry.get("model"), str) or entry.keys() - {"model", "recipe"}:
            raise UsageError(
                f"{name!r} is {value!r}, no model",
                where=str(path),
                fix=f"`{name}: MODEL`, or `{name}: {{model: MODEL, recipe: {{...}}}}`",
            )
        folder = path.parent / Path(entry["model"]).expanduser()
        model = str(folder.resolve()) if folder.exists() else entry["model"]
        base = bases[str(name)] = Base(str(name), model, entry.get("recipe") or {})
        _check_recipe(base, path)
    return bases


def _check_recipe(base: Base, path: Path) -> None:
    """Tell whoever starts the server of a mistake in a recipe, rather than the client whose job fails of it."""
    if not isinstance(base.recipe, dict):
        raise UsageError(f"the recipe of {base.name!r} is no mapping", where=str(path), fix="recipe: {KEY: VALUE}")
    refused = None
    for method in METHODS:
        try:
            job_recipe(
                base.model,
                base.recipe,
                method=method,
                training=Path("training_file.jsonl"),
                validation=None,
                seed=0,
                hyperparameters={},
            )
            return  # what suits one method alone, say DPO's own keys, is right for jobs of that method
        except RecipeError as error:
            refused = refused or error
    assert refused is not None
    raise RecipeError(f"the recipe of {base.name!r}: {refused.what}", where=str(path), fix=refused.fix) from refused


def _catalog_models() -> dict[str, Base]:
    names = [entry.name for entry in catalog.entries() if entry.kind == "model"]
    return {name: Base(name, name) for name in names}
