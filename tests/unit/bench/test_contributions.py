"""The checks that decide whether a measured library computed anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pccl.bench.contributions import (
    BLOCK,
    PERIOD,
    WORLD_MAX,
    contribution,
    expected,
    fill,
    first_difference,
)

OPS = ("sum", "avg", "prod", "min", "max")
COUNT = 2 * BLOCK + 17


def reduced(op: str, world: int) -> Any:
    """The right result, reached without `expected`."""
    parts = np.ones((world, COUNT), np.float32)
    for rank in range(world):
        fill(parts[rank], op, rank, world)
    match op:
        case "sum":
            return parts.sum(axis=0)
        case "avg":
            return parts.mean(axis=0)
        case "prod":
            return parts.prod(axis=0)
        case "min":
            return parts.min(axis=0)
        case _:
            return parts.max(axis=0)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_a_right_result_passes(op: str, world: int) -> None:
    epsilon = float(np.finfo(np.float32).eps)
    assert first_difference(reduced(op, world), op, world, epsilon) is None


def test_one_wrong_element_is_named() -> None:
    result = reduced("sum", 4)
    result[BLOCK + 3] += 1
    text = first_difference(result, "sum", 4, 0.0)
    assert text is not None and text.startswith(f"element {BLOCK + 3} of {COUNT} ")
    assert "; 1 of " in text


@pytest.mark.parametrize("shift", [1, 4096, 65536])
@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_a_displaced_piece_shows(shift: int, world: int) -> None:
    assert shift % PERIOD
    result = np.roll(reduced("sum", world), shift)
    assert first_difference(result, "sum", world, 0.0) is not None


@pytest.mark.parametrize("world", [2, 3, 8])
def test_a_rank_left_out_or_counted_twice_shows(world: int) -> None:
    for rank in range(1, world):
        own = np.resize(contribution("sum", rank, world), COUNT)
        assert first_difference(reduced("sum", world) - own, "sum", world, 0.0) is not None
        assert first_difference(reduced("sum", world) + own, "sum", world, 0.0) is not None


def test_not_a_number_is_never_right() -> None:
    result = reduced("avg", 2)
    result[5] = np.nan
    assert first_difference(result, "avg", 2, 1e-7) is not None


@pytest.mark.parametrize("op", ["sum", "prod", "min", "max"])
def test_results_fit_the_narrowest_types_in_the_largest_world(op: str) -> None:
    largest = expected(op, WORLD_MAX).max()
    assert largest <= np.iinfo(np.int8).max
