"""Where a coordinator keeps its record, and the store of runs that need not survive it.

Theory: opening a store raises the generation, durably, before the first byte leaves the
coordinator; saving compares it.  So of two coordinators on one store the older can never again
write, and peers, who obey only the highest generation they have seen, never again listen to it.

Invariant: `load` returns the record of the latest `save` that returned, or None.
"""

from __future__ import annotations

from typing import Protocol

from pccl.base.errors import PcclError
from pccl.membership.record import Record, record_codec


class StoreError(PcclError):
    """The store cannot be opened, read or written; the coordinator must not go on."""


class NotSettledYet(PcclError):
    """The store cannot move a record now; it is durable where it is, and nothing is broken."""


class Store(Protocol):
    """Synchronous; the shell calls it from one thread at a time, and never from the event loop."""

    @property
    def generation(self) -> int:
        """This opening's number; greater than that of any earlier opening."""
        ...

    def load(self) -> Record | None: ...

    def save(self, record: Record) -> None:
        """Returns once the record is durable.  Raises StoreError, and then never works again."""
        ...

    def settle(self) -> None:
        """Puts what was saved where it is safest, when there is time.

        Raises like `save`, or NotSettledYet, after which it may be called again."""
        ...

    def close(self) -> None: ...


class MemoryDisk:
    """What outlives a MemoryStore: for tests, the part of the world that survives a crash."""

    def __init__(self) -> None:
        self.generation = 0
        self.blob: bytes | None = None


class MemoryStore:
    """Keeps the record in memory: a coordinator without a journal forgets its run when it ends."""

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        self._disk = MemoryDisk() if disk is None else disk
        self._disk.generation += 1
        self._generation = self._disk.generation

    @property
    def generation(self) -> int:
        return self._generation

    def load(self) -> Record | None:
        return None if self._disk.blob is None else record_codec.decode(self._disk.blob)

    def save(self, record: Record) -> None:
        if self._disk.generation != self._generation:
            raise StoreError(
                f"generation {self._generation} was deposed by {self._disk.generation}"
            )
        self._disk.blob = record_codec.encode(record)

    def adopt(self, record: Record) -> None:
        """Begins anew with a record that was not made here, and with its generation."""
        self._disk.generation = self._generation = record.generation
        self._disk.blob = record_codec.encode(record)

    def settle(self) -> None:
        return None

    def close(self) -> None:
        return None
