"""Pictures as files: which files are some, whether they can be read, and what identifies them."""

from __future__ import annotations

import atexit
import functools
import hashlib
import io
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
LARGEST_PIXELS = 100_000_000
"""A picture of more pixels is refused before it is unpacked: it may be a small file that fills the memory."""


READS_TEXT = "this task reads text: for pictures use `task: image-classification`, or leave them out"
_LONGEST_NAME = 500
_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")


def names_picture(text: str) -> bool:
    """Whether a text is but the name or the address of a picture, or one in base64."""
    text = text.strip()
    if text.startswith("data:image/"):
        return True
    name = text.partition("?")[0].lower()
    one = len(text) < _LONGEST_NAME and "\n" not in text and (" " not in text or "/" in text)
    return one and name.endswith(tuple(SUFFIXES))


def holds_picture(value: Any) -> bool:
    """Whether a value is a picture: bytes, what the hub's library makes of one, or a part of a chat message."""
    if isinstance(value, bytes):
        return value.startswith(_BEGINNINGS) or value[8:12] == b"WEBP"
    if isinstance(value, Mapping):
        inside = "image" in str(value.get("type")) or "image_url" in value
        return inside or holds_picture(value.get("bytes")) or names_picture(str(value.get("path") or ""))
    return type(value).__module__.startswith("PIL.")


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its name."""
    return path.suffix.lower() in SUFFIXES


def located(name: str, file: Path) -> Path:
    """The path of a picture that a file names: it counts from here, or else from the file's folder."""
    path = Path(name).expanduser()
    beside = file.parent / path
    return beside if not path.is_file() and beside.is_file() else path


def read_picture(source: Path | bytes) -> Image:
    """A picture in RGB, turned as its camera noted; of a moving one the first frame.

    Args:
        source: A file, or the content of one.

    Raises:
        DataError: It is missing, no picture, broken off or too large; a file's path is the place, and content has none.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    where = str(source) if isinstance(source, Path) else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as picture:
                if picture.width * picture.height > LARGEST_PIXELS:
                    raise DataError(f"the picture has {picture.width} x {picture.height} pixels", where=where)
                return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        known = (str(error) if where is None else str(error).replace(repr(where), "")).strip(" :")
        reason = "its format is not known" if isinstance(error, UnidentifiedImageError) else known
        fix = "save the picture again, or leave it out"
        raise DataError(f"cannot be read as a picture: {reason}", where=where, fix=fix) from error


def embedded(value: Any) -> bytes | str | None:
    """The content of a picture that a row holds itself, or its path: bytes, or what the hub's library stores.

    That is a structure of ``bytes`` and ``path``, of which one may be missing. ``None``: the value is neither.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
        return value if isinstance(value, bytes | str) else None
    return value if isinstance(value, bytes) else None


@functools.cache
def _until_exit() -> Path:
    folder = tempfile.mkdtemp(prefix="tunesmith-pictures-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


_unpacked_to: ContextVar[Callable[[], Path]] = ContextVar("unpacked_to", default=_until_exit)
"""The folder of pictures that tables hold; it is made when the first one comes."""


@contextmanager
def unpacked_into(folder: Path) -> Iterator[None]:
    """Pictures that tables hold are put into a folder, where a run that is resumed finds them again."""
    folder = folder.absolute()
    token = _unpacked_to.set(lambda: folder)
    try:
        yield
    finally:
        _unpacked_to.reset(token)


@contextmanager
def unpacked_for_now() -> Iterator[None]:
    """Pictures that tables hold are put into a temporary folder, unless somebody has already said where to."""
    if _unpacked_to.get() is not _until_exit:
        yield
        return
    with ExitStack() as stack:

        @functools.cache
        def folder() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tunesmith-pictures-")))

        token = _unpacked_to.set(folder)
        try:
            yield
        finally:
            _unpacked_to.reset(token)


def unpacked(content: bytes) -> Path:
    """A file with a picture that a table holds, named by its content.

    It lies where :func:`unpacked_into` or :func:`unpacked_for_now` say; else it is there until the process ends.

    Raises:
        ResourceError: The disk is full.
    """
    from tunesmith import disk

    name = hashlib.blake2b(content, digest_size=16).hexdigest()
    path = _unpacked_to.get()() / name[:2] / name
    if not path.is_file() or path.stat().st_size != len(content):  # a power cut may leave it empty
        disk.write_bytes(path, content, lasting=False)
    return path


def digest(path: Path) -> str:
    """32 hexadecimal digits that identify a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
