"""SparseLoCo's compression: the largest entries of each block, few bits each; a residual.  Pure.

    acc = β e + η Δ        sent = decode(encode(acc))        e ← acc − sent

What was not sent, the error of the levels included, stays in the residual.  The bytes are those of
`pccl.sparse`.

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
from pccl.sparse.blocks import BLOCK_MAX
from pccl.sparse.code import VALUE_BITS, Sparse, SparseCode
from pccl.sparse.packing import Bytes


@dataclass(frozen=True, slots=True)
class Settings:
    """SparseLoCo's numbers.

    Attributes:
        top_k: entries sent per block.  64 of 4096.
        value_bits: 2, 4, 8, 16 for bf16, or 32 for values as they are.
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
        self._code = SparseCode(shapes, settings.top_k, settings.value_bits)
        self.size = sum(self._code.sizes)
        self.encoded_bytes = self._code.encoded_bytes

    def compress(self, residual: Tensor, delta: Tensor) -> tuple[Bytes, Tensor]:
        """Returns what to send for a pseudo-gradient, and the residual if that is committed."""
        scaled = delta.mul(self.settings.learning_rate)
        accumulated = residual.mul(self.settings.decay).add_(scaled)
        data = self.encode(accumulated)
        return data, accumulated.sub_(self.dense(self.decode(data)))

    def encode(self, flat: Tensor) -> Bytes:
        return self._code.encode([part.numpy() for part in flat.split(self._code.sizes)])

    def decode(self, data: Bytes) -> list[Sparse]:
        """Raises ValueError if the bytes are not of such a model."""
        return self._code.decode(data)

    def dense(self, parts: Sequence[Sparse]) -> Tensor:
        return torch.from_numpy(np.concatenate(self._code.dense(parts)))

    def mean(self, contributions: Sequence[Bytes], weights: Sequence[float]) -> Tensor:
        """Returns for each element the weighted mean over those who have sent it, else zero.

        In the order given, so that all who give the same order get the same bits.  Weights are
        relative; contributions of weight 0 are not looked at.

        Raises:
            ValueError: a contribution is not of such a model.
        """
        taken = [(data, w) for data, w in zip(contributions, weights, strict=True) if w > 0]
        parts = [self.decode(data) for data, _ in taken]
        return torch.from_numpy(np.concatenate(self._code.mean(parts, [w for _, w in taken])))
