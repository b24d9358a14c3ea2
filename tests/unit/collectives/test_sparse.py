"""Top-k and the index code against numpy; and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pccl.base.errors import RemoteError, UsageError
from pccl.collectives.sparse import TopK

SHAPES = [TopK(), TopK(64, 1), TopK(100, 7), TopK(4096, 4096), TopK(65536, 600)]


def drawn(kind: str, count: int) -> Any:
    rng = np.random.default_rng(count)
    match kind:
        case "ties":
            return rng.integers(-3, 4, count).astype(np.float32)
        case "not a number":
            return np.where(rng.random(count) < 0.03, np.nan, rng.random(count)).astype(np.float32)
        case _:
            return rng.standard_t(2, count).astype(np.float32)


def by_sorting(top: TopK, array: Any) -> Any:
    places = []
    for first in range(0, len(array), top.block):
        magnitude = np.abs(array[first : first + top.block])
        key = np.where(np.isnan(magnitude), np.inf, magnitude).astype(np.float64)
        key[np.isnan(magnitude)] = np.finfo(np.float64).max  # above every f32 but infinity
        key[np.isinf(magnitude)] = np.finfo(np.float64).max / 2
        places.append(np.sort(np.argsort(-key, kind="stable")[: top.k]))
    return np.concatenate([np.empty(0, int), *places]).astype(np.uint16)


@pytest.mark.parametrize("top", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["heavy", "ties", "not a number"])
def test_what_is_selected_is_what_sorting_finds_and_survives_its_code(top: TopK, kind: str) -> None:
    for count in (0, 1, 63, 4096, 10_001):
        array = drawn(kind, count)
        places = np.empty(top.kept(count), np.uint16)
        top.select(array, places)
        np.testing.assert_array_equal(places, by_sorting(top, array))
        coded = np.empty(top.coded_bytes_max(count), np.uint8)
        size = top.encode(places, count, coded)
        back = np.zeros_like(places)
        top.decode(coded[:size], count, back)
        np.testing.assert_array_equal(back, places)


def test_the_payload_of_sparse_loco_is_two_hundred_times_smaller_than_f32() -> None:
    top, count = TopK(), 1 << 20
    places = np.empty(top.kept(count), np.uint16)
    top.select(drawn("heavy", count), places)
    index_bytes = top.encode(places, count, np.empty(top.coded_bytes_max(count), np.uint8))
    assert 7.36 < 8 * index_bytes / len(places) < 7.6
    value_bytes = len(places) // 4  # two bits each
    assert 4 * count / (index_bytes + value_bytes) > 200


def test_bytes_that_are_no_code_are_refused() -> None:
    top, count = TopK(256, 9), 1000
    places = np.empty(top.kept(count), np.uint16)
    top.select(drawn("heavy", count), places)
    coded = np.empty(top.coded_bytes_max(count), np.uint8)
    good = coded[: top.encode(places, count, coded)]
    for bad in (good[:-1], np.append(good, np.uint8(0)), np.full(len(good), 255, np.uint8)):
        with pytest.raises(RemoteError, match="are no code of places"):
            top.decode(bad, count, np.zeros_like(places))


def test_arrays_that_do_not_fit_are_refused() -> None:
    for block, k in ((0, 0), (64, 65), (1 << 17, 1), (64, 0)):
        with pytest.raises(UsageError, match="must hold"):
            TopK(block, k)
    top = TopK(64, 4)
    array, places = np.ones(128, np.float32), np.zeros(8, np.uint16)
    with pytest.raises(UsageError, match="f32"):
        top.select(np.ones(128), places)
    with pytest.raises(UsageError, match=r"u16\[8\]"):
        top.select(array, places[:7])
    coded = np.zeros(top.coded_bytes_max(128), np.uint8)
    with pytest.raises(UsageError, match="not ascending"):
        top.encode(places, 128, coded)
    with pytest.raises(UsageError, match="coded must be u8"):
        top.encode(np.array([0, 1, 2, 3] * 2, np.uint16), 128, coded[:-1])
