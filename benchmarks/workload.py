"""What the contenders work on: tokenized conversations for the language model, labelled snippets for the encoder."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith import catalog
from tunesmith.data.render import ConversationRenderer
from tunesmith.disk import write_text
from tunesmith.models.load import load_tokenizer
from tunesmith.tasks import Message

SHORTEST, LONGEST = 50, 450
"""Tokens of a conversation, the template's included."""

Facts = dict[str, Any]


def write_conversations(
    model: Path, shared: Path, folder: Path, train_rows: int, held_out_rows: int
) -> tuple[Path, Path, Facts]:
    """Write `train.jsonl` and `held_out.jsonl` with ``input_ids`` and ``labels`` (-100 where no loss is).

    Equal parts of each source, as far as they reach; a text occurs once only.

    Returns:
        The two files, and what is in them.
    """
    renderer = ConversationRenderer(load_tokenizer(model), LONGEST + 1)
    wanted = train_rows + held_out_rows
    sources = {name: list(_fitting(renderer, pairs)) for name, pairs in _sources(shared).items()}
    chosen: list[dict[str, Any]] = []
    taken: dict[str, int] = {}
    smallest_first = sorted(sources.items(), key=lambda item: len(item[1]))
    for number, (name, rows) in enumerate(smallest_first):
        share = (wanted - len(chosen)) // (len(sources) - number)
        random.Random(0).shuffle(rows)
        chosen += rows[:share]
        taken[name] = len(rows[:share])
    if len(chosen) < wanted:
        raise SystemExit(f"{wanted} texts are wanted and {len(chosen)} were found")
    random.Random(1).shuffle(chosen)
    facts = {"sources": taken, "train": _describe(chosen[:train_rows]), "held_out": _describe(chosen[train_rows:])}
    return (
        _write_lines(folder / "train.jsonl", chosen[:train_rows]),
        _write_lines(folder / "held_out.jsonl", chosen[train_rows:]),
        facts,
    )


def write_snippets(shared: Path, folder: Path, train_rows: int, held_out_rows: int) -> tuple[Path, Path, Facts]:
    """Write `train.jsonl` and `held_out.jsonl` with ``text`` and ``label`` (0 or 1), half of each label.

    Returns:
        The two files, and what is in them.
    """
    source, by_label = _snippets(shared)
    train: list[dict[str, Any]] = []
    held_out: list[dict[str, Any]] = []
    for label, texts in enumerate(by_label):
        rows = [{"text": text, "label": label} for text in sorted(set(texts))]
        random.Random(label).shuffle(rows)
        train += rows[: train_rows // 2]
        held_out += rows[train_rows // 2 : (train_rows + held_out_rows) // 2]
    random.Random(2).shuffle(train)
    facts = {"sources": {source: len(train) + len(held_out)}, "train": len(train), "held_out": len(held_out)}
    return _write_lines(folder / "train.jsonl", train), _write_lines(folder / "held_out.jsonl", held_out), facts


def _sources(shared: Path) -> dict[str, Iterable[tuple[str, str]]]:
    if not shared.is_dir():
        files = catalog.data_files("python-docstrings") or []
        return {"python-docstrings": [(r["prompt"], r["completion"]) for file in files for r in _read_lines(file)]}
    instructions = [*_read_lines(shared / "self_instruct" / "seed_tasks.jsonl")]
    instructions += _read_lines(shared / "self_instruct" / "user_oriented_instructions.jsonl")
    return {
        "gsm8k": [(r["question"], r["answer"]) for r in _read_lines(shared / "gsm8k" / "train.jsonl")],
        "self_instruct": [
            (f"{row['instruction']}\n\n{instance['input']}".strip(), instance["output"])
            for row in instructions
            for instance in row["instances"][:1]
        ],
        "tldr_pages": [
            (f"{r['tool']}: {r['instruction']}", r["response"])
            for r in _read_lines(shared / "tldr_pages" / "tldr_en_pairs.jsonl")
        ],
    }


def _fitting(renderer: ConversationRenderer, pairs: Iterable[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Tokenize those of the right length, each text once; at most 6,000 of a source are looked at."""
    chosen = sorted({pair for pair in pairs if pair[0].strip() and pair[1].strip()})
    random.Random(3).shuffle(chosen)
    for prompt, answer in chosen[:6000]:
        turns: list[Message] = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        if len(prompt) + len(answer) > 10 * LONGEST:
            continue
        rendered = renderer(turns)
        assert rendered.loss_weights is not None
        if SHORTEST <= len(rendered.input_ids) <= LONGEST:
            labels = [
                token if weight else -100
                for token, weight in zip(rendered.input_ids, rendered.loss_weights, strict=True)
            ]
            yield {"input_ids": rendered.input_ids, "labels": labels}


def _snippets(shared: Path) -> tuple[str, tuple[list[str], list[str]]]:
    folder = shared / "sentence_polarity"
    if folder.is_dir():
        negative, positive = (
            (folder / f"rt-polarity.{part}").read_text(encoding="utf-8").splitlines() for part in ("neg", "pos")
        )
        return "sentence_polarity", (negative, positive)
    rows = [row for file in catalog.data_files("movie-ratings") or [] for row in _read_lines(file)]
    by_label = tuple([row["text"] for row in rows if row["label"] == label] for label in ("negative", "positive"))
    return "movie-ratings", (by_label[0], by_label[1])


def _describe(rows: list[dict[str, Any]]) -> Facts:
    lengths = np.asarray([len(row["input_ids"]) for row in rows])
    loss_tokens = sum(label != -100 for row in rows for label in row["labels"])
    return {
        "rows": len(rows),
        "tokens": int(lengths.sum()),
        "share_with_loss": round(loss_tokens / max(1, int(lengths.sum())), 3),
        "length_quantiles_0_25_50_75_100": [int(q) for q in np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1])],
    }


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path
