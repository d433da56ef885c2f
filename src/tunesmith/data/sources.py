"""From what a recipe names (files, folders, patterns, hub and catalog names) to a list of sources to read."""

from __future__ import annotations

import difflib
import glob
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.data.pictures import is_picture
from tunesmith.errors import DataError, NoDataError
from tunesmith.events import Listener, Notice, nobody

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".iob2": "conll",
}
DOCUMENTS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".rst": "text",
    ".html": "html",
    ".htm": "html",
    ".pdf": "pdf",
}
"""What a task that learns from documents reads besides tables, and how."""
ONE_ROW = ("document", "picture")
"""Formats in which a file is one row."""
WHOLE_FILES = 20
"""With fewer documents than this in a folder, a file is cut into passages: else there is nothing to hold back."""
_NAMED_WHEN_IGNORED = 5
_LABELLED = "put pictures into folders, `label/picture.jpg`, or give a table with the columns `image` and `label`"


@dataclass(frozen=True, slots=True)
class Source:
    """One file or hub data set.

    Attributes:
        name: As it is shown in places, ``name:line``.
        format: A value of :data:`SUFFIXES`, ``document`` (a whole file is one row), ``passages`` or ``hub``.
        path: The file; ``None`` for a hub data set.
        label: Label of a document, when its folder names one.
    """

    name: str
    format: str
    path: Path | None = None
    label: str | None = None


def find_sources(
    specs: Sequence[str],
    *,
    file_format: str = "auto",
    key: str = "data.train",
    documents: bool = False,
    text_task: str = "",
    on_event: Listener = nobody,
) -> list[Source]:
    """Resolve the entries of ``data.train``, ``data.validation`` or ``data.test``, in their order.

    Args:
        specs: Paths, folders, patterns (``shards/*.jsonl``), ``hub:owner/name[/config][:split]`` or catalog names.
        file_format: ``data.format``; ``auto`` goes by the file name.
        key: The recipe's key, for errors.
        documents: Whether the task learns from documents: then Markdown, HTML and PDF files are read too.
        text_task: Name of the task, if it reads text: pictures are then refused.
        on_event: Told which files of a folder are ignored.

    Raises:
        DataError: A name leads nowhere, there are pictures for a task that reads text, or a file's format cannot be
            told; all such names at once.
    """
    sources: list[Source] = []
    unknown: list[str] = []
    for spec in specs:
        if spec.startswith("hub:"):
            sources.append(Source(spec, "hub"))
        elif Path(spec).is_dir():
            found = _documents(Path(spec), file_format, on_event) if documents else []
            sources += found or _folder(Path(spec), file_format, documents, text_task, on_event)
        elif Path(spec).is_file():
            sources.append(_file(Path(spec), file_format, documents, text_task))
        elif any(sign in spec for sign in "*?[") and (matches := sorted(glob.glob(spec, recursive=True))):
            sources += [
                _file(Path(match), file_format, documents, text_task) for match in matches if Path(match).is_file()
            ]
        elif (files := _catalog(spec, on_event)) is not None:
            # Places name the set, not a path of the user's cache: reports are shown to others.
            names = [spec if len(files) == 1 else f"{spec}/{path.name}" for path in files]
            sources += [replace(_file(path, "auto"), name=name) for path, name in zip(files, names, strict=True)]
        else:
            unknown.append(spec)
    if unknown:
        raise NoDataError(
            f"no file, folder or catalog data of this name: {', '.join(map(repr, unknown))}",
            where=key,
            fix=_nearby(unknown[0]),
        )
    return sources


def format_of(path: Path) -> str | None:
    """The format that a file's name tells, ``.gz`` set aside; ``None`` if it tells none."""
    name = path.name.lower().removesuffix(".gz")
    return SUFFIXES.get(Path(name).suffix)


def kind_of_document(source: Source) -> str:
    """How the text of a document is got at: ``text``, ``html`` or ``pdf``."""
    assert source.path is not None
    return DOCUMENTS.get(_suffix(source.path), "text")


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _documents(folder: Path, file_format: str, on_event: Listener) -> list[Source]:
    """The documents of a folder, if it holds such and no tables."""
    files = _visible_files(folder)
    texts = [path for path in files if _suffix(path) in DOCUMENTS]
    tables = [path for path in files if format_of(path) not in (None, "text")]
    if not texts or tables or file_format not in ("auto", "document", "passages"):
        return []
    told = file_format if file_format != "auto" else "document" if len(texts) >= WHOLE_FILES else "passages"
    if told == "passages":
        message = f"{len(texts)} files are read as passages of about 1,000 characters"
        on_event(
            Notice(level="info", message=message, where=str(folder), fix="to read whole files: `data.format: document`")
        )
    _say_ignored(folder, [path for path in files if path not in set(texts)], on_event)
    return [Source(str(path), told, path) for path in texts]


