"""Vectors of texts by a model that does not train, kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith import environment
from tunesmith.catalog import cache
from tunesmith.events import Listener
from tunesmith.models.cutting import fingerprint
from tunesmith.models.heads import SentenceClassifier
from tunesmith.models.inference import embeddings
from tunesmith.models.model import Model

FILE = "vectors.npy"


def of_texts(model: Model, examples: Sequence[Sequence[int]], on_event: Listener) -> np.ndarray:
    """One vector a text, (N, d) float64; those of the same texts by the same untuned model come from the cache."""
    tokens = hashlib.sha256()
    for example in examples:
        tokens.update(np.asarray([len(example), *example], dtype=np.int32).data)
    key = {
        "model": fingerprint(model.folder),
        "layers": len(model.blocks()),
        "pooling": model.network.pooling if isinstance(model.network, SentenceClassifier) else "mean",
        "dtype": str(model.dtype),
        "texts": tokens.hexdigest(),
        **environment.versions(),
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]

    def build(staging: Path) -> dict[str, Any]:
        np.save(staging / FILE, embeddings(model, examples, on_event=on_event))
        return {}

    folder = cache.ensure(cache.root() / "features" / name, build, key=key, on_event=on_event)
    found: np.ndarray = np.load(folder / FILE, allow_pickle=False)
    return found
