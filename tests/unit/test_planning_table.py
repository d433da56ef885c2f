"""The table of what trains, and that every kind can be counted without weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from tunesmith.models.load import load_config, load_tokenizer
from tunesmith.models.skeleton import skeleton
from tunesmith.parameters.settings import Parameters
from tunesmith.planning.shape import shape_of
from tunesmith.planning.table import Part, parts_of
from tunesmith.recipe import Adapter, Full, Layers, LoRA, Prompt

KINDS: dict[str, Parameters] = {
    "full": Full(),
    "layers": Layers(layers=["1", "head"]),
    "lora": LoRA(rank=4),
    "pissa": LoRA(rank=4, init="pissa"),
    "dora": LoRA(rank=4, dora=True),
    "qlora": LoRA(rank=4, quantization="int4"),
    "ia3": Adapter(kind="ia3"),
    "vera": Adapter(kind="vera", rank=16),
    "oft": Adapter(kind="oft", rank=8),
    "lokr": Adapter(kind="lokr"),
    "randlora": Adapter(kind="randlora", rank=4),
    "road": Adapter(kind="road", rank=16),
    "prompt-tuning": Prompt(kind="prompt-tuning", tokens=4),
    "prefix-tuning": Prompt(kind="prefix-tuning", tokens=4),
    "p-tuning": Prompt(kind="p-tuning", tokens=4),
}


def test_the_parts_stand_in_order_and_equal_layers_share_a_row(tiny_bert: Path) -> None:
    parts = parts_of(tiny.build(tiny_bert, "classify", Layers(layers="last 1")))
    assert [part.module for part in parts] == ["embeddings", "layers 0", "layers 1", "pooler", "classifier"]
    assert [part.trainable > 0 for part in parts] == [False, False, True, False, True]
    lora = tiny.build(tiny_bert, "classify", LoRA(rank=2))
    rows = parts_of(lora)
    assert [part.module for part in rows] == ["embeddings", "layers 0-1", "pooler", "classifier"]
    assert sum(part.total for part in rows) == lora.total_parameters
    assert sum(part.trainable for part in rows) == lora.trainable_parameters


def test_a_decoder_with_tied_embeddings_counts_them_once(tiny_decoder: Path) -> None:
    model = tiny.build(tiny_decoder, "generate")
    rows = parts_of(model)
    assert rows[0] == Part("embed_tokens", 32 * len(model.tokenizer), 32 * len(model.tokenizer))
    assert sum(part.total for part in rows) == model.total_parameters
    assert [part.module for part in rows] == ["embed_tokens", "layers 0-1", "norm"]


@pytest.mark.parametrize("name", KINDS)
def test_a_network_without_weights_has_the_same_parameters(tiny_decoder: Path, name: str) -> None:
    config = load_config(tiny_decoder)
    counted = skeleton(tiny_decoder, config, load_tokenizer(tiny_decoder), "generate", None, KINDS[name])
    model = tiny.build(tiny_decoder, "generate", KINDS[name], dtype=torch.float32)
    assert counted.trainable_parameters == model.trainable_parameters
    assert counted.total_parameters == model.total_parameters
    added = shape_of(counted, config).adapter_weights
    assert added == (model.trainable_parameters if model.has_adapters else 0)
