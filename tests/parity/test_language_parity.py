"""Language objectives against transformers' own losses, packed rows against rows of one document, and bits by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from conftest import sentences
from tunesmith import objectives
from tunesmith.data.batches import collate
from tunesmith.models.model import Model
from tunesmith.objectives.language import KEPT, CausalLM, MaskedLM
from tunesmith.prediction.likelihood import score_documents
from tunesmith.recipe import Training
from tunesmith.tasks import TASKS

TEXTS = sentences(12, seed=3)


@pytest.fixture(scope="module")
def decoder(tiny_decoder: Path) -> Model:
    return tiny.build(tiny_decoder, "generate")


@pytest.fixture(scope="module")
def filler(tiny_bert: Path) -> Model:
    return tiny.build(tiny_bert, "mask", training=Training(dropout=0.0))


def test_the_causal_loss_is_that_of_transformers(decoder: Model, tmp_path: Path) -> None:
    batch = collate(tiny.documents(decoder, TEXTS, tmp_path), range(len(TEXTS)), decoder.pad_id, 16)
    found = objectives.make("causal-lm", Training()).loss(decoder, batch)
    labels = batch.input_ids.masked_fill(~batch.attention_mask, -100)
    network: Any = decoder.network
    theirs = network(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
    assert found.weight == (labels[:, 1:] != -100).sum()
    assert found.total.item() / found.weight == pytest.approx(theirs.item(), rel=1e-6)  # theirs is computed in fp32


@pytest.mark.parametrize("whole_words", [False, True])
def test_the_masked_loss_is_that_of_transformers(filler: Model, tmp_path: Path, whole_words: bool) -> None:
    batch = collate(tiny.documents(filler, TEXTS, tmp_path), range(len(TEXTS)), filler.pad_id, 16, epoch=0)
    objective = MaskedLM(Training(whole_words=whole_words))
    found = objective.loss(filler, batch)
    hidden, targets = objective._hide(filler, batch)
    network: Any = filler.network
    theirs = network(
        input_ids=hidden.input_ids,
        attention_mask=batch.attention_mask,
        labels=targets.masked_fill(targets == KEPT, -100),
    ).loss
    assert found.total.item() / found.weight == pytest.approx(theirs.item(), rel=1e-10)
    assert torch.equal(objective._hide(filler, batch)[1], targets), "the batch itself stays as it was"


@pytest.mark.parametrize("attention", ["tunesmith", "sdpa"])
def test_packed_documents_do_not_see_each_other(tiny_decoder: Path, tmp_path: Path, attention: str) -> None:
    model = tiny.build(tiny_decoder, "generate")
    network: Any = model.network
    network.set_attn_implementation(attention)
    model.max_length, model.packable_length = 48, 0
    alone = tiny.documents(model, TEXTS, tmp_path / "alone")
    packed = tiny.documents(model, TEXTS, tmp_path / "packed", packing=True)
    assert len(packed) < len(alone) and packed.total_tokens == alone.total_tokens
    states = []
    for data in (alone, packed):
        batch = collate(data, range(len(data)), model.pad_id, 16)
        states.append(model.hidden_states(batch)[batch.attention_mask])
    torch.testing.assert_close(states[0], states[1], rtol=1e-9, atol=1e-12)
    sums = [
        CausalLM(Training()).loss(model, collate(data, range(len(data)), model.pad_id, 16)) for data in (alone, packed)
    ]
    assert sums[0].weight == sums[1].weight
    torch.testing.assert_close(sums[0].total, sums[1].total, rtol=1e-10, atol=0)


def test_bits_of_a_document_are_those_of_its_tokens(decoder: Model) -> None:
    """Behind the token that opens documents, without the EOS that ends them."""
    rows = tiny.rows_of([{"text": text} for text in TEXTS[:3]])
    outputs = score_documents(decoder, rows, TASKS["language-modeling"])
    assert outputs.nats is not None and outputs.tokens is not None and outputs.reference_bytes is not None
    network: Any = decoder.network
    for number, text in enumerate(TEXTS[:3]):
        ids = [decoder.tokenizer.bos_token_id, *decoder.tokenizer(text, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            logits = network(input_ids=torch.tensor([ids])).logits[0, :-1]
        expected = -torch.log_softmax(logits, -1)[range(len(ids) - 1), ids[1:]].sum()
        assert math.isclose(outputs.nats[number], float(expected), rel_tol=1e-10)
        assert (outputs.tokens[number], outputs.reference_bytes[number]) == (len(ids) - 1, len(text.encode()))


def test_windows_over_a_long_document_show_each_token_half_a_window(decoder: Model) -> None:
    text = " ".join(sentences(40, seed=5))
    rows = tiny.rows_of([{"text": text}])
    whole = score_documents(decoder, rows, TASKS["language-modeling"])
    short = tiny.build(decoder.folder, "generate")
    short.max_length = 32
    cut = score_documents(short, rows, TASKS["language-modeling"])
    assert whole.tokens is not None and cut.tokens is not None and whole.nats is not None and cut.nats is not None
    assert whole.tokens[0] == cut.tokens[0] > 200
    assert whole.nats[0] != cut.nats[0]
    np.testing.assert_allclose(cut.nats, whole.nats, rtol=0.02)


def test_packing_leaves_gradients_as_they_are(tiny_decoder: Path, tmp_path: Path) -> None:
    found = []
    for packing in (False, True):
        model = tiny.build(tiny_decoder, "generate")
        model.max_length = 48
        data = tiny.documents(model, TEXTS, tmp_path / str(packing), packing=packing)
        CausalLM(Training()).loss(model, collate(data, range(len(data)), model.pad_id)).total.backward()
        found.append(tiny.gradients(model))
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-8, atol=1e-10)
