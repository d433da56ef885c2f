"""Rows that hold several texts give each text the hidden states it has alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from tunesmith.data.batches import collate, write_tokens
from tunesmith.data.render import Rendered
from tunesmith.models.visibility import allowed, positions


def test_who_sees_whom_in_a_case_by_hand() -> None:
    segments = torch.tensor([[0, 0, 1, 1, 2, -1]])
    seen = allowed(segments)[0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert positions(allowed(segments)).tolist() == [[0, 1, 2, 3, 2, 0]]


@pytest.mark.parametrize("trunk", [[], [5, 9, 7]], ids=["packed documents", "a shared prompt"])
def test_packed_texts_have_the_states_that_they_have_alone(
    tiny_decoder: Path, tmp_path: Path, trunk: list[int]
) -> None:
    model = tiny.build(tiny_decoder, "generate")
    model.network.eval()
    texts = [[11, 12, 13, 14], [21, 22], [31, 32, 33]]
    packed = trunk + [token for text in texts for token in text]
    segments = [0] * len(trunk) + [number for number, text in enumerate(texts, 1) for _ in text]
    examples = [
        Rendered(packed, [1.0] * len(packed), extra={"segments": segments}),
        Rendered([8], [1.0], extra={"segments": [1]}),
    ]
    data = write_tokens(tiny.rows_of([{"n": 0}, {"n": 1}]), lambda row: examples[row.fields["n"]], tmp_path)
    with torch.no_grad():
        together = model.hidden_states(collate(data, [0, 1], model.pad_id, 16))[0]
        start = len(trunk)
        for text in texts:
            alone_data = write_tokens(
                tiny.rows_of([{}]), lambda row, text=text: Rendered(trunk + text, [1.0] * 9), tmp_path / "alone"
            )
            alone = model.hidden_states(collate(alone_data, [0], model.pad_id))[0, len(trunk) :]
            torch.testing.assert_close(together[start : start + len(text)], alone, rtol=1e-10, atol=1e-12)
            start += len(text)
