"""SparseLoCo's residual and mean; the codes below them have tests of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from pccl.base.errors import UsageError  # noqa: E402
from pccl.diloco.compression import ModelCode, Settings  # noqa: E402


def randoms(seed: int, count: int) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(count).astype(np.float32))


def test_a_contribution_of_matrices_is_200_times_smaller_than_f32() -> None:
    code = ModelCode([(1024, 384), (128, 1024)], Settings())
    assert code.size * 4 / code.encoded_bytes >= 200


def test_a_contribution_of_another_size_is_refused() -> None:
    code = ModelCode([(64, 64)], Settings())
    with pytest.raises(ValueError, match="expected"):
        code.decode(np.zeros(code.encoded_bytes - 1, np.uint8))


# ---- residual and mean


def test_the_residual_is_what_was_not_sent() -> None:
    code = ModelCode([(64, 128), (64,)], Settings(decay=0.95, learning_rate=0.5))
    residual, delta = randoms(1, code.size), randoms(2, code.size)
    before = residual.clone(), delta.clone()
    data, after = code.compress(residual, delta)
    accumulated = residual.numpy() * np.float32(0.95) + delta.numpy() * np.float32(0.5)
    assert (after.numpy() == accumulated - code.dense(code.decode(data)).numpy()).all()
    assert torch.equal(residual, before[0]) and torch.equal(delta, before[1])


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_whole_numbers_are_neither_lost_nor_made(seed: int) -> None:
    """Sent and residual together are what was produced, over many steps, exactly."""
    code = ModelCode([(64, 64), (30,)], Settings(top_k=8, value_bits=32, decay=1.0))
    rng = np.random.default_rng(seed)
    residual, sent, produced = (torch.zeros(code.size) for _ in range(3))
    for _ in range(6):
        delta = torch.from_numpy(rng.integers(-50, 51, code.size).astype(np.float32))
        data, residual = code.compress(residual, delta)
        sent += code.dense(code.decode(data))
        produced += delta
    assert torch.equal(sent + residual, produced)


def test_an_element_is_averaged_over_those_who_sent_it_by_weight() -> None:
    code = ModelCode([(64, 64)], Settings(top_k=2, value_bits=32))
    first, second, third = (torch.zeros(4096) for _ in range(3))
    first[:2] = torch.tensor([8.0, 4.0])
    second[1:3] = torch.tensor([16.0, 2.0])
    third[:2] = 1000.0  # has no tokens
    mean = code.mean([code.encode(x) for x in (first, second, third)], [100.0, 300.0, 0.0])
    assert mean[:4].tolist() == [8.0, 13.0, 2.0, 0.0]
    assert float(mean.abs().sum()) == 23.0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"top_k": 0}, "top_k"),
        ({"value_bits": 3}, "value_bits"),
        ({"decay": 1.5}, "decay"),
        ({"learning_rate": -1.0}, "learning_rate"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Settings(**wrong)
