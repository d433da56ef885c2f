"""The arithmetic of reinforcement, in cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tunesmith.objectives.returns import (
    advantages_and_returns,
    clipped_policy_loss,
    explained_variance,
    group_advantages,
    kl_estimate,
    leave_one_out,
    whiten,
)


def test_generalised_advantages() -> None:
    # delta_2 = 1 - 0.5 = 0.5; delta_1 = 0 + 0.9 * 0.5 - 0.2 = 0.25; A_1 = 0.25 + 0.9 * 0.8 * 0.5 = 0.61
    advantages, returns = advantages_and_returns(np.array([0.0, 1.0]), np.array([0.2, 0.5]), gamma=0.9, lam=0.8)
    assert advantages == pytest.approx([0.61, 0.5])
    assert returns == pytest.approx([0.81, 1.0])


def test_without_discount_the_return_is_the_sum_of_what_comes() -> None:
    advantages, returns = advantages_and_returns(np.array([1.0, -2.0, 4.0]), np.zeros(3), gamma=1.0, lam=1.0)
    assert returns == pytest.approx([3.0, 2.0, 4.0]) and advantages == pytest.approx(returns)


def test_estimators_of_the_divergence() -> None:
    ratio = torch.tensor([0.5, -0.5])
    assert kl_estimate(ratio, "k1").tolist() == [0.5, -0.5]
    assert kl_estimate(ratio, "k2").tolist() == [0.125, 0.125]
    assert kl_estimate(ratio, "k3").tolist() == pytest.approx([math.exp(-0.5) - 0.5, math.exp(0.5) - 1.5])


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased_estimators_have_the_divergence_as_their_mean(estimator: str) -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.3, 0.3, 0.4]).double()
    exact = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * kl_estimate((p / q).log(), estimator)).sum(), exact)  # type: ignore[arg-type]


def test_advantages_in_a_group() -> None:
    values = np.array([[1.0, 3.0], [2.0, 2.0]])
    assert group_advantages(values, scale=False) == pytest.approx(np.array([[-1, 1], [0, 0]]))
    deviation = math.sqrt(2)  # of 1 and 3, over G - 1
    assert group_advantages(values)[0] == pytest.approx(np.array([-1, 1]) / (deviation + 1e-4))
    assert leave_one_out(np.array([[1.0, 2.0, 6.0]]))[0] == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5])


def test_the_clip_is_pessimistic() -> None:
    ratios, advantages = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.0]), torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    loss, clipped = clipped_policy_loss(ratios.log(), advantages, 0.2, 0.3)
    assert loss.tolist() == pytest.approx([-1.3, 1.5, -0.5, 0.8, -2.0])
    assert clipped.tolist() == [True, False, False, True, False]


def test_whitening_and_explained_variance() -> None:
    values = np.array([1.0, 2.0, 3.0])
    assert whiten(values).mean() == pytest.approx(0) and whiten(values).std() == pytest.approx(1)
    assert whiten(values, shift=False).mean() == pytest.approx(2.0)
    assert explained_variance(values, values) == 1.0
    assert explained_variance(np.full(3, 9.0), values) == 0.0
    assert explained_variance(-values, values) == pytest.approx(-3.0)
