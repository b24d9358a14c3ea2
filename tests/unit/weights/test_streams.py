"""Positions and planes: what is encoded comes back, and nothing hostile is believed."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl.base.errors import RemoteError
from pccl.weights import streams

SPARSE = st.lists(st.integers(0, 1_000_000), unique=True, max_size=60)
DENSE = st.lists(st.integers(0, 400), unique=True, max_size=300)


@given(SPARSE | DENSE)
def test_positions_come_back_in_order(chosen: list[int]) -> None:
    positions = np.array(sorted(chosen), np.int64)
    cells = int(positions[-1]) + 1 if chosen else 1
    digit_bytes, digits = streams.encode_positions(positions)
    assert digits.dtype.itemsize == digit_bytes
    assert digits.size <= streams.digits_max(len(chosen), cells, digit_bytes)
    assert streams.decode_positions(digits, len(chosen), cells).tolist() == positions.tolist()


@pytest.mark.parametrize("gap", [0, 254, 255, 256, 510, 65_534, 65_535, 65_536, 131_070])
def test_a_gap_at_the_edge_of_a_digit_is_exact(gap: int) -> None:
    positions = np.array([gap, 2 * gap + 1, 2 * gap + 2], np.int64)
    _, digits = streams.encode_positions(positions)
    assert streams.decode_positions(digits, 3, 2 * gap + 3).tolist() == positions.tolist()


@given(st.binary(max_size=80), st.integers(0, 80), st.integers(1, 500), st.booleans())
def test_any_digits_give_sorted_positions_within_the_segment_or_an_error(
    data: bytes, count: int, cells: int, wide: bool
) -> None:
    digits = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if wide else "u1")
    try:
        found = streams.decode_positions(digits, count, cells)
    except RemoteError:
        return
    assert found.size == count
    assert (np.diff(found) > 0).all() and (found >= 0).all() and (found < cells).all()


def test_a_last_digit_that_promises_more_is_refused() -> None:
    with pytest.raises(RemoteError):
        streams.decode_positions(np.array([3, 255], np.uint8), 1, 1000)


@settings(max_examples=50)
@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**32), st.integers(1, 3000))
def test_planes_come_back_whether_they_are_worth_coding_or_not(
    width: int, seed: int, count: int
) -> None:
    dice = np.random.default_rng(seed)
    most = int(dice.integers(1, 1 << (8 * min(width, 7))))
    cells = dice.integers(0, most, count, dtype=np.uint64).astype(streams.unsigned(width))
    back = []
    for plane in streams.planes(cells):
        coding, data = streams.encode_plane(plane)
        assert len(data) <= plane.size
        back.append(streams.decode_plane(coding, memoryview(data), plane.size))
    assert (streams.from_planes(back) == cells).all()


def test_a_plane_of_few_symbols_is_made_smaller_and_noise_is_left_alone() -> None:
    dice = np.random.default_rng(0)
    few = dice.integers(0, 8, 20_000).astype(np.uint8)
    coding, data = streams.encode_plane(few)
    assert coding == streams.HUFFMAN and len(data) < 0.4 * few.size
    noise = dice.integers(0, 256, 20_000).astype(np.uint8)
    assert streams.encode_plane(noise) == (streams.RAW, noise.tobytes())


@pytest.mark.parametrize("size", [0, 1, 19_999, 20_001, 1 << 40])
def test_a_coded_plane_of_another_size_is_refused_without_its_memory(size: int) -> None:
    _, data = streams.encode_plane(np.zeros(20_000, np.uint8))
    assert len(data) < 4000
    with pytest.raises(RemoteError):
        streams.decode_plane(streams.HUFFMAN, memoryview(data), size)


@given(st.binary(max_size=60), st.integers(0, 3), st.integers(0, 4000))
def test_any_bytes_are_a_plane_of_the_size_asked_for_or_an_error(
    data: bytes, coding: int, size: int
) -> None:
    with contextlib.suppress(RemoteError):
        assert streams.decode_plane(coding, memoryview(data), size).size == size


@settings(max_examples=60)
@given(
    st.sampled_from([1, 2, 4, 8]), st.integers(0, 2000), st.integers(0, 2**32), st.integers(0, 7)
)
def test_exactly_the_cells_that_differ_are_found(
    width: int, count: int, seed: int, misaligned: int
) -> None:
    dice = np.random.default_rng(seed)
    old = dice.integers(0, 256, count * width).astype(np.uint8)
    room = np.zeros(old.size + 8, np.uint8)
    new = room[misaligned : misaligned + old.size]
    new[:] = old
    chosen = sorted(set(dice.integers(0, max(1, count), count // 9).tolist())) if count else []
    for at in chosen:
        new[at * width + int(dice.integers(0, width))] ^= 1 << int(dice.integers(0, 8))
    assert streams.changed_cells(old, new, width).tolist() == chosen
