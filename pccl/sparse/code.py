"""Tensors as the largest entries of their blocks, in bytes: encoding, decoding, averaging.

Per tensor: of each block the k entries of largest magnitude; their values on a table of 2 ** bits
levels, or as they are.  64 of 4096 with 2 bits are 9.98 bits a value: 205 times fewer than f32.

Invariant: `decode(encode(x))` is what every receiver makes of it, the sender included, bit for bit.
Encoded size depends on shapes and settings only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pccl.base.errors import UsageError
from pccl.sparse.blocks import BLOCK_MAX, Blocks, Floats, Indices
from pccl.sparse.levels import quantise
from pccl.sparse.packing import Bytes, pack, packed_bytes, unpack
from pccl.sparse.places import PlaceCode

RAW_BITS = 32  # values as they are
HALF_BITS = 16  # bf16, rounded to nearest even
TABLE_BITS = (2, 4, 8)
VALUE_BITS = (*TABLE_BITS, HALF_BITS, RAW_BITS)


@dataclass(frozen=True, slots=True)
class Sparse:
    """Some entries of one tensor: f32 values [n] at flat indices [n], each once, block by block."""

    indices: Indices
    values: Floats


class TensorCode:
    """Encodes one tensor; made of its shape and the settings, alike on all peers."""

    def __init__(self, shape: Sequence[int], top_k: int, value_bits: int) -> None:
        if not 1 <= top_k <= BLOCK_MAX:
            raise UsageError(f"top_k must be within 1 to {BLOCK_MAX}, not {top_k!r}")
        if value_bits not in VALUE_BITS:
            raise UsageError(f"value_bits must be one of {VALUE_BITS}, not {value_bits!r}")
        self.size = math.prod(shape)
        self.blocks = Blocks.of(shape)
        self.top_k = min(top_k, self.blocks.size)
        self.value_bits = value_bits
        self.sent = self.blocks.count * self.top_k
        self._places = PlaceCode(self.blocks.count, self.blocks.size, self.top_k)
        self._table_bytes = 4 << value_bits if value_bits in TABLE_BITS else 0
        self._values_end = self._table_bytes + packed_bytes(self.sent, value_bits)
        self.encoded_bytes = self._values_end + self._places.encoded_bytes

    def encode(self, flat: Floats) -> Bytes:
        """Returns the encoded top entries of a contiguous f32 array [size]."""
        if not self.sent:
            return np.zeros(self.encoded_bytes, np.uint8)
        places = self.blocks.top(flat, self.top_k)
        values = flat[self.blocks.indices(places).reshape(-1)]
        return np.concatenate([*self._encode_values(values), self._places.encode(places)])

    def _encode_values(self, values: Floats) -> list[Bytes]:
        if self.value_bits == RAW_BITS:
            return [values.view(np.uint8)]
        if self.value_bits == HALF_BITS:
            return [to_bf16(values).view(np.uint8)]
        table, codes = quantise(values, self.value_bits)
        return [table.view(np.uint8), pack(codes, self.value_bits)]

    def decode(self, data: Bytes) -> Sparse:
        """Returns what was encoded.

        Raises:
            ValueError: the bytes are not what `encode` can have made for this shape.
        """
        if data.size != self.encoded_bytes:
            raise ValueError(f"{data.size} bytes where {self.encoded_bytes} are expected")
        if not self.sent:
            return Sparse(np.zeros(0, np.int64), np.zeros(0, np.float32))
        places = self._places.decode(data[self._values_end :])
        values = self._decode_values(data[: self._values_end])
        return Sparse(self.blocks.indices(places).reshape(-1), values)

    def _decode_values(self, data: Bytes) -> Floats:
        if self.value_bits == RAW_BITS:
            return data.copy().view(np.float32)
        if self.value_bits == HALF_BITS:
            return (data.copy().view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        table = data[: self._table_bytes].copy().view(np.float32)
        codes = unpack(data[self._table_bytes :], self.sent, self.value_bits)
        return np.asarray(table[codes], np.float32)


class SparseCode:
    """Encodes a list of tensors as one array of bytes."""

    def __init__(self, shapes: Sequence[Sequence[int]], top_k: int, value_bits: int) -> None:
        self.tensors = [TensorCode(shape, top_k, value_bits) for shape in shapes]
        self.sizes = [code.size for code in self.tensors]
        self.encoded_bytes = sum(code.encoded_bytes for code in self.tensors)
        words = repr(([tuple(shape) for shape in shapes], top_k, value_bits)).encode()
        self.digest = int.from_bytes(hashlib.sha256(words).digest()[:8], "little")
        """Equal on peers whose shapes and settings are."""

    def encode(self, parts: Sequence[Floats]) -> Bytes:
        encoded = [code.encode(part) for code, part in zip(self.tensors, parts, strict=True)]
        return np.concatenate(encoded) if encoded else np.zeros(0, np.uint8)

    def decode(self, data: Bytes) -> list[Sparse]:
        """Raises ValueError if the bytes are not of such tensors."""
        if data.size != self.encoded_bytes:
            raise ValueError(f"{data.size} bytes where {self.encoded_bytes} are expected")
        found, begin = [], 0
        for code in self.tensors:
            end = begin + code.encoded_bytes
            found.append(code.decode(data[begin:end]))
            begin = end
        return found

    def dense(self, parts: Sequence[Sparse]) -> list[Floats]:
        """Returns flat arrays with zeros elsewhere."""
        return [_placed(part, code.size) for code, part in zip(self.tensors, parts, strict=True)]

    def mean(
        self, contributions: Sequence[Sequence[Sparse]], weights: Sequence[float]
    ) -> list[Floats]:
        """Returns for each element the weighted mean over those who have sent it, else zero.

        In the order given, so that all who give the same order get the same bits.  Weights are
        relative; contributions of weight 0 count for nothing.
        """
        taken = [(p, w) for p, w in zip(contributions, weights, strict=True) if w > 0]
        # Alike, they are left out: the sum of t v over the sum of t is not quite the mean of v.
        if len({weight for _, weight in taken}) == 1:
            taken = [(parts, 1.0) for parts, _ in taken]
        means = []
        for number, code in enumerate(self.tensors):
            total, weight_sum = np.zeros(code.size, np.float32), np.zeros(code.size, np.float32)
            for parts, weight in taken:
                factor = np.float32(weight)
                total[parts[number].indices] += parts[number].values * factor
                weight_sum[parts[number].indices] += factor
            means.append(divided(total, weight_sum))
        return means


def divided(total: Floats, weight_sum: Floats) -> Floats:
    """Returns total / weight_sum, and zero where nobody has sent anything."""
    return np.divide(total, weight_sum, out=np.zeros_like(total), where=weight_sum > 0)


def to_bf16(values: Floats) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    """Returns the bits of the nearest bf16, ties to even; a NaN becomes the canonical one."""
    words = values.view(np.uint32)
    rounded = (words + np.uint32(0x7FFF) + (words >> 16 & 1)) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def _placed(part: Sparse, size: int) -> Floats:
    flat = np.zeros(size, np.float32)
    flat[part.indices] = part.values
    return flat
