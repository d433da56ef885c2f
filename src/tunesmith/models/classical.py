"""Classical heads that are no linear layer, as modules whose arrays are saved: neighbours, and boosted trees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

ARRAYS, SETTINGS = "classical_head.safetensors", "classical_head.json"


class Neighbours(nn.Module):
    """The labels of the k training vectors of the largest cosine; one more vote is shared by all labels.

    Args:
        vectors: (N, d) of the training rows.
        labels: (N,) int64.
        num_labels: C.
        k: How many vote.
    """

    def __init__(self, vectors: torch.Tensor, labels: torch.Tensor, num_labels: int, k: int) -> None:
        super().__init__()
        self.register_buffer("vectors", functional.normalize(vectors, dim=-1))
        self.register_buffer("labels", labels)
        self.num_labels, self.k = num_labels, k

    def forward(self, features_Bd: torch.Tensor) -> torch.Tensor:
        """Log probabilities, (B, C). The shared vote keeps those without a neighbour above 0."""
        vectors_Nd, labels_N = cast(torch.Tensor, self.vectors), cast(torch.Tensor, self.labels)
        cosine_BN = functional.normalize(features_Bd.to(vectors_Nd.dtype), dim=-1) @ vectors_Nd.T
        votes_Bk = labels_N[cosine_BN.topk(self.k, dim=-1).indices]
        counts_BC = functional.one_hot(votes_Bk, self.num_labels).sum(1).to(vectors_Nd.dtype)
        return ((counts_BC + 1 / self.num_labels) / (self.k + 1)).log()

    def settings(self) -> dict[str, Any]:
        """What the arrays do not say."""
        return {"kind": "knn", "num_labels": self.num_labels, "k": self.k}


class Trees(nn.Module):
    """A sum of regression trees for each label, as gradient boosting leaves them.

    Args:
        arrays: Of T trees of at most M nodes, (T, M) each: ``feature`` and ``threshold`` (a vector goes left whose
            feature is not above it), ``left`` and ``right`` (a node's children; of a leaf itself) and ``value`` (of
            leaves); ``baseline`` (K,), which the sums start from.
        depth: Steps from a root to the lowest leaf.

    Tree t adds to output t % K. K is the number of labels, or 1 for two labels: the log odds of the second.
    """

    def __init__(self, arrays: dict[str, torch.Tensor], depth: int) -> None:
        super().__init__()
        for name in ("feature", "threshold", "left", "right", "value", "baseline"):
            self.register_buffer(name, arrays[name])
        self.depth = depth

    def forward(self, features_Bd: torch.Tensor) -> torch.Tensor:
        """Scores whose softmax are the probabilities, (B, C) float64."""
        arrays = dict(self.named_buffers())
        features_Bd = features_Bd.to(arrays["threshold"].dtype)
        tree_T = torch.arange(len(arrays["feature"]), device=features_Bd.device)
        node_BT = torch.zeros(len(features_Bd), len(tree_T), dtype=torch.long, device=features_Bd.device)
        for _ in range(self.depth):
            goes_left_BT = (
                features_Bd.gather(1, arrays["feature"][tree_T, node_BT]) <= arrays["threshold"][tree_T, node_BT]
            )
            node_BT = torch.where(goes_left_BT, arrays["left"][tree_T, node_BT], arrays["right"][tree_T, node_BT])
        outputs = len(arrays["baseline"])
        sums_BK = arrays["baseline"] + arrays["value"][tree_T, node_BT].unflatten(1, (-1, outputs)).sum(1)
        return sums_BK if outputs > 1 else torch.cat([torch.zeros_like(sums_BK), sums_BK], dim=1)

    def settings(self) -> dict[str, Any]:
        """What the arrays do not say."""
        return {"kind": "boosting", "depth": self.depth}


def save(head: Neighbours | Trees, folder: Path) -> None:
    """Write a head beside the encoder: its arrays, and the rest as JSON."""
    save_file({name: value.contiguous().cpu() for name, value in head.state_dict().items()}, folder / ARRAYS)
    (folder / SETTINGS).write_text(json.dumps(head.settings(), indent=2), encoding="utf-8")


def load(folder: Path) -> Neighbours | Trees | None:
    """Read back what :func:`save` wrote; ``None`` if the head is a linear one."""
    if not (folder / SETTINGS).is_file():
        return None
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    arrays = load_file(folder / ARRAYS)
    if settings["kind"] == "knn":
        return Neighbours(arrays["vectors"], arrays["labels"], settings["num_labels"], settings["k"])
    return Trees(arrays, settings["depth"])


def dtype_of(head: nn.Module) -> torch.dtype:
    """The type that a head computes in: of a linear one that of its weights."""
    tensors = [*head.parameters(), *head.buffers()]
    return next(tensor.dtype for tensor in tensors if tensor.is_floating_point())
