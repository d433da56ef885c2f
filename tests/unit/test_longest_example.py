"""How long an example may be: as long as the recipe says, where the model has positions for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import RecipeError
from tunesmith.models.load import load_config, longest_example


@pytest.mark.parametrize(("wanted", "found"), [(None, 64), (32, 32), (64, 64)])
def test_learned_positions_end(tiny_encoder: Path, wanted: Any, found: int) -> None:
    assert longest_example(tiny_encoder, load_config(tiny_encoder), wanted) == found


def test_more_than_the_model_has_positions_for_is_refused(tiny_encoder: Path) -> None:
    with pytest.raises(RecipeError, match="at most 64 tokens, and 65 are wanted") as caught:
        longest_example(tiny_encoder, load_config(tiny_encoder), 65)
    assert caught.value.where == "data.max_length"


def test_rotary_and_relative_positions_have_no_end(tiny_decoder: Path, tiny_t5: Path) -> None:
    assert longest_example(tiny_decoder, load_config(tiny_decoder), 5000) == 5000
    assert longest_example(tiny_t5, load_config(tiny_t5), 5000) == 5000
