"""Sparse codes against plain definitions; sizes, foreign bytes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl.base.errors import UsageError
from pccl.sparse.blocks import Blocks
from pccl.sparse.code import VALUE_BITS, SparseCode, TensorCode, to_bf16
from pccl.sparse.levels import quantise
from pccl.sparse.packing import pack, packed_bytes, unpack
from pccl.sparse.places import PlaceCode

SHAPES = [(128, 192), (64,), (65, 3), (7,), (2, 64, 64), (), (130, 1), (0, 4), (1, 64)]


def randoms(seed: int, count: int) -> Any:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def dense(code: TensorCode, data: Any) -> Any:
    part = code.decode(data)
    flat = np.zeros(code.size, np.float32)
    flat[part.indices] = part.values
    return flat


# ---- packing


@given(st.integers(0, 16), st.integers(0, 70), st.integers(0, 2**32))
@settings(deadline=None)
def test_what_was_packed_is_unpacked(bits: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, count).astype(np.uint16)
    data = pack(values, bits)
    assert data.size == packed_bytes(count, bits) == math.ceil(count * bits / 8)
    assert (unpack(data, count, bits) == values).all()


def test_two_values_of_twelve_bits_take_three_bytes() -> None:
    assert pack(np.array([0xABC, 0xDEF], np.uint16), 12).tobytes() == b"\xab\xcd\xef"


# ---- blocks and places


@given(st.lists(st.integers(0, 130), max_size=3))
@settings(deadline=None)
def test_the_places_of_all_blocks_are_all_elements_once(shape: list[int]) -> None:
    blocks = Blocks.of(shape)
    places = np.broadcast_to(np.arange(blocks.size, dtype=np.uint16), (blocks.count, blocks.size))
    indices = blocks.indices(places)
    assert blocks.size <= 4096
    assert np.array_equal(np.sort(indices, axis=None), np.arange(math.prod(shape)))


def test_a_block_is_a_square_of_the_matrix() -> None:
    blocks = Blocks.of((128, 192))
    places = np.broadcast_to(np.arange(4096, dtype=np.uint16), (blocks.count, 4096))
    matrix = np.arange(128 * 192).reshape(128, 192)
    second_row_second_column = matrix[64:128, 64:128].reshape(-1)
    assert np.array_equal(blocks.indices(places)[4], second_row_second_column)


@given(st.integers(1, 4096), st.data())
@settings(deadline=None, max_examples=60)
def test_places_come_back_whatever_they_are(size: int, data: Any) -> None:
    k = data.draw(st.integers(1, size))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    blocks = [np.sort(rng.choice(size, k, replace=False)) for _ in range(3)]
    blocks += [np.arange(k), np.arange(size - k, size)]
    places = np.array(blocks, np.uint16)
    code = PlaceCode(len(blocks), size, k)
    encoded = code.encode(places)
    assert encoded.size == code.encoded_bytes
    assert np.array_equal(code.decode(encoded), places)


def test_64_places_of_4096_take_less_than_eight_bits_each() -> None:
    assert PlaceCode(1000, 4096, 64).encoded_bytes * 8 / 64000 < 8


# ---- top-k and quantiser, against numpy


def reference_quantise(values: Any, bits: int) -> Any:
    """The definition, line by line, in f64; returns what a receiver makes of the values."""
    levels = 2**bits
    exact = values.astype(np.float64)
    shift = exact.mean()
    centred = exact - shift
    sigma = np.sqrt((centred**2).sum() / max(1, exact.size - 1))
    scale = 6 * sigma / levels
    bins = np.clip(np.rint(centred / scale + levels / 2), 0, levels - 1).astype(int)
    table = np.zeros(levels)
    for bin_ in range(levels):
        if (bins == bin_).any():
            table[bin_] = exact[bins == bin_].mean()
    return table.astype(np.float32)[bins]


def reference_sent(matrix: Any, top_k: int, bits: int) -> Any:
    """Encodes and decodes a matrix of 64 x 64 blocks."""
    picked = []
    for top in range(0, matrix.shape[0], 64):
        for left in range(0, matrix.shape[1], 64):
            block = matrix[top : top + 64, left : left + 64].reshape(-1)
            places = np.sort(np.argsort(-np.abs(block), kind="stable")[:top_k])
            rows, columns = np.divmod(places, 64)
            picked += list(zip(rows + top, columns + left, strict=True))
    where = tuple(np.array(picked).T)
    sent = np.zeros_like(matrix)
    sent[where] = matrix[where] if bits == 32 else reference_quantise(matrix[where], bits)
    return sent


@pytest.mark.parametrize("bits", [2, 4, 8, 32])
@pytest.mark.parametrize("seed", range(6))
def test_what_a_receiver_decodes_is_what_the_definition_says(seed: int, bits: int) -> None:
    matrix = randoms(seed, 128 * 192).reshape(128, 192)
    code = TensorCode((128, 192), 64, bits)
    ours = dense(code, code.encode(matrix.reshape(-1))).reshape(128, 192)
    expected = reference_sent(matrix, 64, bits)
    assert ((ours != 0) == (expected != 0)).all()  # the same places
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7)  # sums in another order


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", VALUE_BITS)
def test_sizes_depend_on_shapes_alone_and_decoding_is_stable(
    shape: tuple[int, ...], bits: int
) -> None:
    code = TensorCode(shape, 64, bits)
    count = math.prod(shape)
    for values in (randoms(1, count), np.zeros(count, np.float32), np.ones(count, np.float32)):
        data = code.encode(values)
        assert data.size == code.encoded_bytes
        assert np.array_equal(dense(code, data), dense(code, data.copy()))
        if bits == 32 and code.blocks.size <= 64:
            assert np.array_equal(dense(code, data), values)  # a whole block, as it is


def test_values_that_are_all_alike_are_kept_exactly() -> None:
    table, codes = quantise(np.full(9, 3.5, np.float32), 2)
    assert table[codes].tolist() == [3.5] * 9


def test_the_mean_of_the_quantised_values_is_that_of_the_values() -> None:
    values = randoms(3, 6400) + np.float32(2.0)
    table, codes = quantise(values, 2)
    mean = float(table[codes].astype(np.float64).mean())
    assert mean == pytest.approx(float(values.astype(np.float64).mean()), rel=1e-7)


def test_bf16_rounds_to_the_nearest_and_ties_to_even() -> None:
    words = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF], np.uint32)
    assert [hex(x) for x in to_bf16(words.view(np.float32))] == [
        "0x3f80", "0x3f80", "0x3f82", "0x3f81", "0x7f80",
    ]  # fmt: skip
    specials = np.array([0xFF800000, 0x7FC12345, 0x80000000, 0x7F800001], np.uint32)
    assert [hex(x) for x in to_bf16(specials.view(np.float32))] == [
        "0xff80", "0x7fc0", "0x8000", "0x7fc0",
    ]  # fmt: skip


def test_a_contribution_of_matrices_is_200_times_smaller_than_f32() -> None:
    code = SparseCode([(128, 384), (128, 128), (512, 1024)], 64, 2)
    assert sum(code.sizes) * 4 / code.encoded_bytes >= 200


# ---- means


def test_an_element_is_averaged_over_those_who_sent_it_by_weight() -> None:
    code = SparseCode([(64, 64)], 2, 32)
    first, second, third = (np.zeros(4096, np.float32) for _ in range(3))
    first[:2] = [8.0, 4.0]
    second[1:3] = [16.0, 2.0]
    third[:2] = 1000.0  # has no weight
    parts = [code.decode(code.encode([x])) for x in (first, second, third)]
    (mean,) = code.mean(parts, [100.0, 300.0, 0.0])
    assert mean[:4].tolist() == [8.0, 13.0, 2.0, 0.0]
    assert float(np.abs(mean).sum()) == 23.0


# ---- foreign bytes


@given(st.binary(max_size=300), st.integers(0, 3), st.sampled_from(VALUE_BITS))
@settings(deadline=None, max_examples=300)
def test_bytes_that_no_peer_encodes_are_refused_or_harmless(
    junk: bytes, which: int, bits: int
) -> None:
    shape = [(64, 64), (65, 3), (7,), (16, 4)][which]
    code = TensorCode(shape, 5, bits)
    data = np.frombuffer(junk.ljust(code.encoded_bytes, b"\x5a")[: code.encoded_bytes], np.uint8)
    try:
        part = code.decode(data)
    except ValueError:
        return
    assert part.indices.size == part.values.size == code.sent
    assert np.unique(part.indices).size == code.sent
    assert int(part.indices.min()) >= 0 and int(part.indices.max()) < math.prod(shape)


@given(st.binary(min_size=64, max_size=64))
@settings(deadline=None, max_examples=200)
def test_places_of_foreign_bytes_ascend_or_are_refused(junk: bytes) -> None:
    code = PlaceCode(1, 4096, 64)
    try:
        places = code.decode(np.frombuffer(junk, np.uint8))
    except ValueError:
        return
    assert (np.diff(places[0].astype(int)) > 0).all() and int(places.max()) < 4096


def test_a_contribution_of_another_size_is_refused() -> None:
    code = SparseCode([(64, 64)], 64, 2)
    with pytest.raises(ValueError, match="expected"):
        code.decode(np.zeros(code.encoded_bytes - 1, np.uint8))


@pytest.mark.parametrize(("top_k", "bits"), [(0, 2), (5000, 2), (64, 3)])
def test_settings_that_make_no_sense_are_refused(top_k: int, bits: int) -> None:
    with pytest.raises(UsageError):
        SparseCode([(64, 64)], top_k, bits)
