"""SparseLoCo's compression against a plain one in numpy; sizes, errors and bookkeeping."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from pccl.base.errors import UsageError  # noqa: E402
from pccl.diloco.compression import (  # noqa: E402
    Blocks,
    ModelCode,
    Settings,
    TensorCode,
    quantise,
)
from pccl.diloco.packing import pack, packed_bytes, unpack  # noqa: E402

SHAPES = [(128, 192), (64,), (65, 3), (7,), (2, 64, 64), (), (130, 1), (0, 4)]


def randoms(seed: int, count: int) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(count).astype(np.float32))


# ---- packing


@given(st.integers(0, 16), st.integers(0, 70), st.integers(0, 2**32))
@settings(deadline=None)
def test_what_was_packed_is_unpacked(bits: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, count).astype(np.uint16)
    data = pack(values, bits)
    assert data.size == packed_bytes(count, bits) == math.ceil(count * bits / 8)
    assert (unpack(data, count, bits) == values).all()


def test_two_places_of_twelve_bits_take_three_bytes() -> None:
    assert pack(np.array([0xABC, 0xDEF], np.uint16), 12).tobytes() == b"\xab\xcd\xef"


# ---- blocks


@given(st.lists(st.integers(0, 130), max_size=3))
@settings(deadline=None)
def test_blocks_put_together_again_are_the_tensor(shape: list[int]) -> None:
    blocks = Blocks.of(shape)
    flat = torch.arange(math.prod(shape)).float()
    cut = blocks.cut(flat)
    assert cut.shape == (blocks.count, blocks.size) and blocks.size <= 4096
    assert torch.equal(blocks.join(cut), flat)


def test_a_block_is_a_square_of_the_matrix() -> None:
    matrix = torch.arange(128 * 192).view(128, 192)
    cut = Blocks.of((128, 192)).cut(matrix.reshape(-1))
    assert torch.equal(cut[4].view(64, 64), matrix[64:128, 64:128])  # second row, second column


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
    sent[where] = reference_quantise(matrix[where], bits)
    return sent


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("seed", range(6))
def test_what_a_receiver_decodes_is_what_the_definition_says(seed: int, bits: int) -> None:
    matrix = randoms(seed, 128 * 192).view(128, 192)
    code = TensorCode((128, 192), 64, bits)
    flat = code.dense(code.decode(code.encode(matrix.reshape(-1))))
    expected = reference_sent(matrix.numpy(), 64, bits)
    ours = flat.view(128, 192).numpy()
    assert ((ours != 0) == (expected != 0)).all()  # the same places
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7)  # sums in another order


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [2, 8, 32])
def test_sizes_depend_on_shapes_alone_and_decoding_is_stable(
    shape: tuple[int, ...], bits: int
) -> None:
    code = TensorCode(shape, 64, bits)
    count = math.prod(shape)
    for values in (randoms(1, count), torch.zeros(count), torch.ones(count)):
        data = code.encode(values)
        assert data.size == code.encoded_bytes
        once = code.dense(code.decode(data))
        assert torch.equal(once, code.dense(code.decode(data)))
        if bits == 32 and code.blocks.size <= 64:
            assert torch.equal(once, values)  # a whole block, as it is


def test_values_that_are_all_alike_are_kept_exactly() -> None:
    table, codes = quantise(torch.full((9,), 3.5), 2)
    assert table[codes].tolist() == [3.5] * 9


def test_the_mean_of_the_quantised_values_is_that_of_the_values() -> None:
    values = randoms(3, 6400) + 2.0
    table, codes = quantise(values, 2)
    assert float(table[codes].double().mean()) == pytest.approx(
        float(values.double().mean()), rel=1e-7
    )


def test_a_contribution_of_matrices_is_140_times_smaller_than_f32() -> None:
    shapes = [(128, 384), (128, 128), (128, 512), (512, 128), (256, 128)]
    code = ModelCode(shapes, Settings())
    assert code.size * 4 / code.encoded_bytes >= 140


# ---- foreign bytes


@given(st.binary(max_size=300), st.integers(0, 3))
@settings(deadline=None, max_examples=200)
def test_bytes_that_no_peer_encodes_are_refused_or_harmless(junk: bytes, which: int) -> None:
    shape = [(64, 64), (65, 3), (7,), (16, 4)][which]
    code = TensorCode(shape, 5, 2)
    data = np.frombuffer(junk.ljust(code.encoded_bytes, b"\x5a")[: code.encoded_bytes], np.uint8)
    try:
        sparse = code.decode(data)
    except ValueError:
        return
    assert code.dense(sparse).shape == (math.prod(shape),)
    assert int(sparse.places.max()) < code.blocks.size


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
