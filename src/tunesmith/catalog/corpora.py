"""Builders of the catalog's data: JSONL with the tasks' own field names."""

from __future__ import annotations

import ast
import json
import re
import sys
import sysconfig
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tunesmith import disk
from tunesmith.catalog import packages
from tunesmith.catalog.marked_names import marked_paragraphs
from tunesmith.catalog.table import Entry
from tunesmith.errors import DataError, ResourceError
from tunesmith.events import Listener

NEUTRAL = 0.5
"""Ratings within this distance of zero say neither yes nor no: they get no label."""
APART = 1.0
"""Least difference of two ratings that make a pair."""
MAX_SOURCE_CHARACTERS = 4000
MIN_SUMMARY_WORDS = 3
Function = ast.FunctionDef | ast.AsyncFunctionDef


def ratings(entry: Entry, downloads: list[Path], folder: Path, on_event: Listener) -> dict[str, Any]:
    """Snippets with human ratings (Hutto and Gilbert, ICWSM 2014): ``labelled.jsonl`` and ``ratings.jsonl``."""
    rows = []
    for row in _rated_snippets(entry, downloads):
        rating = row["rating"]
        label = "positive" if rating > NEUTRAL else "negative" if rating < -NEUTRAL else None
        rows.append(row | ({"label": label} if label else {}))
    labelled = [row for row in rows if "label" in row]
    _write(folder / "labelled.jsonl", labelled)
    _write(folder / "ratings.jsonl", rows)
    return {"rows": len(rows), "labelled": len(labelled), "without_label": len(rows) - len(labelled)}


def rating_pairs(entry: Entry, downloads: list[Path], folder: Path, on_event: Listener) -> dict[str, Any]:
    """Pairs of those snippets at least :data:`APART` apart: ``pairs.jsonl``.

    Snippets are dealt to ``groups`` by content before they are paired: split by the column ``group``, none is both
    learned from and measured on.
    """
    from tunesmith.data.pairs import Rated, make_pairs

    groups = int(dict(entry.options)["groups"])
    dealt: list[list[Rated]] = [[] for _ in range(groups)]
    for row in _rated_snippets(entry, downloads):
        dealt[zlib.crc32(row["text"].encode()) % groups].append(Rated(row["text"], row["rating"]))
    made = [make_pairs(rated, margin=APART) for rated in dealt]
    rows = [{"group": f"{n:03}", **pair} for n, found in enumerate(made) for pair in found.pairs]
    _write(folder / "pairs.jsonl", rows)
    return {"rows": len(rows), "texts": sum(map(len, dealt)), "unpaired": sum(found.unpaired for found in made)}


def docstring_pairs(entry: Entry, downloads: list[Path], folder: Path, on_event: Listener) -> dict[str, Any]:
    """Functions with the right and with another one's docstring: ``pairs.jsonl``."""
    python_docstrings(entry, downloads, folder, on_event)
    place = folder / "pairs.jsonl"
    rows = [json.loads(line) for line in disk.lines_of(place)]
    others = rows[len(rows) // 2 :] + rows[: len(rows) // 2]  # of another module, mostly
    pairs = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": other["completion"]}
        for row, other in zip(rows, others, strict=True)
        if row["completion"] != other["completion"]
    ]
    _write(place, pairs)
    return {"rows": len(pairs), "python": sys.version.split()[0]}


def python_reference(entry: Entry, downloads: list[Path], folder: Path, on_event: Listener) -> dict[str, Any]:
    """The reference texts behind Python's ``help()``, one document a topic: ``documents.jsonl``."""
    rows = [{"id": name, "text": _plain(text)} for name, text in _reference_topics()]
    _write(folder / "documents.jsonl", rows)
    return {"rows": len(rows), "python": sys.version.split()[0]}


def python_names(entry: Entry, downloads: list[Path], folder: Path, on_event: Listener) -> dict[str, Any]:
    """Paragraphs of the same texts with the names in them as spans: ``spans.jsonl``."""
    rows = {row["text"]: row for _, text in _reference_topics() for row in marked_paragraphs(text)}
    _write(folder / "spans.jsonl", rows.values())
    return {"rows": len(rows), "python": sys.version.split()[0]}