def _file(path: Path, file_format: str, documents: bool = False, text_task: str = "") -> Source:
    if is_picture(path) and file_format == "auto":
        if text_task:
            raise _pictures(path, "this is a picture", text_task)
        raise DataError("a picture named by itself has no label", where=str(path), fix=_LABELLED)
    told = format_of(path) if file_format == "auto" else file_format
    if documents and file_format == "auto" and _suffix(path) in DOCUMENTS:
        told = "passages"
    elif file_format == "auto" and told in (None, "text") and _is_conll(path):  # eng.train, train.txt: no telling name
        told = "conll"
    if told is None:
        raise DataError(
            "the format cannot be told from the file's name",
            where=str(path),
            fix="say `data.format`: jsonl, json, csv, tsv, parquet, conll or text (one row a line)",
        )
    return Source(str(path), told, path)


def _is_conll(path: Path) -> bool:
    from tunesmith.data.conll import looks_like_conll

    return looks_like_conll(path)


def _pictures(place: Path, what: str, task: str) -> DataError:
    fix = "use `task: image-classification`, or name data that are texts"
    return DataError(f"{what}, and the task `{task}` reads text", where=str(place), fix=fix)


def _folder(folder: Path, file_format: str, documents: bool, text_task: str, on_event: Listener) -> list[Source]:
    """Data files of a folder; or its text files, one row each, labelled by their subfolder if they lie in one."""
    files = _visible_files(folder)
    formats = {path: format_of(path) for path in files}
    wanted = None if file_format == "auto" else file_format
    tables = [path for path in files if formats[path] not in (None, "text") and wanted in (None, formats[path])]
    texts = [path for path in files if formats[path] == "text"]
    nested = [path for path in texts if path.parent != folder]
    images = [path for path in files if is_picture(path)]
    if tables:
        chosen = [_file(path, "auto") for path in tables]
    elif text_task and len(images) > len(texts) and wanted is None:
        raise _pictures(folder, f"the folder holds pictures ({images[0].name} and the like)", text_task)
    elif len(images) > len(nested) and wanted is None and not text_task:
        chosen = [_picture(path, folder) for path in images]
    elif texts and wanted in (None, "text"):
        chosen = [
            Source(str(path), "document", path, path.relative_to(folder).parts[0] if nested else None)
            for path in nested or texts
        ]
    else:
        known = dict.fromkeys([*SUFFIXES, *(DOCUMENTS if documents else ())])
        more = "" if text_task else ", and pictures in folders named by label"
        if not documents and any(_suffix(path) in DOCUMENTS for path in files):
            more += "; Markdown, HTML and PDF files by `task: language-modeling`"
        raise DataError(
            f"the folder holds no data files{f' of format {wanted}' if wanted else ''}",
            where=str(folder),
            fix=f"files that end in {', '.join(known)} (also .gz) are read{more}",
        )
    taken = {source.path for source in chosen}
    _say_ignored(folder, [path for path in files if path not in taken], on_event)
    return chosen


def _picture(path: Path, folder: Path) -> Source:
    if path.parent == folder:
        raise DataError(
            "this picture lies in no folder that is named after its label, so the pictures have no labels",
            where=str(path),
            fix=_LABELLED,
        )
    return Source(str(path), "picture", path, path.relative_to(folder).parts[0])


def _visible_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _say_ignored(folder: Path, ignored: Sequence[Path], on_event: Listener) -> None:
    if ignored:
        names = ", ".join(str(path.relative_to(folder)) for path in ignored[:_NAMED_WHEN_IGNORED])
        more = f" and {len(ignored) - _NAMED_WHEN_IGNORED} more" if len(ignored) > _NAMED_WHEN_IGNORED else ""
        on_event(Notice(level="info", message=f"not read, as no data: {names}{more}", where=str(folder)))


def _catalog(name: str, on_event: Listener) -> list[Path] | None:
    if "/" in name or "\\" in name:
        return None
    from tunesmith import catalog

    return catalog.data_files(name, on_event=on_event)


def _nearby(spec: str) -> str:
    """A remedy that names the file that was probably meant."""
    path = Path(spec)
    names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    if close:
        return f"did you mean {str(path.parent / close[0])!r}?"
    return "paths are relative to the current folder; a hub data set is written `hub:owner/name`"
