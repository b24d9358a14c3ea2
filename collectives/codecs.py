"""Codecs: how the elements of an all-reduce are quantised while they travel.

Symmetric, block-wise, by the largest magnitude of each block; the definition, to the bit, is in
`native/include/pccl/codec.hpp`.  Invariant: a number never changes its meaning (it is the wire's).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from pccl.base.errors import UsageError
from pccl.collectives.buffers import Buffer, describe, require_writable
from pccl.collectives.dtypes import Dtype
from pccl.collectives.ops import Algorithm, ReduceOp
from pccl.transport import kernels

BLOCK_MIN: Final = 32
BLOCK_MAX: Final = 4096
QUANTISABLE: Final = (Dtype.F64, Dtype.F32, Dtype.F16, Dtype.BF16)
_SCALE_BYTES: Final = 4


class CodecKind(IntEnum):
    """What one element becomes."""

    INT8 = 1
    INT4 = 2
    FP8 = 3  # e4m3

    @property
    def label(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Codec:
    """A way to quantise, alike on all members.

    Args:
        kind: int8, int4 or fp8 (e4m3), or its name.
        block: elements that share a scale; a power of two, 32 to 4096.
        stochastic: rounds up or down so that the expectation is the value itself, by bits that
            follow from step, tag, rank and block; else to the nearest, ties to even.

    Cost: 8, 4 or 8 bits an element, and 32 bits a block.
    """

    kind: CodecKind | str = CodecKind.INT8
    block: int = 256
    stochastic: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.kind, CodecKind):
            object.__setattr__(self, "kind", _kind(self.kind))
        whole = isinstance(self.block, int) and not isinstance(self.block, bool)
        if not whole or not BLOCK_MIN <= self.block <= BLOCK_MAX or self.block.bit_count() != 1:
            raise UsageError(
                f"block must be a power of two from {BLOCK_MIN} to {BLOCK_MAX}, not {self.block!r}"
            )
        object.__setattr__(self, "stochastic", bool(self.stochastic))

    def __str__(self) -> str:
        assert isinstance(self.kind, CodecKind)
        return f"{self.kind.label}/{self.block}" + (" stochastic" if self.stochastic else "")

    @property
    def number(self) -> int:
        """What the engine calls it."""
        return int(self.kind) | (self.block.bit_length() - 1) << 8 | int(self.stochastic) << 16

    def wire_bytes(self, count: int) -> int:
        """Returns the bytes that `count` elements take while they travel."""
        blocks, rest = divmod(count, self.block)
        scales = blocks + (rest > 0)
        if self.kind is CodecKind.INT4:
            return _SCALE_BYTES * scales + blocks * (self.block // 2) + (rest + 1) // 2
        return _SCALE_BYTES * scales + count

    def encode(self, array: Any, coded: Any, *, seed: int = 0) -> None:
        """Quantises an array here, without any communication.

        Args:
            array: f32, C-contiguous; numpy, torch CPU or other shared memory; only read.
            coded: u8, `wire_bytes(count)` of them; is overwritten.
            seed: 64 bits that stochastic rounding follows from; else ignored.

        Raises:
            UsageError: an argument is not as described; nothing was written.

        Cost: about the speed of reading the array from memory.
        """
        source, target = self._pair(array, "the array", coded, "coded")
        kernels.encode(self.number, target.address, source.address, source.count, seed % (1 << 64))

    def decode(self, coded: Any, array: Any) -> None:
        """Makes f32 of what `encode` has made of as many elements as `array` has.

        What a member of an all-reduce has sent of x is what `encode` and `decode` make of x, except
        of its own share of the result; an error-feedback residual is the difference.

        Raises:
            UsageError: an argument is not as described in `encode`; nothing was written.
        """
        target, source = self._pair(array, "the array", coded, "coded", writes=True)
        kernels.decode(self.number, target.address, source.address, target.count)

    def _pair(
        self, array: Any, array_name: str, coded: Any, coded_name: str, *, writes: bool = False
    ) -> tuple[Buffer, Buffer]:
        elements = describe(array, name=array_name)
        codes = describe(coded, name=coded_name)
        if elements.dtype is not Dtype.F32:
            raise UsageError(f"{array_name} has dtype {elements.dtype.label}; f32 is coded here")
        wanted = self.wire_bytes(elements.count)
        if codes.dtype is not Dtype.U8 or codes.count != wanted:
            raise UsageError(
                f"{coded_name} must be u8[{wanted}], not {codes.dtype.label}[{codes.count}]"
            )
        if elements.overlaps(codes):
            raise UsageError(f"{array_name} and {coded_name} share memory")
        if writes:
            require_writable(elements, array_name, "pass a writable array")
        else:
            require_writable(codes, coded_name, "pass a writable array")
        return elements, codes


def parse_codec(codec: str | Codec | None) -> Codec | None:
    """Returns the codec of that name.  Raises UsageError with the names there are."""
    if codec is None or isinstance(codec, Codec):
        return codec
    return Codec(_kind(codec))


def check_codec(codec: Codec, dtype: Dtype, op: ReduceOp, algorithm: Algorithm) -> None:
    """Raises UsageError for what cannot be quantised."""
    if dtype not in QUANTISABLE:
        raise UsageError(f"{dtype.label} cannot be quantised; f64, f32, f16 and bf16 can")
    if op not in (ReduceOp.SUM, ReduceOp.AVG):
        raise UsageError(f"op {op.label!r} cannot be quantised; 'sum' and 'avg' can")
    if algorithm not in (Algorithm.AUTOMATIC, Algorithm.DIRECT):
        raise UsageError(
            f"algorithm {algorithm.name.lower()!r} would round more than twice, or differently on "
            "each member; with a codec leave it, or choose 'direct'"
        )


def _kind(name: object) -> CodecKind:
    for kind in CodecKind:
        if name == kind.label:
            return kind
    raise UsageError(
        f"codec must be {', '.join(kind.label for kind in CodecKind)} or a pccl.Codec, not {name!r}"
    )
