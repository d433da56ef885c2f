"""Sentence vectors in fp32 and a logistic regression: by sentence-transformers, or by a plain loop of transformers."""

import time

import numpy as np
import torch
from measuring import peak_rss_bytes, read_lines, read_spec, write_result
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, AutoTokenizer

spec = read_spec()
train, test = read_lines(spec["train"]), read_lines(spec["held_out"])
texts = [row["text"] for row in train + test]


def by_sentence_transformers():
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(spec["model"], device="cpu")
    return lambda: model.encode(texts, show_progress_bar=False)


def by_transformers():
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    model = AutoModel.from_pretrained(spec["model"], dtype=torch.float32).eval()

    def embed():
        vectors = []
        for start in range(0, len(texts), 8):
            batch = tokenizer(
                texts[start : start + 8],
                padding=True,
                truncation=True,
                max_length=spec["max_length"],
                return_tensors="pt",
            )
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            vectors.append(torch.nn.functional.normalize(mean, dim=1))
        return torch.cat(vectors).numpy()

    return embed


embed = {"sentence-transformers": by_sentence_transformers, "transformers": by_transformers}[
    spec["options"]["engine"]
]()
with torch.inference_mode():
    started = time.perf_counter()
    vectors = embed()
    seconds = time.perf_counter() - started
started = time.perf_counter()
scaler = StandardScaler().fit(vectors[: len(train)])
labels = [row["label"] for row in train]
head = LogisticRegression(C=1.0, max_iter=1000).fit(scaler.transform(vectors[: len(train)]), labels)
fit_seconds = time.perf_counter() - started
predicted = head.predict(scaler.transform(vectors[len(train) :]))
np.save(spec["out"] + "/vectors.npy", vectors, allow_pickle=False)
write_result(
    spec,
    run_seconds=seconds,
    fit_seconds=fit_seconds,
    peak_rss_bytes=peak_rss_bytes(),
    correct=int((predicted == np.asarray([row["label"] for row in test])).sum()),
    held_out_rows=len(test),
)
