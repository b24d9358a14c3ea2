"""A loader whose position is the run's: what was trained on, and what comes next, on all members.

The samples of an epoch are in one seeded order, the same for all.  A committed step moves the
position by what its members took, so a joiner goes on where the others are, and after a rollback
the same batch is offered again.

Invariant: within a run, whatever its members, the samples between two positions are taken once:
rank r of n takes those at position + r * batch_size, ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import default_collate

from pccl.pytorch.errors import Misused


class Batches:
    """Batches of a map-style data set (one with `len` and `[index]`), over and over again."""

    def __init__(
        self,
        data: Any,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        collate: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        """
        Args:
            batch_size: samples per member and step, alike on all members.
            seed: of the order, alike on all members; each epoch has another order.
            collate: makes a batch of samples, as a DataLoader's `collate_fn` does.

        Raises:
            Misused: the data set is empty or batch_size below 1.
        """
        if batch_size < 1 or len(data) < 1:
            raise Misused(f"{len(data)} samples in batches of {batch_size}: both must be above 0")
        self.batch_size = batch_size
        self.position = 0
        self._data = data
        self._seed = seed
        self._shuffle = shuffle
        self._collate = collate
        self._order: tuple[int, Sequence[int]] = (-1, ())

    def batch(self, rank: int, size: int) -> Any:
        """Returns what a rank of so many takes at the present position."""
        first = self.position + rank * self.batch_size
        return self._collate(
            [self._data[self.index(first + offset)] for offset in range(self.batch_size)]
        )

    def advance(self, size: int) -> None:
        """A step of so many members is committed."""
        self.position += size * self.batch_size

    def index(self, position: int) -> int:
        """Returns which sample is at a position."""
        epoch, at = divmod(position, len(self._data))
        if self._order[0] != epoch:
            self._order = (epoch, self._shuffled(epoch))
        return self._order[1][at]

    def _shuffled(self, epoch: int) -> Sequence[int]:
        if not self._shuffle:
            return range(len(self._data))
        generator = torch.Generator().manual_seed((self._seed << 20) + epoch)
        order: list[int] = torch.randperm(len(self._data), generator=generator).tolist()
        return order

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "seed": self._seed, "batch_size": self.batch_size}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self.position = int(state_dict["position"])
        self._seed = int(state_dict["seed"])
        self.batch_size = int(state_dict["batch_size"])
        self._order = (-1, ())
