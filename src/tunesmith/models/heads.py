"""Heads on sentence encoders: they read the pooled vector that the encoder was trained to give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tunesmith.models import classical

Pooling = Literal["mean", "cls"]


def pooling_of(folder: Path) -> Pooling | None:
    """How a sentence encoder pools its tokens, from its own files; ``None`` if it is no such model."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("pooling_mode_mean_tokens") or config.get("pooling_mode") == "mean":
        return "mean"
    if config.get("pooling_mode_cls_token") or config.get("pooling_mode") == "cls":
        return "cls"
    return None


def head_labels(folder: Path, form: str) -> list[str] | None:
    """Labels of the linear head of this form that an earlier stage left beside an encoder; ``None`` without one."""
    notes = folder / "tunesmith.json"
    if not notes.is_file() or not (folder / "2_Dense" / "model.safetensors").is_file():
        return None
    content = json.loads(notes.read_text(encoding="utf-8"))
    labels: list[str] | None = content.get("labels") if content.get("form") == form else None
    return labels


def pool(hidden_BSd: torch.Tensor, mask_BS: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """One vector a row: the mean over its real tokens, or its first token. (B, S, d) -> (B, d)."""
    if pooling == "cls":
        return hidden_BSd[:, 0]
    weights = mask_BS.to(hidden_BSd.dtype).unsqueeze(1)
    return torch.bmm(weights, hidden_BSd).squeeze(1) / weights.sum(-1).clamp(min=1)


class SentenceClassifier(nn.Module):
    """An encoder, its own pooling, dropout and a linear head.

    Saved as a sentence-transformers model with a final ``Dense`` module: the encoder is a plain transformers folder,
    ``SentenceTransformer(folder).encode(texts)`` gives the logits.
    """

    def __init__(self, encoder: nn.Module, pooling: Pooling, hidden: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling: Pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.width = hidden
        self.classifier: nn.Linear | classical.Neighbours | classical.Trees = nn.Linear(hidden, num_labels)
        # Small, so that all classes are about equally likely at first (BERT's own initialisation).
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The pooled sentence vectors, (B, d)."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        hidden = hidden[:, -input_ids.shape[1] :]  # learned tokens may stand before the text's own
        return pool(hidden, attention_mask, self.pooling)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits, (B, C), in the dtype of the head."""
        return self._classify(self.embed(input_ids, attention_mask))

    def head(self, hidden_BSd: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits, (B, C), from hidden states that the encoder gave."""
        return self._classify(pool(hidden_BSd, attention_mask, self.pooling))

    def _classify(self, pooled_Bd: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.classifier(self.dropout(pooled_Bd).to(classical.dtype_of(self.classifier))))

    def save_head(self, folder: Path, max_length: int) -> None:
        """Write pooling and head as sentence-transformers modules beside the encoder."""
        width = self.width
        if not isinstance(self.classifier, nn.Linear):
            save_pooling(folder, self.pooling, width, max_length)
            classical.save(self.classifier, folder)
            return
        save_pooling(folder, self.pooling, width, max_length, head="2_Dense")
        _write_json(
            folder / "2_Dense" / "config.json",
            {
                "in_features": width,
                "out_features": self.classifier.out_features,
                "bias": True,
                "activation_function": "torch.nn.modules.linear.Identity",
            },
        )
        save_file(
            {
                "linear.weight": self.classifier.weight.detach().contiguous().cpu(),
                "linear.bias": self.classifier.bias.detach().contiguous().cpu(),
            },
            folder / "2_Dense" / "model.safetensors",
        )

    def load_head(self, folder: Path) -> None:
        """Read back what :meth:`save_head` wrote."""
        found = classical.load(folder)
        if found is not None:
            self.classifier = found.to(next(self.encoder.parameters()).device)
            return
        assert isinstance(self.classifier, nn.Linear)
        tensors = load_file(folder / "2_Dense" / "model.safetensors")
        with torch.no_grad():
            self.classifier.weight.copy_(tensors["linear.weight"])
            self.classifier.bias.copy_(tensors["linear.bias"])


def save_pooling(folder: Path, pooling: Pooling, width: int, max_length: int, head: str | None = None) -> None:
    """Write the files by which sentence-transformers pools the encoder in ``folder``, and applies a head to that."""
    modules = [
        _module(0, "", "sentence_transformers.models.Transformer"),
        _module(1, "1_Pooling", "sentence_transformers.models.Pooling"),
    ]
    if head is not None:
        modules.append(_module(2, head, "sentence_transformers.models.Dense"))
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )


def _module(index: int, path: str, kind: str) -> dict[str, Any]:
    return {"idx": index, "name": str(index), "path": path, "type": kind}


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