def _reference_topics() -> list[tuple[str, str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ResourceError(
            "this Python comes without pydoc_data.topics", fix="install your system's full Python package"
        ) from error
    return sorted(topics.items())


def python_docstrings(entry: Entry, downloads: list[Path], folder: Path, on_event: Listener) -> dict[str, Any]:
    """Functions of the standard library and the first sentence of their docstring: ``pairs.jsonl``."""
    library = Path(sysconfig.get_paths()["stdlib"])
    rows: dict[str, dict[str, str]] = {}
    left_out = {"too long": 0, "duplicate": 0, "unreadable files": 0}
    for path in _library_files(library):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            left_out["unreadable files"] += 1
            continue
        module = ".".join(path.relative_to(library).with_suffix("").parts).removesuffix(".__init__")
        for name, function in _functions(tree, module):
            row = _pair(name, function)
            if row is None:
                continue
            if len(row["prompt"]) > MAX_SOURCE_CHARACTERS:
                left_out["too long"] += 1
            elif row["prompt"] in rows:
                left_out["duplicate"] += 1
            else:
                rows[row["prompt"]] = row
    _write(folder / "pairs.jsonl", rows.values())
    return {"rows": len(rows), "left_out": left_out, "python": sys.version.split()[0]}


def digits(entry: Entry, downloads: list[Path], folder: Path, on_event: Listener) -> dict[str, Any]:
    """Handwritten digits of scikit-learn: ``digits.npz`` with ``images`` (N, 8, 8) of 0..16 and ``labels`` (N,)."""
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = bunch.images.astype(np.uint8), bunch.target.astype(np.uint8)
    np.savez_compressed(folder / "digits.npz", images=images, labels=labels)
    return {"rows": len(labels)}


def _rated_snippets(entry: Entry, downloads: list[Path]) -> Iterator[dict[str, Any]]:
    """``id``, ``text`` and ``rating`` of each line of a table of ratings."""
    member = dict(entry.options)["member"]
    # Often read as latin-1, which turns "é" into "Ã©": every byte of these tables is valid UTF-8.
    table = packages.read_tar_member(downloads[0], "hutto_ICWSM_2014.tar.gz", member).decode("utf-8")
    for number, line in enumerate(table.rstrip("\n").split("\n"), 1):  # splitlines() also breaks at U+0085
        parts = line.rstrip("\r").split("\t")
        if len(parts) != 3:
            raise DataError("expected id, rating and text between tabs", where=f"{member}:{number}")
        yield {"id": parts[0], "text": parts[2].strip(), "rating": float(parts[1])}


def _library_files(library: Path) -> list[Path]:
    """The standard library's own modules in one order everywhere: no tests, no installed packages, no private ones."""
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "turtledemo", "__pycache__"}
    files = (path.relative_to(library) for path in library.rglob("*.py"))
    wanted = (
        path
        for path in files
        if not skipped & set(path.parts)
        and not any(part.startswith("_") and part != "__init__.py" for part in path.parts)
    )
    return [library / path for path in sorted(wanted, key=lambda path: path.as_posix())]


def _functions(tree: ast.Module, module: str) -> Iterator[tuple[str, Function]]:
    """Public functions of a module and public methods of its public classes, in source order."""
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield f"{module}.{node.name}", node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, Function) and not inner.name.startswith("_"):
                    yield f"{module}.{node.name}.{inner.name}", inner


def _pair(name: str, function: Function) -> dict[str, str] | None:
    """The row of a function: source without docstring, and the docstring's summary; ``None`` if there is no summary."""
    summary = _summary(ast.get_docstring(function) or "")
    if len(summary.split()) < MIN_SUMMARY_WORDS:
        return None
    function.body = function.body[1:] or [ast.Expr(ast.Constant(...))]
    source = ast.unparse(function)
    signature = next(line for line in source.splitlines() if line.startswith(("def ", "async def ")))
    return {
        "id": name,
        "prompt": f"Write the one-sentence summary of this Python function.\n\n{source}",
        "completion": summary,
        "signature": signature,
    }


def _summary(docstring: str) -> str:
    """The first sentence of the first paragraph on one line, or the first line where no sentence ends there."""
    paragraph = docstring.strip().split("\n\n")[0]
    sentence = re.match(r".*?[.!?](?=\s+[A-Z]|$)", " ".join(paragraph.split()))
    return sentence.group() if sentence else paragraph.split("\n")[0].strip()


def _plain(text: str) -> str:
    """A text without spaces at the ends of its lines."""
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip()


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
