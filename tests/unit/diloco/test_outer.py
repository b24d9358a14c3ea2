"""Outer steps, compared bit by bit with arithmetic that numpy does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from pccl.base.errors import UsageError  # noqa: E402
from pccl.diloco.outer import Nesterov, mix  # noqa: E402


def randoms(seed: int, count: int, spread: float = 1.0) -> Any:
    return (np.random.default_rng(seed).standard_normal(count) * spread).astype(np.float32)


def reference(theta: Any, velocity: Any, mean: Any, rate: float, momentum: float) -> Any:
    """Algorithm 1 of the paper, each operation rounded once."""
    rate32, momentum32 = np.float32(rate), np.float32(momentum)
    velocity = velocity * momentum32 + mean
    return theta - rate32 * (velocity * momentum32 + mean), velocity


@given(st.integers(0, 2**32), st.integers(0, 300), st.sampled_from([1e-6, 1.0, 1e6]))
@settings(max_examples=40, deadline=None)
def test_ten_outer_steps_have_the_bits_of_the_formula(seed: int, count: int, spread: float) -> None:
    rule = Nesterov(learning_rate=0.7, momentum=0.9)
    theta, velocity = randoms(seed, count), np.zeros(count, np.float32)
    ours = torch.from_numpy(theta.copy()), torch.from_numpy(velocity.copy())
    for step in range(10):
        mean = randoms(seed + step + 1, count, spread)
        theta, velocity = reference(theta, velocity, mean, 0.7, 0.9)
        ours = rule.update(*ours, torch.from_numpy(mean.copy()))
    assert ours[0].numpy().tobytes() == theta.tobytes()
    assert ours[1].numpy().tobytes() == velocity.tobytes()


def test_an_update_changes_nothing_that_it_is_given() -> None:
    given_ = [torch.from_numpy(randoms(seed, 17)) for seed in range(3)]
    before = [tensor.clone() for tensor in given_]
    Nesterov().update(*given_)
    assert all(torch.equal(a, b) for a, b in zip(given_, before, strict=True))


def test_without_momentum_it_is_plain_descent_and_keeps_no_state() -> None:
    rule = Nesterov(learning_rate=0.5, momentum=0.0)
    nothing = torch.zeros(0)
    theta, velocity = rule.update(torch.tensor([4.0, 2.0]), nothing, torch.tensor([2.0, -2.0]))
    assert theta.tolist() == [3.0, 3.0] and velocity is nothing


def test_it_is_torchs_own_nesterov_up_to_rounding() -> None:
    theta = torch.from_numpy(randoms(1, 50))
    parameter = torch.nn.Parameter(theta.clone())
    theirs = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    ours = theta, torch.zeros(50)
    for step in range(6):
        mean = torch.from_numpy(randoms(step + 2, 50))
        parameter.grad = mean.clone()
        theirs.step()
        ours = Nesterov().update(*ours, mean)
    torch.testing.assert_close(ours[0], parameter.detach(), rtol=1e-5, atol=1e-5)


@given(st.integers(0, 2**32), st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_an_eager_peer_stands_where_the_papers_rule_would_have_it(seed: int, peers: int) -> None:
    """Δ_used = Δ_r^t/R + (Δ̄^(t−1) − Δ_r^(t−1)/R), put through the outer optimizer."""
    rng = np.random.default_rng(seed)
    rule = Nesterov()
    start = torch.from_numpy(rng.standard_normal(20)).double()
    shared = start, torch.zeros(20).double()
    paper = start, torch.zeros(20).double()
    ahead = torch.zeros(20).double()
    before = torch.zeros(peers, 20).double()
    for _ in range(5):
        deltas = torch.from_numpy(rng.standard_normal((peers, 20)))
        used = deltas[0] / peers + (before.mean(0) - before[0] / peers)
        paper = rule.update(*paper, used)
        shared = rule.update(*shared, before.mean(0))
        eager, ahead = rule.update(shared[0], ahead, deltas[0] / peers)
        torch.testing.assert_close(eager, paper[0], rtol=1e-12, atol=1e-12)
        before = deltas


def test_mixing_keeps_a_share_of_ones_own() -> None:
    local, shared = torch.tensor([4.0, 8.0]), torch.tensor([0.0, -8.0])
    assert mix(local, shared, 0.5).tolist() == [2.0, 0.0]
    assert mix(local, shared, 0.0).tolist() == shared.tolist()
    assert mix(local, shared, 1.0).tolist() == local.tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"momentum": 1.0},
        {"momentum": -0.1},
    ],
)
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Nesterov(**wrong)
