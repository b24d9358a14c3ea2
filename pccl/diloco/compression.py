"""SparseLoCo's compression: the largest entries of each block, few bits each; a residual.  Pure.

Per tensor: blocks of at most 64 x 64 (2-D and above, the last dimension by all others) or 64 (1-D);
of each block the k entries of largest magnitude; their values on a table of 2 ** bits levels. What
was not sent, the error of the levels included, stays in the residual:

    acc = β e + η Δ        sent = decode(encode(acc))        e ← acc − sent

Invariant: `decode(encode(x))` is what every receiver makes of it, the sender included, bit for bit;
and `acc − sent` is computed from that.  Encoded size depends on shapes and settings only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pccl.base.errors import UsageError
from pccl.diloco.packing import Bytes, pack, packed_bytes, unpack

SIDE_MAX = 64
BLOCK_MAX = SIDE_MAX * SIDE_MAX
RAW_BITS = 32  # values as they are
VALUE_BITS = (2, 4, 8, RAW_BITS)
SIGMAS = 6.0  # the levels span this many standard deviations


def largest_divisor(size: int, most: int = SIDE_MAX) -> int:
    """Returns the largest divisor of `size` that is at most `most`."""
    return next(d for d in range(min(size, most), 0, -1) if size % d == 0)


@dataclass(frozen=True, slots=True)
class Blocks:
    """How one tensor is cut: rows x columns, into blocks of height x width.

    `rows` is 1 for a tensor of one dimension, and for a scalar.
    """

    rows: int
    columns: int
    height: int
    width: int

    @classmethod
    def of(cls, shape: Sequence[int]) -> Blocks:
        if len(shape) < 2:
            columns = math.prod(shape)
            return cls(1, columns, 1, largest_divisor(columns) if columns else 1)
        columns = shape[-1]
        rows = math.prod(shape[:-1])
        if not rows * columns:
            return cls(1, 0, 1, 1)
        return cls(rows, columns, largest_divisor(rows), largest_divisor(columns))

    @property
    def count(self) -> int:
        return (self.rows // self.height) * (self.columns // self.width)

    @property
    def size(self) -> int:
        return self.height * self.width

    def cut(self, flat: Tensor) -> Tensor:
        """Returns the elements block by block: [count, size], a copy."""
        grid = flat.view(
            self.rows // self.height, self.height, self.columns // self.width, self.width
        )
        return grid.permute(0, 2, 1, 3).reshape(self.count, self.size)

    def join(self, blocks: Tensor) -> Tensor:
        """Turns `cut` around: [rows * columns]."""
        grid = blocks.view(
            self.rows // self.height, self.columns // self.width, self.height, self.width
        )
        return grid.permute(0, 2, 1, 3).reshape(-1)


@dataclass(frozen=True, slots=True)
class Sparse:
    """One tensor's part of a contribution, decoded: values [count, k] at places [count, k]."""

    places: Tensor
    values: Tensor


class TensorCode:
    """Encodes one tensor; made of its shape and the settings, alike on all peers."""

    def __init__(self, shape: Sequence[int], top_k: int, value_bits: int) -> None:
        self.blocks = Blocks.of(shape)
        self.top_k = min(top_k, self.blocks.size)
        self.value_bits = value_bits
        # A block that is sent whole needs no places.
        whole = self.top_k == self.blocks.size
        self.place_bits = 0 if whole else (self.blocks.size - 1).bit_length()
        self.sent = self.blocks.count * self.top_k
        levels = 0 if value_bits == RAW_BITS else 1 << value_bits
        self._table_bytes = 4 * levels
        self._value_bytes = packed_bytes(self.sent, value_bits)
        self._place_bytes = packed_bytes(self.sent, self.place_bits)
        self.encoded_bytes = self._table_bytes + self._value_bytes + self._place_bytes

    def encode(self, flat: Tensor) -> Bytes:
        """Returns the encoded top entries of a flat f32 tensor."""
        if not self.sent:
            return np.zeros(self.encoded_bytes, np.uint8)
        cut = self.blocks.cut(flat)
        if self.place_bits:
            places = cut.abs().topk(self.top_k, dim=1, sorted=False).indices.sort(dim=1).values
            values = cut.gather(1, places).view(-1)
            packed = pack(places.view(-1).numpy().astype(np.uint16), self.place_bits)
        else:
            values, packed = cut.reshape(-1), np.zeros(0, np.uint8)
        if self.value_bits == RAW_BITS:
            return np.concatenate([values.numpy().view(np.uint8), packed])
        table, levels = quantise(values, self.value_bits)
        codes = pack(levels.numpy().astype(np.uint16), self.value_bits)
        return np.concatenate([table.numpy().view(np.uint8), codes, packed])

    def decode(self, data: Bytes) -> Sparse:
        """Returns what was encoded.

        Raises:
            ValueError: the bytes are not what `encode` can have made for this shape.
        """
        if data.size != self.encoded_bytes:
            raise ValueError(f"{data.size} bytes where {self.encoded_bytes} are expected")
        table_end, value_end = self._table_bytes, self._table_bytes + self._value_bytes
        if self.value_bits == RAW_BITS:
            values = torch.from_numpy(data[:value_end].copy().view(np.float32))
        else:
            table = torch.from_numpy(data[:table_end].copy().view(np.float32))
            codes = unpack(data[table_end:value_end], self.sent, self.value_bits)
            values = table[torch.from_numpy(codes.astype(np.int64))]
        shape = (self.blocks.count, self.top_k)
        if self.place_bits:
            found = unpack(data[value_end:], self.sent, self.place_bits).astype(np.int64)
            places = torch.from_numpy(found).view(shape)
            if places.numel() and int(places.max()) >= self.blocks.size:
                raise ValueError("a place lies outside of its block")
            if self.top_k > 1 and bool((places[:, 1:] <= places[:, :-1]).any()):
                raise ValueError("the places of a block do not ascend")
        else:
            places = torch.arange(self.top_k).expand(shape)
        return Sparse(places, values.view(shape))

    def dense(self, sparse: Sparse) -> Tensor:
        """Returns it as a flat tensor with zeros elsewhere."""
        cut = torch.zeros(self.blocks.count, self.blocks.size)
        if self.sent:
            cut.scatter_(1, sparse.places, sparse.values)
        return self.blocks.join(cut)


