"""Divergences against written-out cases, and what is kept of a distribution against the whole of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny import build, documents, gradients
from tunesmith import objectives
from tunesmith.data.batches import TokenFile, collate
from tunesmith.events import nobody
from tunesmith.models.model import Model
from tunesmith.objectives.distill import Distill
from tunesmith.objectives.divergence import Drawn, TopK, Whole, divergence, summed
from tunesmith.recipe import Training

P = [0.7, 0.2, 0.1]
Q = [0.5, 0.25, 0.25]


def kl(a: list[float], b: list[float]) -> float:
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))


def logs(values: list[float]) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64).log()


def test_the_forward_divergence_is_written_out() -> None:
    assert divergence(logs(Q), logs(P), "forward-kl").item() == pytest.approx(kl(P, Q))


def test_the_reverse_divergence_is_written_out() -> None:
    assert divergence(logs(Q), logs(P), "reverse-kl").item() == pytest.approx(kl(Q, P))


@pytest.mark.parametrize("beta", [0.5, 0.1, 0.9])
def test_jensen_shannon_is_written_out(beta: float) -> None:
    mixed = [beta * p + (1 - beta) * q for p, q in zip(P, Q, strict=True)]
    expected = beta * kl(P, mixed) + (1 - beta) * kl(Q, mixed)
    assert divergence(logs(Q), logs(P), "jensen-shannon", beta).item() == pytest.approx(expected)


def test_jensen_shannon_tends_to_the_forward_divergence() -> None:
    small = 1e-5
    near = divergence(logs(Q), logs(P), "jensen-shannon", small).item() / small
    assert near == pytest.approx(kl(P, Q), rel=1e-3)


@pytest.fixture
def scores() -> tuple[torch.Tensor, torch.Tensor]:
    """Of a student and a teacher at 40 places of 9 words."""
    random = torch.Generator().manual_seed(0)
    return tuple(2 * torch.randn(40, 9, generator=random, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


ALL = slice(None)


@pytest.mark.parametrize("kind", ["forward-kl", "reverse-kl", "jensen-shannon"])
def test_top_k_of_all_words_is_the_whole_distribution(kind: str, scores: tuple[torch.Tensor, torch.Tensor]) -> None:
    student, teacher = scores
    whole = Whole(lambda part: teacher[part], kind, 0.5, 2.0).distance(student, ALL)
    log_p = torch.log_softmax(teacher / 2.0, -1)
    top = log_p.topk(9)
    kept = TopK(top.indices, top.values, kind, 0.5, 2.0).distance(student, ALL)
    torch.testing.assert_close(kept, whole, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["forward-kl", "reverse-kl", "jensen-shannon"])
def test_top_k_takes_the_tail_for_one_word(kind: str, scores: tuple[torch.Tensor, torch.Tensor]) -> None:
    student, teacher = scores
    log_p, log_q = torch.log_softmax(teacher, -1), torch.log_softmax(student, -1)
    top = log_p.topk(3)
    kept = TopK(top.indices, top.values, kind, 0.5, 1.0).distance(student, ALL)
    p, q = top.values.exp(), log_q.gather(1, top.indices).exp()
    p, q = (torch.cat([part, 1 - part.sum(-1, keepdim=True)], -1) for part in (p, q))
    torch.testing.assert_close(kept, divergence(q.log(), p.log(), kind))
    assert (kept <= divergence(log_q, log_p, kind) + 1e-9).all()  # merging words loses information, never adds any


def test_drawn_words_estimate_the_whole_divergence_without_bias(scores: tuple[torch.Tensor, torch.Tensor]) -> None:
    student, teacher = scores
    student = student.requires_grad_()
    whole = Whole(lambda part: teacher[part], "forward-kl", 0.5, 2.0).distance(student, ALL)
    (wanted,) = torch.autograd.grad(whole.sum(), student)
    p = torch.softmax(teacher / 2.0, -1)
    entropy = -(p * p.log()).sum(-1)
    draws = 40_000
    ids = torch.multinomial(p, draws, replacement=True, generator=torch.Generator().manual_seed(1))
    found = Drawn(ids, entropy, 2.0).distance(student, ALL)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    torch.testing.assert_close(found, whole.detach(), atol=0.03, rtol=0)  # 5 standard errors of 40,000 draws
    torch.testing.assert_close(gradient, wanted, atol=0.01, rtol=0)


def test_few_drawn_words_are_right_on_the_average_where_the_likeliest_are_not(
    scores: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """The gradient of three drawn words, averaged over many draws, is the whole's; that of the top three is another."""
    student, teacher = scores
    student = student.requires_grad_()
    log_p = torch.log_softmax(teacher, -1)
    whole = Whole(lambda part: teacher[part], "forward-kl", 0.5, 1.0).distance(student, ALL)
    (wanted,) = torch.autograd.grad(whole.sum(), student)
    random, mean = torch.Generator().manual_seed(2), torch.zeros_like(wanted)
    for _ in range(800):
        ids = torch.multinomial(log_p.exp(), 3, replacement=True, generator=random)
        (one,) = torch.autograd.grad(Drawn(ids, torch.zeros(40), 1.0).distance(student, ALL).sum(), student)
        mean += one / 800
    assert (mean - wanted).abs().max() < 0.06
    top = log_p.topk(3)
    values = top.values - torch.logsumexp(top.values, -1, keepdim=True)  # plain top-k: scaled to add up to 1
    plain = -(values.exp() * torch.log_softmax(student, -1).gather(1, top.indices)).sum()
    (biased,) = torch.autograd.grad(plain, student)
    assert (biased - wanted).abs().max() > 0.1


