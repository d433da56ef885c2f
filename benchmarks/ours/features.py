"""Tunesmith's sentence vectors and its linear head, on the texts that the peers embed."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from measuring import peak_rss_bytes, read_lines, read_spec, write_result

from tunesmith.data.render import encode_text
from tunesmith.models.heads import pooling_of
from tunesmith.models.inference import embeddings
from tunesmith.models.load import load_model
from tunesmith.models.precision import choose_dtype, default_device
from tunesmith.prediction.features import fit_linear_head


def main() -> None:
    spec = read_spec()
    train, test = read_lines(spec["train"]), read_lines(spec["held_out"])
    device = default_device()
    model = load_model(
        Path(spec["model"]),
        name="minilm-l6",
        form="classify",
        labels=["0", "1"],
        dtype=choose_dtype("auto", device),
        device=device,
        max_length=spec["max_length"],
        pooling=pooling_of(Path(spec["model"])),
    )
    started = time.perf_counter()
    examples = [encode_text(model.tokenizer, row["text"], model.max_length)[0] for row in train + test]
    vectors = embeddings(model, examples)
    seconds = time.perf_counter() - started
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    started = time.perf_counter()
    head = fit_linear_head(vectors[: len(train)], [row["label"] for row in train], 2)
    fit_seconds = time.perf_counter() - started
    predicted = head.probabilities(vectors[len(train) :]).argmax(1)
    np.save(Path(spec["out"]) / "vectors.npy", vectors.astype(np.float32), allow_pickle=False)
    write_result(
        spec,
        run_seconds=seconds,
        fit_seconds=fit_seconds,
        peak_rss_bytes=peak_rss_bytes(),
        correct=int((predicted == np.asarray([row["label"] for row in test])).sum()),
        held_out_rows=len(test),
        precision=str(model.dtype),
    )


if __name__ == "__main__":
    main()
