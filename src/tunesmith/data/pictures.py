"""Pictures as files: which files are some, whether they can be read, and what identifies them."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
LARGEST_PIXELS = 100_000_000
"""A picture of more pixels is refused before it is unpacked: it may be a small file that fills the memory."""


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its name."""
    return path.suffix.lower() in SUFFIXES


def read_picture(path: Path) -> Image:
    """A picture in RGB, turned as its camera noted; of a moving one the first frame.

    Raises:
        DataError: It is missing, no picture, broken off or too large; the path is the place.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                if picture.width * picture.height > LARGEST_PIXELS:
                    raise DataError(f"the picture has {picture.width} x {picture.height} pixels", where=str(path))
                return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        fix = "save the picture again, or leave it out with `data.drop_bad: true`"
        raise DataError(f"the picture cannot be read: {error}", where=str(path), fix=fix) from error


def digest(path: Path) -> str:
    """32 hexadecimal digits that identify a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
