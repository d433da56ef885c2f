"""What the model writes while it learns, as examples to learn from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from tunesmith.data.batches import TokenFile, collate, write_tokens
from tunesmith.data.render import Rendered
from tunesmith.data.rows import Origin, Row
from tunesmith.objectives import rollouts
from tunesmith.objectives.rollouts import Sample, aligned, to_examples, write
from tunesmith.recipe import LoRA, Training


def test_an_answer_of_one_token_keeps_its_columns(tmp_path: Path) -> None:
    row = Row({}, Origin("prompts.jsonl", 1))
    samples = [Sample(row, [5, 6, 7], [9], True, ""), Sample(row, [5], [8, 9], True, "")]
    data = to_examples(samples, tmp_path, [{"advantage": [-1.5]}, {"advantage": [0.25, 0.5]}])
    batch = collate(data, [0, 1], 0)
    assert batch.loss_weights is not None
    rows_N, columns_N = batch.loss_weights.nonzero(as_tuple=True)
    assert aligned(batch.extra["advantage"], rows_N, columns_N).tolist() == [-1.5, 0.25, 0.5]


@pytest.mark.parametrize("running_batch", [True, False])
def test_a_long_prompt_takes_no_room_from_the_others(
    running_batch: bool, tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not running_batch:
        monkeypatch.setattr(rollouts, "unsupported", lambda model: "in this test")
    model = tiny.build(tiny_decoder, "generate", LoRA(rank=4), Training(), dtype=torch.float32)
    model = replace(model, max_length=40, eos_ids=())  # without an end every answer fills its room
    prompts = [[5] * 38, [6] * 10]
    samples = write(model, prompts_of(tmp_path, prompts), [0, 1], group=1, max_new_tokens=12, temperature=1.0, seed="s")
    assert [len(sample.tokens) for sample in samples] == [2, 12]


def prompts_of(folder: Path, prompts: list[list[int]]) -> TokenFile:
    rows = [Row({"n": n}, Origin("prompts.jsonl", n + 1)) for n in range(len(prompts))]
    return write_tokens(
        rows, lambda row: Rendered(prompts[row.fields["n"]], [0.0] * len(prompts[row.fields["n"]])), folder
    )


def test_the_end_that_was_drawn_is_learned_from(tiny_decoder: Path, tmp_path: Path) -> None:
    """Of several tokens that end answers, not always the first."""
    model = tiny.build(tiny_decoder, "generate", LoRA(rank=4), Training(), dtype=torch.float32)
    data = prompts_of(tmp_path, [[5] * 8, [6] * 10, [7, 9, 30], [40, 41]])
    asked = {"group": 4, "max_new_tokens": 1, "temperature": 1.0, "seed": "s"}
    drawn = write(replace(model, eos_ids=()), data, [0, 1, 2, 3], **asked)
    ended = write(replace(model, eos_ids=list(range(len(model.tokenizer)))), data, [0, 1, 2, 3], **asked)
    assert len({sample.tokens[0] for sample in drawn}) > 4
    assert [sample.tokens for sample in ended] == [sample.tokens for sample in drawn]
    assert all(sample.finished for sample in ended) and not any(sample.finished for sample in drawn)


@pytest.mark.parametrize("init", ["default", "pissa", "olora", "orthogonal"])
def test_the_reference_is_the_model_as_it_was(init: Any, tiny_decoder: Path, tmp_path: Path) -> None:
    model = tiny.build(tiny_decoder, "generate", LoRA(rank=4, init=init), Training(), dtype=torch.float32)
    samples = [Sample(Row({}, Origin("p.jsonl", n)), [5, 6, 7 + n], [9, 10], True, "") for n in range(3)]
    data = to_examples(samples, tmp_path, [{} for _ in samples])
    reference, before = rollouts.Reference(model), rollouts.log_likelihoods(model, data, 1.0)
    with torch.no_grad():
        for _, weight in model.trainable():
            weight.add_(0.3)
    with reference.of(model) as first:
        found = rollouts.log_likelihoods(first, data, 1.0)
    np.testing.assert_allclose(np.stack(found), np.stack(before), atol=1e-5)
    assert np.abs(np.stack(rollouts.log_likelihoods(model, data, 1.0)) - np.stack(before)).max() > 1e-3
