"""The main job on real data, against the baselines that it has to beat.

    python benchmarks/acceptance.py                      sentence_polarity and banking77 with MiniLM-L6, all parameters
    python benchmarks/acceptance.py --only banking77

Settings were chosen on validation rows. Beside the run's own baselines, TF-IDF with logistic regression is fitted on
the same training rows and measured on the same test rows. Results go to `results/acceptance.json`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import KEPT, RESULTS_FOLDER, SHARED, polarity_rows, results_in, run_or_resume, write_rows

from tunesmith import environment, recipe_file
from tunesmith.data.prepare import prepare
from tunesmith.data.rows import Row
from tunesmith.disk import write_json
from tunesmith.evaluation.metrics import measure
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.recipe import Evaluate

RESULTS = RESULTS_FOLDER / "acceptance.json"
BASELINES = ["majority", "base", {"few-shot": 5}, "features"]


def polarity(folder: Path) -> dict[str, Any]:
    """Movie snippets, two classes; the split is by content hash."""
    path = write_rows(folder / "sentence_polarity.jsonl", polarity_rows())
    return {"data": {"train": path, "test": 0.2}, "training": {"epochs": 2, "learning_rate": 1e-4}}


def banking77(folder: Path) -> dict[str, Any]:
    """Bank questions, 77 intents, with a test file of their own; the head is fitted before everything trains."""
    place = SHARED / "banking77"
    data = {"train": str(place / "train.csv"), "test": str(place / "test.csv"), "columns": {"label": "category"}}
    stages = [{"name": "probe", "parameters": {"kind": "none"}}, {"name": "tune", "parameters": {"kind": "full"}}]
    return {"data": data, "training": {"epochs": 4, "learning_rate": 1e-4, "dropout": 0}, "stages": stages}


SETS = {"sentence_polarity": polarity, "banking77": banking77}


def tfidf(train: Sequence[Row], test: Sequence[Row], labels: list[str], settings: Evaluate) -> dict[str, Any]:
    """TF-IDF (words and pairs) with logistic regression, as scikit-learn has them."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    features = vectorizer.fit_transform([row.fields["text"] for row in train])
    head = LogisticRegression(C=10.0, max_iter=1000).fit(features, [row.fields["label"] for row in train])
    found = head.predict_proba(vectorizer.transform([row.fields["text"] for row in test]))
    order = [list(head.classes_).index(label) for label in labels]
    outputs = Outputs(probabilities=np.asarray(found)[:, order])
    metrics = measure(outputs, Truth("label", [row.fields["label"] for row in test], labels), settings)
    return {name: interval.as_dict() for name, interval in metrics.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(SETS))
    only = parser.parse_args().only
    known = results_in(RESULTS, sets={})["sets"]
    for name in [only] if only else sorted(SETS):
        with tempfile.TemporaryDirectory() as folder:
            known[name] = run_one(name, Path(folder))
        write_json(RESULTS, {"environment": environment.describe(), "sets": known})


def run_one(name: str, folder: Path) -> dict[str, Any]:
    """One data set: the run, and TF-IDF on the same rows."""
    tree = {"task": "text-classification", "model": "minilm-l6", "method": "full"}
    tree |= {"evaluate": {"baselines": BASELINES}} | SETS[name](folder)
    run = run_or_resume(tree, folder / "run")
    chosen = recipe_file.parse(tree)
    data = prepare(chosen)
    summary = run.summary()
    words = tfidf(data.train, data.test, data.labels or [], chosen.evaluate)
    print(f"{name}: tuned {summary['metrics']['accuracy']}, TF-IDF {words['accuracy']}")
    print(summary["verdict"])
    rows = {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
    return {key: summary[key] for key in KEPT} | {"tfidf": words, "rows": rows, "training": tree["training"]}


if __name__ == "__main__":
    main()
