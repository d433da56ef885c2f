"""What the model writes while it learns, as examples to learn from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from tunesmith.data.batches import collate, write_tokens
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
    data = write_tokens(
        [Row({"n": n}, Origin("prompts.jsonl", n + 1)) for n in range(2)],
        lambda row: Rendered(prompts[row.fields["n"]], [0.0] * len(prompts[row.fields["n"]])),
        tmp_path,
    )
    samples = write(model, data, [0, 1], group=1, max_new_tokens=12, temperature=1.0, seed="s")
    assert [len(sample.tokens) for sample in samples] == [2, 12]
