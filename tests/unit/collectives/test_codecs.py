"""Codecs against numpy: the definition again, as arrays; and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pccl.base.errors import UsageError
from pccl.collectives.buffers import describe
from pccl.collectives.codecs import Codec, CodecKind, check_codec, parse_codec
from pccl.collectives.descriptor import Descriptor
from pccl.collectives.dtypes import Dtype
from pccl.collectives.nonfinite import NonFinite, count_not_finite, parse_nonfinite
from pccl.collectives.ops import Algorithm, ReduceOp

LIMITS = {CodecKind.INT8: 127, CodecKind.INT4: 7, CodecKind.FP8: 448}
SIZES = (0, 1, 2, 255, 256, 257, 5003)


def e4m3() -> Any:
    """The values of the codes 0 to 0x7e, in order."""
    codes = np.arange(0x7F)
    exponent, mantissa = codes >> 3, codes & 7
    subnormal = mantissa * 2.0**-9
    return np.where(exponent == 0, subnormal, (8 + mantissa) * 2.0 ** (exponent - 10.0))


def nearest_fp8(wanted: Any) -> Any:
    values = e4m3()
    magnitude = np.abs(wanted).astype(np.float64)
    above = np.clip(np.searchsorted(values, magnitude), 1, len(values) - 1)
    low, high = magnitude - values[above - 1], values[above] - magnitude
    tie = np.where(above % 2 == 0, above, above - 1)
    code = np.where(low == high, tie, np.where(low < high, above - 1, above))
    return (code | np.where(np.signbit(wanted), 0x80, 0)).astype(np.uint8)


def model_of_block(kind: CodecKind, block: Any) -> tuple[bytes, Any]:
    """Returns the coded block, and what it decodes to."""
    limit, most = np.float32(LIMITS[kind]), np.abs(block).max()
    if not np.isfinite(block).all():
        scale, q = np.float32(np.nan), np.zeros(len(block))
    elif most == 0:
        scale, q = np.float32(0), np.zeros(len(block))
    else:
        scale = max(most / limit, np.finfo(np.float32).tiny)
        with np.errstate(over="ignore"):
            if np.isinf(scale * limit):
                scale = np.nextafter(scale, np.float32(0))
        wanted = np.clip(block * (np.float32(1) / scale), -limit, limit)
        q = nearest_fp8(wanted) if kind is CodecKind.FP8 else np.rint(wanted)
    if kind is CodecKind.FP8:
        codes = q.astype(np.uint8)
        values = np.where(codes & 0x80, -1.0, 1.0) * e4m3()[codes & 0x7F]
        payload = codes.tobytes()
    else:
        values = q + 0.0  # -0 is 0
        nibbles = q.astype(np.int8).view(np.uint8)
        payload = nibbles.tobytes()
        if kind is CodecKind.INT4:
            half = (len(block) + 1) // 2
            high = np.zeros(half, np.uint8)
            high[: len(block) - half] = nibbles[half:]
            payload = ((nibbles[:half] & 15) | (high & 15) << 4).tobytes()
    return scale.tobytes() + payload, values.astype(np.float32) * scale


def model(codec: Codec, array: Any) -> tuple[bytes, Any]:
    assert isinstance(codec.kind, CodecKind)
    blocks = [
        model_of_block(codec.kind, array[at : at + codec.block])
        for at in range(0, len(array), codec.block)
    ]
    decoded = [values for _, values in blocks]
    return b"".join(coded for coded, _ in blocks), np.concatenate([[], *decoded]).astype("f4")


def drawn(shape: str, size: int) -> Any:
    rng = np.random.default_rng(len(shape) * 1000 + size)
    normal = rng.standard_normal(size)
    match shape:
        case "heavy":
            array = rng.standard_t(1.5, size)
        case "negative":
            array = -3 - np.abs(normal)
        case "zero":
            array = np.where(normal > 0, 0.0, -0.0)
        case "subnormal":
            array = normal * 1e-40
        case "huge":
            array = np.where(normal > 1, np.finfo(np.float32).max, normal * 1e37)
        case "not a number":
            array = np.where(normal > 2.5, np.nan, np.where(normal < -2.5, np.inf, normal))
        case _:
            array = normal
    return array.astype(np.float32)


def round_trip(codec: Codec, array: Any) -> tuple[bytes, Any]:
    coded = np.empty(codec.wire_bytes(array.size), np.uint8)
    codec.encode(array, coded)
    decoded = np.empty_like(array)
    codec.decode(coded, decoded)
    return coded.tobytes(), decoded


@pytest.mark.parametrize("kind", list(CodecKind))
@pytest.mark.parametrize(
    "shape", ["normal", "heavy", "negative", "zero", "subnormal", "huge", "not a number"]
)
def test_every_bit_is_what_the_definition_says(kind: CodecKind, shape: str) -> None:
    for size in SIZES:
        for block in (32, 256):
            codec = Codec(kind, block)
            array = drawn(shape, size)
            coded, decoded = round_trip(codec, array)
            expected_bytes, expected = model(codec, array)
            with np.errstate(invalid="ignore"):
                assert coded == expected_bytes
            np.testing.assert_array_equal(decoded, expected)
            assert (np.signbit(decoded) == np.signbit(expected)).all()


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.01), ("int4", 0.17), ("fp8", 0.035)])
def test_the_relative_error_of_normal_data_is_small(kind: str, bound: float) -> None:
    array = drawn("normal", 100_000)
    _, decoded = round_trip(Codec(kind), array)
    assert 0 < np.linalg.norm(decoded - array) / np.linalg.norm(array) < bound


def test_stochastic_rounding_repeats_itself_and_differs_with_the_seed() -> None:
    codec = Codec("int4", stochastic=True)
    array = drawn("normal", 3000)
    once, again, other = (np.empty(codec.wire_bytes(3000), np.uint8) for _ in range(3))
    codec.encode(array, once, seed=1)
    codec.encode(array, again, seed=1)
    codec.encode(array, other, seed=2)
    assert (once == again).all() and (once != other).any()


def test_wire_bytes_are_those_of_the_core() -> None:
    from pccl.transport import kernels

    for kind in CodecKind:
        for block in (32, 256, 4096):
            codec = Codec(kind, block)
            for count in (0, 1, 31, 255, 256, 257, 4095, 4097, 1_000_001):
                assert codec.wire_bytes(count) == kernels.coded_bytes(codec.number, count)


def test_a_codec_is_named_or_made_and_nothing_else() -> None:
    assert parse_codec(None) is None
    assert parse_codec("int8") == Codec(CodecKind.INT8) == Codec("int8", 256, False)
    own = Codec("fp8", 64, True)
    assert parse_codec(own) is own
    for wrong in ("int2", "INT8", 8, 1.0, b"int8", True):
        with pytest.raises(UsageError, match="codec must be int8, int4, fp8"):
            parse_codec(wrong)  # type: ignore[arg-type]
    for block in (0, 16, 48, 8192, 256.0, True, "256"):
        with pytest.raises(UsageError, match="power of two from 32 to 4096"):
            Codec("int8", block)  # type: ignore[arg-type]


def test_what_cannot_be_quantised_is_refused() -> None:
    codec = Codec("int8")
    check_codec(codec, Dtype.BF16, ReduceOp.AVG, Algorithm.DIRECT)
    with pytest.raises(UsageError, match="i32 cannot be quantised"):
        check_codec(codec, Dtype.I32, ReduceOp.SUM, Algorithm.AUTOMATIC)
    with pytest.raises(UsageError, match="'max' cannot be quantised"):
        check_codec(codec, Dtype.F32, ReduceOp.MAX, Algorithm.AUTOMATIC)
    for algorithm in (Algorithm.RING, Algorithm.EXCHANGE):
        with pytest.raises(UsageError, match="more than twice"):
            check_codec(codec, Dtype.F32, ReduceOp.SUM, algorithm)


def test_memory_that_does_not_fit_is_refused_and_not_written() -> None:
    codec = Codec("int8")
    array, coded = np.ones(300, np.float32), np.zeros(308, np.uint8)
    for bad_array, bad_coded in (
        (np.ones(300), coded),
        (array, coded[:-1]),
        (array, coded.view(np.int8)),
        (array, np.lib.stride_tricks.as_strided(array.view(np.uint8), (308,))),
    ):
        with pytest.raises(UsageError):
            codec.encode(bad_array, bad_coded)
        with pytest.raises(UsageError):
            codec.decode(bad_coded, bad_array)
    read_only = array.copy()
    read_only.flags.writeable = False
    codec.encode(read_only, coded)
    with pytest.raises(UsageError, match="read-only"):
        codec.decode(coded, read_only)


def test_a_descriptor_says_its_codec() -> None:
    plain = Descriptor(Dtype.F32, 10, ReduceOp.AVG)
    quantised = Descriptor(Dtype.F32, 10, ReduceOp.AVG, codec=Codec("int4", 128, True))
    assert str(plain) == "all_reduce(avg, f32[10])"
    assert str(quantised) == "all_reduce(avg, f32[10], codec=int4/128 stochastic)"


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "bfloat16"])
def test_what_is_no_number_is_counted_in_every_type(dtype: str) -> None:
    for size in (0, 1, 100_001):
        array = drawn("not a number", size)
        expected = int((~np.isfinite(array)).sum())
        if dtype == "bfloat16":
            array = (array.view(np.uint32) >> 16).astype(np.uint16)
            import torch

            given: Any = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            given = array.astype(dtype)
        assert count_not_finite(describe(given), NonFinite.ALLOW) == expected
        assert count_not_finite(describe(given), NonFinite.IGNORE) == 0
    assert count_not_finite(describe(np.ones(3, np.int32)), NonFinite.RAISE) == 0


def test_a_policy_is_one_of_four_and_fits_the_operation() -> None:
    assert parse_nonfinite("raise", ReduceOp.MAX) is NonFinite.RAISE
    assert parse_nonfinite(NonFinite.ALLOW, ReduceOp.MIN) is NonFinite.ALLOW
    with pytest.raises(UsageError, match="ignore, allow, raise, drop_contributor"):
        parse_nonfinite("drop", ReduceOp.SUM)
    with pytest.raises(UsageError, match="'max' cannot be left out"):
        parse_nonfinite("drop_contributor", ReduceOp.MAX)
