"""One peer's model, text and inner optimizer: all of training that no other peer sees.

Invariant: which examples a step draws is a function of seed, shard and step, so that a peer that
joins late goes on with the examples that it would have had.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from pccl.demo.corpus import Corpus
from pccl.demo.model import (
    EVALUATED_ROWS_MAX,
    GRADIENT_LENGTH_MAX,
    ByteGPT,
    held_out_batch,
    rate_at,
    training_batch,
)
from pccl.demo.peer_config import ModelShape

HELD_OUT_ROWS = 64


class InnerTraining:
    """A ByteGPT under AdamW with gradient clipping, warm-up and cosine decay.

    Not thread-safe.  A joiner's AdamW begins with no moments, and with the rate of the step at
    which it came in.
    """

    def __init__(
        self,
        shape: ModelShape,
        corpus: Corpus,
        *,
        rows: int,
        seed: int,
        shard: int,
        shards: int,
        steps: int,
        peak_rate: float = 3e-3,
    ) -> None:
        torch.manual_seed(seed)
        self.model = ByteGPT(shape)
        self._shape, self._rows, self._steps, self._peak_rate = shape, rows, steps, peak_rate
        self._dice = seed * shards + shard
        self._text = torch.frombuffer(bytearray(corpus.shard), dtype=torch.uint8)
        held_out = torch.frombuffer(bytearray(corpus.held_out), dtype=torch.uint8)
        self._held_out = held_out_batch(held_out, rows=HELD_OUT_ROWS, context=shape.context)
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), betas=(0.9, 0.95), weight_decay=0.01
        )

    @property
    def tokens(self) -> int:
        """Of one batch."""
        return self._rows * self._shape.context

    def backward(self, step: int) -> float:
        """Makes `step`'s gradients; returns the loss."""
        batch = training_batch(
            self._text, rows=self._rows, context=self._shape.context, seed=self._dice, step=step
        )
        self._optimizer.zero_grad(set_to_none=False)
        loss: Tensor = self.model(batch)
        loss.backward()
        return float(loss.detach())

    def update(self, step: int) -> None:
        """Applies the gradients, with the learning rate of `step`."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_LENGTH_MAX)
        self._optimizer.param_groups[0]["lr"] = self._peak_rate * rate_at(step, self._steps)
        self._optimizer.step()

    @torch.no_grad()
    def evaluate(self) -> float:
        """Returns the mean loss on the held-out text, in nats per byte."""
        text = self._held_out
        parts = torch.tensor_split(text, math.ceil(len(text) / EVALUATED_ROWS_MAX))
        return sum(float(self.model(rows)) * len(rows) for rows in parts) / len(text)


def sha256_of(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().numpy().tobytes())
    return digest.hexdigest()
