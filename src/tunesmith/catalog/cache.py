"""The cache folder: what is complete in it, and how something gets there.

A cached folder is built in a staging folder beside it, gets a ``MANIFEST.json`` with the size and sha256 of every
file, and is then renamed into place: what has its final name is complete. One lock a name keeps processes apart.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith import disk
from tunesmith.errors import ResourceError
from tunesmith.events import Listener, Notice, nobody

MANIFEST = "MANIFEST.json"


def root() -> Path:
    """The user's cache folder: ``TUNESMITH_CACHE``, else ``tunesmith`` below ``XDG_CACHE_HOME`` or ``~/.cache``."""
    own = os.environ.get("TUNESMITH_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "tunesmith"


@contextmanager
def locked(name: str, on_event: Listener = nobody) -> Iterator[None]:
    """Hold the lock of one cached thing; says so if another process has it and waits until it is done.

    The operating system frees the lock when its holder dies, so a killed process blocks nobody.
    """
    from filelock import FileLock, Timeout

    folder = root() / "locks"
    _make_folder(folder)
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_event(Notice(level="info", message=f"another process is preparing {name}: waiting for it"))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _lock_name(folder: Path) -> str:
    """Readable for what lies in the cache. Elsewhere every run has folders of the same names: the whole path counts."""
    if folder.is_relative_to(root()):
        return f"{folder.parent.name}-{folder.name}"
    return f"{folder.name}-{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:12]}"


def ensure(
    folder: Path,
    build: Callable[[Path], dict[str, Any]],
    *,
    key: dict[str, Any],
    on_event: Listener = nobody,
    deep: bool = True,
) -> Path:
    """Return ``folder`` complete and undamaged, building it first if it is not.

    Args:
        folder: Its final place, in the cache or elsewhere.
        build: Fills a staging folder and returns notes for the manifest.
        key: What the folder was made from; another key in the manifest means it is out of date.
        on_event: Hears about damage and waiting.
        deep: Compare every file's sha256 (once a process), not only sizes.

    Raises:
        ResourceError: The folder cannot be written (disk full, no permission).
    """
    with locked(_lock_name(folder), on_event):
        if folder.exists():
            fault = damage(folder, key=key, deep=deep)
            if fault is None:
                return folder
            on_event(
                Notice(level="warning", message=f"the cached {folder.name} is made again: {fault}", where=str(folder))
            )
        staging = folder.with_name(f".staging-{folder.name}")
        try:
            shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
            staging.mkdir(parents=True)
            notes = build(staging)
            _write_manifest(staging, key, notes)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(staging, folder)
            disk.flush(folder.parent)
        except OSError as error:
            raise ResourceError(
                f"cannot write the cache: {error}",
                where=str(folder),
                fix="free some disk space, or point TUNESMITH_CACHE to a folder that can be written",
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return folder


def is_complete(folder: Path, key: dict[str, Any]) -> bool:
    """Whether ``folder`` is there, whole by its sizes, and made from ``key``."""
    return folder.exists() and damage(folder, key=key, deep=False) is None


def damage(folder: Path, *, key: dict[str, Any], deep: bool) -> str | None:
    """What is wrong with a cached folder, in words, or ``None``."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files: dict[str, dict[str, Any]] = manifest["files"]
        made_from = manifest["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is missing or unreadable"
    if made_from != json.loads(json.dumps(key)):
        return "it was made from other files, or by another version"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        stat = path.stat()
        if stat.st_size != expected["bytes"]:
            return f"{name} has {stat.st_size} bytes instead of {expected['bytes']}"
        if deep and _digest_once(path, stat) != expected["sha256"]:
            return f"{name} has changed (its sha256 differs)"
    return None


_digests: dict[tuple[str, int, int], str] = {}


def _digest_once(path: Path, stat: os.stat_result) -> str:
    """The sha256 of a file, remembered within this process as long as size and time of change stay the same."""
    known = (str(path), stat.st_size, stat.st_mtime_ns)
    if known not in _digests:
        _digests[known] = disk.sha256(path)
    return _digests[known]


def _write_manifest(folder: Path, key: dict[str, Any], notes: dict[str, Any]) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        disk.flush(path)
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": disk.sha256(path)}
    manifest = folder / MANIFEST  # not atomic by itself: the whole folder is renamed into place
    manifest.write_text(json.dumps({"key": key, "notes": notes, "files": files}, indent=1), encoding="utf-8")
    disk.flush(manifest)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"cannot make the cache folder: {error}",
            where=str(folder),
            fix="point TUNESMITH_CACHE to a folder that can be written",
        ) from error
