"""Losses on preferences and rewards against TRL, which ``benchmarks/peers/trl_losses.py`` ran on these tensors."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tunesmith.objectives import grpo
from tunesmith.objectives.grpo import GRPO
from tunesmith.objectives.kto import thumb_loss
from tunesmith.objectives.preference import Pairs, pair_loss
from tunesmith.objectives.returns import group_advantages
from tunesmith.recipe import KTOLoss, PreferenceLoss, RewardSource, Training

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "trl_losses.json").read_text(encoding="utf-8"))


def tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", GOLDEN["dpo"]["losses"])
def test_pair_losses(name: str) -> None:
    kind, beta, smoothing = name.split()
    policy, reference = (tensor(GOLDEN["dpo"][key]).sum(1) for key in ("policy", "reference"))
    sizes = tensor(GOLDEN["dpo"]["lengths"])
    pairs = Pairs(policy[:2], policy[2:], sizes[:2], sizes[2:], reference[:2], reference[2:])
    settings: dict[str, Any] = {"loss": kind, "beta": float(beta), "label_smoothing": float(smoothing)}
    if kind == "sigmoid_norm":
        settings |= {"loss": "sigmoid", "length_normalised": True}
    ours = pair_loss(pairs, PreferenceLoss(**settings))[0].mean()
    assert float(ours) == pytest.approx(GOLDEN["dpo"]["losses"][name], rel=1e-9)


@pytest.mark.parametrize("name", GOLDEN["kto"]["losses"])
def test_losses_of_thumbs(name: str) -> None:
    beta, desirable, undesirable, swap = name.split()
    given = {key: tensor(values) for key, values in GOLDEN["kto"].items() if key not in ("losses", "liked")}
    ratios, other = (
        (given[policy] - given[reference]).sum(1)
        for policy, reference in (("policy", "reference"), ("mismatched", "mismatched_reference"))
    )
    divergence = max(0.0, float((-other if swap == "True" else other).mean()))
    liked = torch.tensor(GOLDEN["kto"]["liked"])
    losses = thumb_loss(ratios, liked, divergence, KTOLoss(beta=float(beta)))
    ours = (losses * torch.where(liked, float(desirable), float(undesirable))).mean()
    assert float(ours) == pytest.approx(GOLDEN["kto"]["losses"][name], rel=1e-6)


@pytest.mark.parametrize("name", GOLDEN["grpo"]["losses"])
def test_group_relative_losses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, beta, low, high = name.split()
    policy, old, reference = (tensor(GOLDEN["grpo"][key]) for key in ("policy", "old", "reference"))
    inside = torch.arange(policy.shape[1])[None] < torch.tensor(GOLDEN["grpo"]["lengths"])[:, None]
    rows_N, columns_N = inside.nonzero(as_tuple=True)
    worth = group_advantages(np.asarray([GOLDEN["grpo"]["rewards"]]), scale=kind != "dr_grpo")[0]
    length = {"grpo": "sequence", "dapo": "token", "dr_grpo": "constant"}[kind]
    own = {"kl": float(beta), "clip": float(low), "clip_high": float(high), "length": length}
    rollouts = {"max_new_tokens": policy.shape[1]}
    objective = GRPO(Training(rewards=[RewardSource(kind="number")], grpo=own, rollouts=rollouts))  # type: ignore[arg-type]
    nats = SimpleNamespace(nats_N=-policy[rows_N, columns_N], entropy_N=torch.zeros(len(rows_N), dtype=torch.float64))
    monkeypatch.setattr(grpo, "token_nats", lambda *given: (nats, rows_N, columns_N))
    columns = {"old": old, "reference": reference, "advantage": tensor(worth)[:, None].expand_as(old)}
    found = objective.loss(None, SimpleNamespace(extra=columns, rows=list(range(4))))  # type: ignore[arg-type]
    assert float(found.total) / found.weight == pytest.approx(GOLDEN["grpo"]["losses"][name], rel=1e-6)