def test_chunks_give_the_loss_and_gradients_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.objectives.cross_entropy.CHUNK_SCORES", 5 * 11)
    random = torch.Generator().manual_seed(0)
    hidden, weight, teacher = (
        torch.randn(*shape, generator=random, dtype=torch.float64) for shape in ((17, 6), (11, 6), (17, 11))
    )
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    target = Whole(lambda part: teacher[part], "jensen-shannon", 0.3, 1.5)

    def loss_of(scores: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        found = target.distance(scores, part)
        return found.sum(), torch.stack([found.sum(), found.square().sum()])

    total, sums = summed(hidden, weight, loss_of)
    got = torch.autograd.grad(2 * total, [hidden, weight])
    whole, whole_sums = loss_of(hidden @ weight.T, ALL)
    expected = torch.autograd.grad(2 * whole, [hidden, weight])
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(sums, whole_sums.detach())
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


# --- the objective on a model -------------------------------------------------------------

TEXTS = ["the film was great and the plot was fine", "what is the capital of france", "a dull movie"]


def started(model: Model, folder: Path, teacher: Path, **distillation: object) -> tuple[Distill, TokenFile]:
    settings = Training(distillation={"teacher": str(teacher), **distillation})  # type: ignore[arg-type]
    data = documents(model, TEXTS, folder / "tokens")
    objective = objectives.make("distill", settings)
    assert isinstance(objective, Distill)
    objective.start(model, [data], folder / "files", nobody)
    return objective, data


@pytest.fixture
def teacher(tiny_decoder: Path, tmp_path: Path) -> Path:
    """Another model of the same tokens: one whose weights are larger."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
    network.save_pretrained(tmp_path / "teacher")
    AutoTokenizer.from_pretrained(tiny_decoder).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def test_the_loss_of_text_is_written_out(tiny_decoder: Path, teacher: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = build(tiny_decoder, "generate")
    objective, data = started(model, tmp_path, teacher, label_weight=0.3, temperature=2.0)
    batch = collate(data, [0, 1, 2], model.pad_id)
    found = objective.loss(model, batch)
    found.total.backward()
    got = gradients(model)
    model.network.zero_grad()
    theirs = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for row in range(3):
        ids = torch.tensor([data.tokens(row).tolist()])
        ours = model.network(input_ids=ids).logits[0, :-1]
        with torch.no_grad():
            other = theirs(input_ids=ids).logits[0, :-1]
        p, log_q = torch.softmax(other / 2, -1), torch.log_softmax(ours / 2, -1)
        total = total + 0.7 * 4 * (p * (p.log() - log_q)).sum()
        total = total + 0.3 * torch.nn.functional.cross_entropy(ours, ids[0, 1:], reduction="sum")
    total.backward()
    torch.testing.assert_close(found.total.detach(), total.detach())
    assert found.weight == sum(len(data.tokens(row)) - 1 for row in range(3))
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(got[name], gradient)


def test_what_was_kept_of_the_teacher_gives_the_loss_of_the_whole(
    tiny_decoder: Path, teacher: Path, tmp_path: Path
) -> None:
    """All words kept is the whole; many drawn ones come near it, row by row whatever the batch."""
    model = build(tiny_decoder, "generate")
    whole, data = started(model, tmp_path / "off", teacher)
    size = len(model.tokenizer)
    losses = {}
    for cache, words in (("top-k", size), ("sampled", 4000)):
        kept, other = started(model, tmp_path / cache, teacher, cache=cache, kept_tokens=words)
        assert kept.teacher is None, "a teacher that was asked about everything need not stay in memory"
        losses[cache] = [
            float(kept.loss(model, collate(other, [row], model.pad_id)).total.detach()) for row in range(3)
        ]
        together = kept.loss(model, collate(other, [2, 0, 1], model.pad_id)).total.detach()
        assert float(together) == pytest.approx(sum(losses[cache]))
    expected = [float(whole.loss(model, collate(data, [row], model.pad_id)).total.detach()) for row in range(3)]
    np.testing.assert_allclose(losses["top-k"], expected, rtol=1e-4)
    np.testing.assert_allclose(losses["sampled"], expected, rtol=0.05)


# --- layers -------------------------------------------------------------------------------


def test_layers_are_compared_as_written_out(tiny_encoder: Path, tmp_path: Path) -> None:
    """Hidden states through a projection, attention scores before the softmax, padding left out of account."""
    from tunesmith.models.cutting import cut
    from tunesmith.models.settings import Student
    from tunesmith.objectives.layers import Layers

    teacher = build(tiny_encoder, "classify")
    student = build(cut(tiny_encoder, Student(layers=1)), "classify")
    with torch.no_grad():
        for parameter in student.network.parameters():
            parameter.mul_(1.5)
    layers = Layers(student, teacher, hidden_weight=2.0, attention_weight=0.5, seed=0)
    assert layers.pairs == [(0, 1)], "the last layer of one learns from the last of the other"
    ids = torch.tensor([[2, 9, 10, 11, 3], [2, 12, 3, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    inputs = {"input_ids": ids, "attention_mask": mask}
    with layers.watching(student) as ours, torch.no_grad():
        student.network(**inputs)
    with layers.watching(teacher) as theirs, torch.no_grad():
        teacher.network(**inputs)
    found = layers.distance(student, ours, theirs, mask)

    def inside(model: Model, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        encoder = model.network.encoder
        states = encoder(**inputs, output_hidden_states=True).hidden_states
        attention = encoder.encoder.layer[layer].attention.self
        query, key = (part(states[layer]).view(2, 5, 4, 8).transpose(1, 2) for part in (attention.query, attention.key))
        return states[layer + 1], query @ key.transpose(-1, -2) / 8**0.5

    with torch.no_grad():
        (state, scores), (other_state, other_scores) = inside(student, 0), inside(teacher, 1)
    for row, size in enumerate((5, 3)):
        hidden = (state - other_state)[row, :size].square().mean()
        attention = (scores - other_scores)[row, :, :size, :size].square().mean()
        assert float(found[row]) == pytest.approx(float(2.0 * hidden + 0.5 * attention), rel=1e-4)