def quantise(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Returns a table of 2 ** bits values, and each value's place in it.

    Levels are spread over six standard deviations around the mean; a table entry is the mean of
    what falls on it, so that the sum of all values is kept up to rounding. Sums are in f64, for the
    sender's order of adding is its own affair, but means of many values should not suffer.

    Source: CCLoco and templar's code, as described for SparseLoCo, arXiv:2508.15706.
    """
    levels = 1 << bits
    exact = values.double()
    shift = exact.mean()
    centred = exact - shift
    count = values.numel()
    sigma = float(centred.norm()) / math.sqrt(max(1, count - 1))
    scale = SIGMAS * sigma / levels
    if not (math.isfinite(scale) and scale > 0):  # all alike, or nothing to be done about it
        codes = torch.zeros(count, dtype=torch.int64)
    else:
        codes = (centred / scale + levels / 2).round_().clamp_(0, levels - 1).long()
    sums = torch.zeros(levels, dtype=torch.float64).index_add_(0, codes, exact)
    counts = torch.bincount(codes, minlength=levels)
    table = (sums / counts.clamp(min=1)).float()
    return table, codes


@dataclass(frozen=True, slots=True)
class Settings:
    """SparseLoCo's numbers.

    Attributes:
        top_k: entries sent per block.  64 of 4096.
        value_bits: 2, 4, 8, or 32 for values as they are.
        decay: β, of the residual.  0.95; CCLoco's sweep found 0.999 good too.
        learning_rate: η, of the pseudo-gradient.  1.0.

    Source: Sarfi et al. 2025, arXiv:2508.15706.
    """

    top_k: int = 64
    value_bits: int = 2
    decay: float = 0.95
    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= BLOCK_MAX:
            raise UsageError(f"top_k must be within 1 to {BLOCK_MAX}, not {self.top_k!r}")
        if self.value_bits not in VALUE_BITS:
            raise UsageError(f"value_bits must be one of {VALUE_BITS}, not {self.value_bits!r}")
        if not 0 <= self.decay <= 1:
            raise UsageError(f"decay must be within [0, 1], not {self.decay!r}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UsageError(f"learning_rate must be above 0, not {self.learning_rate!r}")


class ModelCode:
    """Encodes a flat model, tensor by tensor."""

    def __init__(self, shapes: Sequence[Sequence[int]], settings: Settings) -> None:
        self.settings = settings
        self.tensors = [TensorCode(s, settings.top_k, settings.value_bits) for s in shapes]
        self._sizes = [math.prod(shape) for shape in shapes]
        self.size = sum(self._sizes)
        self.encoded_bytes = sum(code.encoded_bytes for code in self.tensors)

    def compress(self, residual: Tensor, delta: Tensor) -> tuple[Bytes, Tensor]:
        """Returns what to send for a pseudo-gradient, and the residual if that is committed."""
        scaled = delta.mul(self.settings.learning_rate)
        accumulated = residual.mul(self.settings.decay).add_(scaled)
        data = self.encode(accumulated)
        return data, accumulated.sub_(self.dense(self.decode(data)))

    def encode(self, flat: Tensor) -> Bytes:
        parts = flat.split(self._sizes)
        encoded = [code.encode(part) for code, part in zip(self.tensors, parts, strict=True)]
        return np.concatenate(encoded) if encoded else np.zeros(0, np.uint8)

    def decode(self, data: Bytes) -> list[Sparse]:
        """Raises ValueError if the bytes are not of such a model."""
        if data.size != self.encoded_bytes:
            raise ValueError(f"{data.size} bytes where {self.encoded_bytes} are expected")
        found, begin = [], 0
        for code in self.tensors:
            end = begin + code.encoded_bytes
            found.append(code.decode(data[begin:end]))
            begin = end
        return found

    def dense(self, parts: Sequence[Sparse]) -> Tensor:
        return torch.cat([c.dense(part) for c, part in zip(self.tensors, parts, strict=True)])

    def mean(self, contributions: Sequence[Bytes], weights: Sequence[float]) -> Tensor:
        """Returns for each element the weighted mean over those who have sent it, else zero.

        In the order given, so that all who give the same order get the same bits.  Weights are
        relative; contributions of weight 0 are not looked at.

        Raises:
            ValueError: a contribution is not of such a model.
        """
        # Alike, they are left out: the sum of t v over the sum of t is not quite the mean of v.
        alike = len({weight for weight in weights if weight > 0}) == 1
        parts = [
            (self.decode(data), 1.0 if alike else weight)
            for data, weight in zip(contributions, weights, strict=True)
            if weight > 0
        ]
        means = []
        for number, code in enumerate(self.tensors):
            shape = (code.blocks.count, code.blocks.size)
            total, weight_sum = torch.zeros(shape), torch.zeros(shape)
            for sparse, weight in parts:
                part = sparse[number]
                if code.sent:
                    total.scatter_add_(1, part.places, part.values * weight)
                    weight_sum.scatter_add_(1, part.places, torch.full_like(part.values, weight))
            mean = torch.where(weight_sum > 0, total / weight_sum, torch.zeros(()))
            means.append(code.blocks.join(mean))
        return torch.cat(means)
