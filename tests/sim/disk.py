"""What outlives a coordinator's process, and what was ever durable on it.

The store is the shipped MemoryStore, whose fencing is that of the journal: each opening raises the
generation, and a save of an older opening fails.
"""

from __future__ import annotations

from typing import Self

from pccl.membership.record import Record
from pccl.membership.store import MemoryDisk, MemoryStore


class Disk(MemoryDisk):
    def __init__(self) -> None:
        super().__init__()
        self.incarnations: set[int] = set()  # ever durable, as everything below
        self.views: set[int] = set()
        self.activations: dict[int, int] = {}  # epoch: from which step on
        self.first_steps: dict[int, int] = {}  # epoch: at which it began
        self.epochs_reserved = 0
        self.written_by = 0

    def copied(self) -> Self:
        """What somebody has who copied the file just now."""
        copy = type(self)()
        copy.generation, copy.blob = self.generation, self.blob
        copy.incarnations, copy.views = set(self.incarnations), set(self.views)
        copy.activations, copy.first_steps = dict(self.activations), dict(self.first_steps)
        copy.epochs_reserved, copy.written_by = self.epochs_reserved, self.written_by
        return copy

    def open(self) -> MemoryStore:
        return MemoryStore(self)

    def saved(self, record: Record) -> None:
        """Notes what is durable now; told after each save that returned."""
        assert record.generation >= self.written_by, "a deposed coordinator wrote its record"
        self.written_by = record.generation
        self.epochs_reserved = max(self.epochs_reserved, record.epochs_reserved)
        self.incarnations.update(p.incarnation for p in record.peers)
        if record.view is not None:
            self.views.add(record.view.epoch)
        entering = record.activation
        if entering is not None:
            self.activations[entering.view.epoch] = entering.step
            if entering.resolved:
                self.views.add(entering.view.epoch)
                self.first_steps[entering.view.epoch] = entering.first_step
