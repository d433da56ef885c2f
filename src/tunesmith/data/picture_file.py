"""Pictures as examples to train on: read when their turn comes, and changed a little in each epoch if wanted."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.batches import Batch, Ragged, TokenFile
from tunesmith.data.pictures import read_picture
from tunesmith.data.rows import CONTENT, Origin, Row
from tunesmith.data.settings import Augmentation

if TYPE_CHECKING:
    import torch

PATCH = 16
"""Pixels on a side of what counts as one token of a picture: the patch of the first vision transformer (arXiv
2010.11929), so that `micro_tokens` and tokens a second mean something for pictures too."""
SMALLEST_CROP = 0.5
"""Least share of a picture that a crop keeps. Torchvision's 0.08 is for a million pictures: with a few dozen, whatever
the label depends on would often be cut away. A choice, not measured."""
CROP_RATIOS = (3 / 4, 4 / 3)
"""Width over height of a crop, over that of the picture (Szegedy et al. 2015, arXiv 1409.4842, section 6)."""


class PictureFile(TokenFile):
    """Pictures in the place of a :class:`TokenFile`: the same loop goes through them.

    Args:
        rows: With ``image`` (a path) and ``label``.
        labels: Class names; an example's class index counts in them.
        prepare: From a picture to pixels (3, H, W), as the model was trained.
        augment: How a picture that is learned from is changed, at random from (seed, epoch, picture).
        seed: Of these changes.

    Raises:
        DataError: The first picture cannot be read.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        labels: Sequence[str],
        prepare: Callable[[Any], torch.Tensor],
        *,
        augment: Sequence[Augmentation] = (),
        seed: int = 0,
    ) -> None:
        self.rows = rows
        self.origins: Sequence[Origin] = [row.origin for row in rows]
        self._prepare, self._augment, self._seed = prepare, tuple(augment), seed
        self._labels = np.asarray([labels.index(str(row.fields["label"])) for row in rows], dtype=np.int32)
        self._first = self._pixels(0, None).numpy() if len(rows) else np.zeros((3, 0, 0), np.float32)
        patches = math.prod(math.ceil(side / PATCH) for side in self._first.shape[1:])
        self.lengths = np.full(len(rows), patches, dtype=np.int64)
        self.offsets = np.arange(len(rows) + 1, dtype=np.int64) * patches
        self.loss_weight = np.ones(len(rows))
        self.extra: dict[str, Ragged] = {}
        self.has_labels, self.has_weights, self.cut_examples = True, False, 0
        self.states = None

    @property
    def varies(self) -> bool:
        """Whether the pictures are changed in each epoch."""
        return bool(self._augment)

    @property
    def digest(self) -> str:
        """Hash of the pictures' contents, and of what the model is shown of the first one."""
        digest = hashlib.sha256(self._first.tobytes())
        for row in self.rows:
            digest.update(str(row.fields[CONTENT]).encode())
        return digest.hexdigest()[:16]

    @property
    def state_offsets(self) -> np.ndarray:
        """A picture's state is one row, whatever it is made of."""
        return np.arange(len(self.rows) + 1, dtype=np.int64)

    def batch(self, rows: Sequence[int], pad_id: int, multiple_of: int, epoch: int | None) -> Batch:
        """Pixels of some pictures; where the frozen layers' states are known, these are not read again."""
        import torch

        ids = torch.zeros(len(rows), 1, dtype=torch.long)
        known = None if self.states is None else (ids, self.states.rectangle(rows, 1))
        if known is None:
            pixels = torch.stack([self._pixels(row, epoch) for row in rows])
        else:
            pixels = torch.zeros(len(rows), *self._first.shape)
        return Batch(
            input_ids=ids,
            attention_mask=torch.ones_like(ids, dtype=torch.bool),
            loss_weights=None,
            labels=torch.from_numpy(self._labels[list(rows)].astype(np.int64)),
            rows=list(rows),
            tokens=int(self.lengths[list(rows)].sum()),
            epoch=epoch,
            states=known,
            pixels=pixels,
        )

    def _pixels(self, row: int, epoch: int | None) -> torch.Tensor:
        picture = read_picture(Path(str(self.rows[row].fields["image"])))
        if epoch is not None and self._augment:
            picture = augmented(picture, self._augment, np.random.default_rng([self._seed, epoch, row]))
        return self._prepare(picture)


def augmented(picture: Any, how: Sequence[Augmentation], random: np.random.Generator) -> Any:
    """A picture cut to a random part of it, and mirrored every other time, as far as asked for.

    Args:
        picture: Of Pillow.
        how: ``crop``: a part of half its area or more, of about its own shape. ``flip``: left and right change places.
        random: Where the chance comes from.
    """
    from PIL import Image, ImageOps

    if "crop" in how:
        area = random.uniform(SMALLEST_CROP, 1.0)
        ratio = math.exp(random.uniform(math.log(CROP_RATIOS[0]), math.log(CROP_RATIOS[1])))
        width = min(picture.width, round(picture.width * math.sqrt(area * ratio)))
        height = min(picture.height, round(picture.height * math.sqrt(area / ratio)))
        left, top = (int(random.integers(0, room + 1)) for room in (picture.width - width, picture.height - height))
        part = picture.crop((left, top, left + max(1, width), top + max(1, height)))
        picture = part.resize(picture.size, Image.Resampling.BICUBIC)
    if "flip" in how and random.random() < 0.5:
        picture = ImageOps.mirror(picture)
    return picture
