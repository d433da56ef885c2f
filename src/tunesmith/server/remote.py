"""Files and jobs in an object storage that speaks S3's language, through fsspec.

An object is there as a whole or not at all, and nothing is seen half: of a file its bytes go first and ``file.json``
last, of a job its run first and then the ``job.json`` that says it has succeeded. The key of a thing is its path below
the data folder. Address, keys and region come from where all of Amazon's tools look for them
(``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``~/.aws``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.errors import MissingExtraError, ResourceError, UsageError

PIECE = 2**20
log = logging.getLogger("tunesmith.server")


class Remote:
    """A place ``s3://bucket/prefix``.

    Args:
        url: Its address.

    Raises:
        UsageError: It is no such address.
        MissingExtraError: The extra ``s3`` is not installed.
    """

    def __init__(self, url: str) -> None:
        bucket = url.removeprefix("s3://").strip("/")
        if not url.startswith("s3://") or not bucket:
            raise UsageError(f"{url!r} is no storage", where="--storage", fix="s3://BUCKET or s3://BUCKET/PREFIX")
        try:
            import fsspec
            import s3fs  # noqa: F401
        except ImportError as error:
            raise MissingExtraError(error.name or "s3fs", "s3", "`--storage s3://...`") from error
        self.url = f"s3://{bucket}"
        self._fs: Any = fsspec.filesystem("s3", use_listings_cache=False)

    def check(self) -> None:
        """Refuse a place that cannot be written to, before anything is promised.

        Raises:
            ResourceError: The bucket does not exist, or may not be written to.
        """
        with self._told(), tempfile.NamedTemporaryFile() as empty:
            self._fs.put_file(empty.name, self._path(".check"))
            self._fs.rm_file(self._path(".check"))

    def put(self, path: Path, key: str) -> None:
        """Send a file; it appears, or takes the place of the one before, when all of it is there."""
        with self._told():
            self._fs.put_file(str(path), self._path(key))

    def copy(self, key: str, new: str) -> None:
        """Give an object a second name, without its bytes passing through here.

        Raises:
            FileNotFoundError: There is none.
        """
        with self._told():
            self._fs.cp_file(self._path(key), self._path(new))

    def read(self, key: str) -> Iterator[bytes]:
        """The bytes of an object, piece by piece."""
        with self._told(), self._fs.open(self._path(key), "rb", block_size=8 * PIECE) as file:
            while piece := file.read(PIECE):
                yield piece

    def remove(self, key: str) -> None:
        """Delete an object, or all below a key; what is not there is no error."""
        with self._told(), contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._path(key), recursive=True)

    def keys(self, key: str) -> list[str]:
        """The keys of all objects below a key."""
        with self._told():
            found: list[str] = self._fs.find(self._path(key))
            return [name.removeprefix(self._path("")) for name in found]

    def push(self, folder: Path, key: str) -> None:
        """Make what is below a key what is in a folder. Links, locks and hidden files stay here."""
        files = {
            f"{key}/{path.relative_to(folder).as_posix()}": path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        }
        for name, path in files.items():
            self.put(path, name)
        for name in set(self.keys(key)) - files.keys():
            self.remove(name)

    def pull(self, key: str, folder: Path) -> None:
        """Fetch all that is below a key into a folder that is not there yet; it appears when all of it is there."""
        for left in folder.parent.glob(f".pull-{folder.name}-*"):
            if not _is_at_work(left.name.rpartition("-")[2]):
                shutil.rmtree(left, ignore_errors=True)
        staging = folder.with_name(f".pull-{folder.name}-{os.getpid()}")
        try:
            for name in self.keys(key):
                target = staging / name.removeprefix(f"{key}/")
                if ".." in target.parts or not target.resolve().is_relative_to(staging.resolve()):
                    raise ResourceError("an object's name leads out of its folder", where=f"{self.url}/{name}")
                target.parent.mkdir(parents=True, exist_ok=True)
                with self._told():
                    self._fs.get_file(self._path(name), str(target))
            staging.mkdir(parents=True, exist_ok=True)
            os.replace(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _path(self, key: str) -> str:
        return f"{self.url.removeprefix('s3://')}/{key}"

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Say of every failure which storage it is of; what is not there stays a ``FileNotFoundError``."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except FileNotFoundError as error:
            if "bucket" in str(error).lower():
                raise self._error(error) from error
            raise
        except (BotoCoreError, ClientError, OSError) as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> ResourceError:
        log.error("%s: %s", self.url, error)  # it may name places and accounts that are no client's business
        return ResourceError(
            f"the server's storage does not answer as it should ({type(error).__name__})",
            where=self.url,
            fix="check that the bucket is there, and AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )


def _is_at_work(process: str) -> bool:
    """Whether a process other than this one has this number."""
    import psutil

    return process.isdecimal() and int(process) != os.getpid() and psutil.pid_exists(int(process))
