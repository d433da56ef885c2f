"""How systems find spans: a head on every token, and a dictionary of the training data."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence

from tunesmith.data.rows import Row
from tunesmith.data.spans import Span, words_of
from tunesmith.data.tag_schemes import OUTSIDE, spans_of_tags
from tunesmith.data.tagging import spans_from, tag_names, windows, word_probabilities, word_tags
from tunesmith.events import Listener, nobody
from tunesmith.models import inference
from tunesmith.models.model import Model
from tunesmith.prediction.outputs import Outputs


def by_head(model: Model, rows: Sequence[Row], on_event: Listener = nobody) -> Outputs:
    """Spans by the model's head; long texts in overlapping windows."""
    started = time.perf_counter()
    labels = model.labels or []
    texts, words = [row.fields["text"] for row in rows], [words_of(row) for row in rows]
    parts = [windows(model.tokenizer, *pair, model.max_length) for pair in zip(texts, words, strict=True)]
    asked = [window.input_ids for windows_of_row in parts for window in windows_of_row]
    answers = iter(inference.tag_probabilities(model, asked, on_event=on_event))
    spans = []
    for text, places, windows_of_row in zip(texts, words, parts, strict=True):
        found = [next(answers) for _ in windows_of_row]
        probabilities = word_probabilities(windows_of_row, found, len(places), len(tag_names(labels)))
        spans.append(spans_from(probabilities, text, places, windows_of_row, labels))
    return Outputs(spans=spans, prompt_tokens=sum(map(len, asked)), seconds=time.perf_counter() - started)


def by_dictionary(train: Sequence[Row], rows: Sequence[Row]) -> Outputs:
    """The tag that each word most often has in the training data (of equally frequent ones O, else the first met)."""
    started = time.perf_counter()
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        places, text = words_of(row), row.fields["text"]
        for (start, end), tag in zip(places, word_tags(row, places), strict=True):
            counts[text[start:end]][tag] += 1
    usual = {word: max(tags, key=lambda tag: (tags[tag], tag == OUTSIDE)) for word, tags in counts.items()}
    spans = []
    for row in rows:
        places, text = words_of(row), row.fields["text"]
        tags = [usual.get(text[start:end], OUTSIDE) for start, end in places]
        found = [(places[first][0], places[behind - 1][1], label) for first, behind, label in spans_of_tags(tags)]
        spans.append([Span(start, end, label, text[start:end]) for start, end, label in found])
    return Outputs(spans=spans, seconds=time.perf_counter() - started)
