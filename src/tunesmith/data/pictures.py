"""Pictures as files: which files are some, whether they can be read, and what identifies them."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping
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
        DataError: It is missing, no picture, broken off or too large; the path is the place.
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
        known = str(error).replace(repr(where), "").strip(" :")
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


def unpacked(content: bytes) -> Path:
    """A file with a picture that a table holds: in the cache folder, by its content.

    Raises:
        ResourceError: The disk is full.
    """
    from tunesmith import disk
    from tunesmith.catalog import cache

    name = hashlib.blake2b(content, digest_size=16).hexdigest()
    path = cache.root() / "pictures" / name[:2] / name
    if not path.is_file():
        disk.write_bytes(path, content)
    return path


def digest(path: Path) -> str:
    """32 hexadecimal digits that identify a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
