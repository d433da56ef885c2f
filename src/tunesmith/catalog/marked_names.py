"""Names of Python in prose: spans from the reference's own mark-up, for data on which to try entity recognition.

The reference puts names between quotation marks. Each is labelled by what it is for the interpreter, and the marks are
taken away, so that whether "for" is the keyword or the word has to be told from the sentence.
"""

from __future__ import annotations

import builtins
import keyword
import re
import sys
from collections.abc import Iterator
from typing import Any

_MARKED = re.compile(r'"([^"\s]+?)"')
_PROSE = re.compile(r'(?:[A-Z"*]|[-*] ).*[.:]', re.DOTALL)
_CODE = re.compile(r">>>|::=|\n {6,}|[=|+]{3}|-{4}|\\")


def marked_paragraphs(text: str) -> Iterator[dict[str, Any]]:
    """The prose paragraphs of a document in which names are marked, as ``text`` and ``spans``."""
    for paragraph in re.split(r"\n\s*\n", text):
        plain = paragraph.strip()
        if _PROSE.fullmatch(plain) and not _CODE.search(paragraph):
            row = _without_marks(re.sub(r"\s+", " ", plain))
            if row["spans"]:
                yield row


def kind_of(name: str) -> str | None:
    """``keyword``, ``exception``, ``type``, ``function``, ``method`` or ``module``; ``None`` for anything else."""
    bare = name.removesuffix("()")
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        return "keyword"
    if re.fullmatch(r"(\w+\.)?__\w+__", bare):
        return "method"
    found = getattr(builtins, bare, None)
    if isinstance(found, type):
        return "exception" if issubclass(found, BaseException) else "type"
    if callable(found):
        return "function"
    return "module" if bare in sys.stdlib_module_names and bare == name else None


def _without_marks(text: str) -> dict[str, Any]:
    """The text without the marks around names, and where the names now stand."""
    parts: list[str] = []
    spans: list[dict[str, Any]] = []
    done = length = 0
    for match in _MARKED.finditer(text):
        kind = kind_of(match[1])
        parts.append(text[done : match.start()])
        length += len(parts[-1])
        if kind is not None:
            spans.append({"start": length, "end": length + len(match[1]), "label": kind})
        parts.append(match[1])
        length += len(parts[-1])
        done = match.end()
    return {"text": "".join([*parts, text[done:]]), "spans": spans}
