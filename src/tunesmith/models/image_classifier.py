"""A head on a vision model: it reads the pooled vector of a picture."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import nn

from tunesmith.catalog import cache
from tunesmith.models import classical, efficientnet

HEAD = "head.safetensors"
OWN = (cache.MANIFEST, HEAD, classical.ARRAYS, classical.SETTINGS)
"""Files of a base that are not copied from it."""


class ImageClassifier(nn.Module):
    """A vision encoder, dropout and a linear head on its pooled vector.

    Batch norms keep the statistics that they were trained with, also while their factors train: those of a small batch
    would be noise, and the result would depend on how a batch is split.

    Attributes:
        encoder: Gives feature maps (B, d, h, w), or hidden states of patches (B, P, d).
        prepare: From a picture to pixels (3, H, W), as the model was trained.
        classifier: The head.
    """

    def __init__(
        self,
        encoder: nn.Module,
        prepare: Callable[[Any], torch.Tensor],
        width: int,
        num_labels: int,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.prepare = prepare
        self.dropout = nn.Dropout(dropout or 0.0)
        self.classifier: nn.Linear | classical.Neighbours | classical.Trees = nn.Linear(width, num_labels)
        # Small, so that all classes are about equally likely at first, as for texts.
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def train(self, mode: bool = True) -> ImageClassifier:
        """Go into training mode, without the batch norms."""
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    @property
    def encoder_trains(self) -> bool:
        """Whether training may change, or has changed, the encoder."""
        return any(parameter.requires_grad for parameter in self.encoder.parameters())

    def embed(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """The pooled vectors, (B, d)."""
        found = self.encoder(pixels_BCHW.to(next(self.encoder.parameters()).dtype))
        if isinstance(found, torch.Tensor):
            return found.mean((2, 3))
        if getattr(found, "pooler_output", None) is not None:
            return cast(torch.Tensor, found.pooler_output.flatten(1))
        states = found.last_hidden_state
        return cast(torch.Tensor, states.mean((2, 3)) if states.ndim == 4 else states.mean(1))

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Logits, (B, C)."""
        pooled_Bd = self.dropout(self.embed(pixels_BCHW))
        return cast(torch.Tensor, self.classifier(pooled_Bd.to(classical.dtype_of(self.classifier))))

    def save(self, folder: Path, base: Path) -> None:
        """Write encoder and head: the base's own files, with the encoder's weights if these trained, and the head."""
        for path in base.iterdir():
            kept = path.suffix == ".json" or (path.suffix == ".safetensors" and not self.encoder_trains)
            if path.is_file() and kept and path.name not in OWN:
                shutil.copyfile(path, folder / path.name)
        if self.encoder_trains:
            self._save_encoder(folder)
        if not isinstance(self.classifier, nn.Linear):
            classical.save(self.classifier, folder)
            return
        weights = {"weight": self.classifier.weight, "bias": self.classifier.bias}
        save_file({name: w.detach().contiguous().cpu() for name, w in weights.items()}, folder / HEAD)

    def _save_encoder(self, folder: Path) -> None:
        encoder: Any = self.encoder
        if isinstance(encoder, efficientnet.EfficientNetLite0):
            weights = {name: weight.contiguous().cpu() for name, weight in encoder.state_dict().items()}
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            return
        from tunesmith.models.load import quiet

        with quiet():
            encoder.save_pretrained(folder)
