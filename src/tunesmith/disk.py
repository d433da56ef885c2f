"""Files that are written whole or not at all, logs that only grow, and bytes that survive a power cut."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tunesmith.errors import of_os


def write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write a file whole or not at all. See :func:`write_bytes`; ``errors`` is for what UTF-8 cannot say."""
    write_bytes(path, text.encode("utf-8", errors))


def write_bytes(path: Path, content: bytes, *, lasting: bool = True) -> None:
    """Write a file whole or not at all. See :func:`write_parts`."""
    write_parts(path, [content], lasting=lasting)


def write_parts(path: Path, parts: Iterable[bytes], *, lasting: bool = True) -> None:
    """Write a file part by part, whole or not at all: if a part cannot be made, nothing of the file stays behind.

    Args:
        path: The file.
        parts: Its content.
        lasting: Wait until the disk has it. What can be made again needs no such wait.

    Raises:
        ResourceError: The disk is full.
        UsageError: The path cannot be written to.
        OSError: ``parts`` raised it: it says nothing of this file, and is passed on as it is.
    """
    of_parts: list[OSError] = []
    staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staging.open("wb") as file:
            file.writelines(_told_apart(parts, of_parts))
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        os.replace(staging, path)
    except OSError as error:
        if error in of_parts:
            raise
        raise of_os(error, f"cannot write {path.name}", str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # after the rename there is none
            staging.unlink()


def _told_apart(parts: Iterable[bytes], raised: list[OSError]) -> Iterator[bytes]:
    """The parts; an error of the system that they raise themselves is noted."""
    try:
        yield from parts
    except OSError as error:
        raised.append(error)
        raise


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def write_folder(final: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a staging folder and rename it: the final name never holds half a model."""
    for leftover in final.parent.glob(f".{final.name}-*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    staging = final.with_name(f".{final.name}-{secrets.token_hex(4)}")
    try:
        write(staging)
        flush_tree(staging)
        if final.exists():
            shutil.rmtree(final)
        os.replace(staging, final)
        flush(final.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add a line of JSON to a log; a kill may cut it, and what is written next is not glued to it.

    Raises:
        ResourceError: The disk is full.
        UsageError: The path cannot be written to.
    """
    try:
        with path.open("ab+") as file:
            cut = file.tell() > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            file.write((b"\n" if cut else b"") + (json.dumps(line, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise of_os(error, "cannot write to the log", str(path)) from error


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log, without those that a kill has cut; none if there is no such file."""
    if not path.is_file():
        return
    for line in lines_of(path, errors="replace"):  # the cut may go through a character
        try:
            yield json.loads(line)
        except ValueError:
            continue


def lines_of(path: Path, *, errors: str = "strict") -> Iterator[str]:
    """The lines of JSON in a file. ``str.splitlines`` would break at U+2028 too, which may stand within one."""
    with path.open(encoding="utf-8", errors=errors, newline="\n") as file:
        yield from file


def flush(path: Path) -> None:
    """Force a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Force a folder with all that is in it to the disk."""
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)


def path_of(name: str) -> Path:
    """A name as a path; with ``~`` before a user whom this machine does not know it leads nowhere."""
    return Path(os.path.expanduser(name))
