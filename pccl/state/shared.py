"""The shared state of one process: its memory, its revision, and what donors may read of it.

    revision r --update(step), step committed--> r + 1        also: a sync adopts the others' r

Between two updates the memory does not change, so donors read it where it lies.  A *pin* is a
revision that somebody fetches; the first update after that copies it, once, before it writes.

Invariants: the revision grows only by a committed step, and by each at most once; a pin's bytes
never change while its revision is being read (a reader checks `Pin.holds` after reading); memory is
written by `update`, by a sync, or by the caller inside `update`, never by two of them at once.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from pccl.base.errors import UsageError
from pccl.base.log import get_logger
from pccl.state.catching_up import HOLD_S_MAX, Progress
from pccl.state.kept import Pin, Results, copies_of
from pccl.state.layout import Layout, Leaf
from pccl.state.tensors import Bytes, cells_of
from pccl.state.tree import hashing_named, root_of
from pccl.step import Step, number_of_committed
from pccl.transport.digests import xxh3
from pccl.work import Work

PIN_COPIES_MAX: Final = 4  # revisions copied for newcomers at a time; others begin anew meanwhile
PACE: Final = 0.2  # of the time in which a donor could send, while training goes on
_log = get_logger("state")


class SharedState:
    """Tensors that all members of a run hold alike.

    Args:
        tensors: names to numpy arrays, torch tensors, numbers, nested dicts and lists of them, and
            objects with `state_dict` and `load_state_dict` (modules, optimizers, schedulers).
            Borrowed for the life of the state; received values are written in place.  None and
            strings are taken to be alike everywhere.
        apply: `apply(tensors, *results)` makes revision r + 1 of r; the same bits wherever it gets
            the same results.  With it, newcomers catch up by what was committed meanwhile.
        hashing: "xxh3-128" finds chance, at memory speed; "blake3" also malice.
        pace: the part of its time in which a donor sends while training goes on; 1 does not wait.
        hold_s: how long, in seconds, members may wait in a newcomer's first step for what it lacks
            then; None: 1 s, and as long as it takes the newcomer to hash the state four times.  A
            newcomer asks to come in when that is expected to take half as long, and is out again
            after it (`progress`, CannotCatchUp).
        results_bytes_max: committed results that are kept for newcomers under way; None four times
            as many as the state has bytes.

    Raises:
        UsageError: a value cannot be shared; names it.
    """

    def __init__(
        self,
        tensors: Mapping[str, Any],
        *,
        apply: Callable[..., None] | None = None,
        hashing: str = "xxh3-128",
        pace: float = PACE,
        hold_s: float | None = None,
        results_bytes_max: int | None = None,
    ) -> None:
        if not 0 < pace <= 1:
            raise UsageError(f"pace is above 0 and at most 1, not {pace!r}")
        if hold_s is not None and not 0 < hold_s < float("inf"):
            raise UsageError(f"hold_s is a number of seconds above 0, not {hold_s!r}")
        self.tensors = tensors
        self.apply = apply
        self.hashing = hashing_named(hashing)
        self.pace = pace
        self.hold_s = None if hold_s is None else float(hold_s)
        self.hold_bytes = 0  # members wait longer than hold_s for so much, at the way's pace
        self.hold_s_max = HOLD_S_MAX  # but not longer than this
        self.progress: Progress | None = None
        """How far this process is on its way to the members' state; None if it is on none."""
        cells, self._holders = cells_of(tensors)
        self.layout = Layout.of(cell.entry for cell in cells)
        self._cells = sorted(cells, key=lambda cell: cell.entry)
        self._revision = 0
        self._lineage = 0
        self._synced = False
        self._step = -1  # the last one that made a revision
        self._lock = threading.RLock()
        self._writer = threading.RLock()
        self._sequence = 0
        self._known: tuple[int, bytes, bytes] | None = None  # (sequence, digests, root)
        self._pins: list[Pin] = []
        self._followers = 0  # newcomers that want what is committed from now on
        self._results: OrderedDict[int, Results] = OrderedDict()
        self._results_bytes_max = (
            4 * self.layout.byte_count if results_bytes_max is None else results_bytes_max
        )
        self.on_update: Callable[[], None] | None = None
        self.torn = False
        """Whether a fetch or restore that broke off has left parts of a revision in the memory."""

    def __repr__(self) -> str:
        count, size = len(self.layout.entries), self.layout.byte_count
        return f"<SharedState: revision {self._revision}, {count} tensors, {size} bytes>"

    @property
    def revision(self) -> int:
        """How many committed steps have made this state."""
        return self._revision

    @property
    def lineage(self) -> int:
        """The unbroken history that the revision counts; 0 before the first sync."""
        return self._lineage

    @property
    def synced(self) -> bool:
        """Says whether this process holds what the run's members hold."""
        return self._synced

    # ---- the caller's updates

    @contextlib.contextmanager
    def update(self, committed: Step | Work) -> Iterator[None]:
        """The block in which the caller makes revision r + 1, by a step that was committed.

        Raises:
            UsageError: the step is not committed, or it, or a later one, has made a revision
                already; nothing has changed.  What the block raises goes through, and the revision
                stays: the memory is then for a sync to repair.
        """
        with self._updating(number_of_committed(committed)):
            yield

    @contextlib.contextmanager
    def _updating(self, number: int) -> Iterator[None]:
        if number <= self._step:
            raise UsageError(
                f"step {number} cannot make a revision: step {self._step} has made one"
            )
        with self.writing():
            yield
            with self._lock:
                self._step = number
                self._revision += 1
        if self.on_update is not None:
            self.on_update()

    def advance(self, committed: Step | Work, *results: Any) -> None:
        """Makes revision r + 1 by `apply`, from what a committed step has brought.

        Args:
            committed: the step, or the work of a stand-alone operation.
            results: arrays, alike on all members; kept (copied) while a newcomer may need them.

        Raises: as `update`, and UsageError if the state has no `apply`.
        """
        if self.apply is None:
            raise UsageError("this state has no apply=; change it inside `with state.update(step)`")
        apply = self.apply
        self.advance_by(
            number_of_committed(committed), lambda: apply(self.tensors, *results), results
        )

    def advance_by(self, step: int, change: Callable[[], None], results: tuple[Any, ...]) -> None:
        """As `advance`, for the library's own front ends: `change` does to the memory what `apply`
        does with these results.  What it raises before it writes leaves the memory as it was."""
        kept = self._keep(results)
        before = self._revision
        with self._updating(step):
            change()
        with self._lock:
            if kept is not None:
                self._results[before] = kept
                while sum(r.byte_count for r in self._results.values()) > self._results_bytes_max:
                    self._results.popitem(last=False)

    def _keep(self, results: tuple[Any, ...]) -> Results | None:
        with self._lock:
            if not self._pins and not self._followers:
                self._results.clear()
                return None
        cells, _ = cells_of({f"{i:06}": result for i, result in enumerate(results)})
        content = copies_of([cell.memory for cell in cells])
        if content is None:
            return None  # newcomers fetch what differs instead
        return Results(Layout.of(cell.entry for cell in cells), content)

    def root(self) -> bytes:
        """Returns the root of the hash tree over the memory as it is now.

        Cost: one pass over the state at memory speed.
        """
        return self.survey()[1]

    # ---- within the library

    def root_in_force(self) -> bytes:
        """As `root`, which was hashed already if the memory was not written to since."""
        with self._writer, self._lock:
            return self._in_force()[2]

    def _in_force(self) -> tuple[int, bytes, bytes]:
        """Sequence, digests and root of the memory as it is; the caller holds both locks."""
        if self._known is None or self._known[0] != self._sequence:
            self.survey()
        assert self._known is not None
        return self._known

    def bind(self) -> None:
        """A new run counts its steps anew."""
        with self._lock:
            self._step, self._synced = -1, False

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """The only way to the memory: copies what is pinned, then tells readers that it changes."""
        with self._writer:
            with self._lock:
                self._save_pins()
                self._sequence += 1
            try:
                yield
            finally:
                with self._lock:
                    self._sequence += 1

    @contextlib.contextmanager
    def all_or_nothing(self) -> Iterator[Callable[[], None]]:
        """As `writing`, and all is put back unless the block calls what it is given.

        Without memory for a copy nothing can be put back: then the state is `torn`.
        """
        kept: list[bool] = []
        with self.writing():
            put_back = self.copied()
            try:
                yield lambda: kept.append(True)
            finally:
                self.torn = not kept and (self.torn or put_back is None)
                if not kept and put_back is not None:
                    put_back()

    def copied(self) -> Callable[[], None] | None:
        """Copies the memory; returns what puts it back, with its revision; None without room."""
        self.pull()
        before = copies_of(self.memories)
        known = self.torn, self._revision, self._lineage

        def put_back() -> None:
            with self.writing():
                for memory, content in zip(self.memories, before or (), strict=True):
                    memory[:] = content
                self.push()
                self.torn, self._revision, self._lineage = known

        return None if before is None else put_back

    @property
    def memories(self) -> list[Bytes]:
        """Of all tensors, in the layout's order; written to inside `writing` only."""
        return [cell.memory for cell in self._cells]

    def _save_pins(self) -> None:
        copied = sum(pin.copies is not None and not pin.precious for pin in self._pins)
        for pin in self._pins:
            if pin.copies is not None or pin.lost:
                continue
            if copied >= PIN_COPIES_MAX and not pin.precious:
                pin.lost = True  # not an older one: so those before it come to their end
                continue
            copied += not pin.precious
            pin.copies = copies_of(self.memories)
            if pin.copies is None:
                pin.lost = True  # who fetches it begins anew, with what has changed
                _log.warning("no memory to keep revision %d for a newcomer", pin.revision)

    def survey(self) -> tuple[bytes, bytes]:
        """Hashes the memory as it is; returns the leaves' digests and the root."""
        with self._writer:
            self.pull()
            digests = self.hash()
            root = root_of(self.layout, digests, self.hashing)
            with self._lock:
                self._known = (self._sequence, digests, root)
        return digests, root

    @property
    def kind(self) -> bytes:
        """A digest of what must be alike before contents can be compared."""
        return xxh3(self.layout.digest + self.hashing.name.encode())

    def pull(self) -> None:
        """Brings twins and numbers up to date with the caller's values."""
        for holder in self._holders:
            holder.refresh()
        for cell in self._cells:
            if cell.pull is not None:
                cell.pull()

    def hash(self) -> bytes:
        """Returns the digests of all leaves of the memory as it is."""
        block = self.hashing.blocks
        return b"".join(
            block(c.buffer.address, c.buffer.byte_count, 1 << 20)
            for c in self._cells
            if c.buffer.byte_count
        )

    def push(self) -> None:
        """Hands what was written to the caller's values."""
        for cell in self._cells:
            if cell.push is not None:
                cell.push()
        for holder in self._holders:
            holder.load()

    def memory_of(self, leaf: Leaf) -> Bytes:
        """The memory of one leaf; written to inside `writing` only."""
        return self._cells[leaf.entry].memory[leaf.offset : leaf.offset + leaf.byte_count]

    def adopt(self, revision: int, lineage: int) -> None:
        """The memory holds what the run's members hold."""
        with self._lock:
            if self._revision != revision or self._lineage != lineage:
                self._results.clear()
            self._revision, self._lineage, self._synced = revision, lineage, True
            self.torn = False

    def restored(self, revision: int, lineage: int) -> None:
        """The memory holds what a checkpoint held; no member has agreed to it yet."""
        with self._lock:
            self._revision, self._lineage, self._synced = revision, lineage, False

    def applied(self, revision: int) -> None:
        """A newcomer has replayed one committed update."""
        with self._lock:
            self._revision = revision

    # ---- donors

    def pin(self, *, precious: bool = False) -> Pin:
        """Returns the revision in force, kept until `unpin`.  Waits while it is being written."""
        with self._writer, self._lock:
            sequence, digests, root = self._in_force()
            for pin in self._pins:
                if (pin.revision, pin.root) == (self._revision, root) and not pin.lost:
                    pin.users += 1
                    pin.precious |= precious
                    return pin
            pin = Pin(self._revision, self._lineage, root, digests, sequence, users=1)
            pin.precious = precious
            self._pins.append(pin)
            return pin

    def unpin(self, pin: Pin) -> None:
        with self._lock:
            pin.users -= 1
            if pin.users == 0:
                self._pins.remove(pin)

    def read(self, pin: Pin, leaf: Leaf, scratch: Bytes | None) -> Bytes | None:
        """Returns the bytes of a pinned leaf, None if they are lost.

        Args:
            scratch: where they are copied to if they still lie in the state's own memory, which
                may change at any moment; None if the caller knows that it does not.
        """
        if pin.copies is None and self.holds(pin):
            if scratch is None:
                return self.memory_of(leaf)
            scratch[: leaf.byte_count] = self.memory_of(leaf)
        with self._lock:
            if pin.copies is not None:
                found = pin.copies[leaf.entry]
                return found[leaf.offset : leaf.offset + leaf.byte_count]
            return None if scratch is None or not self.holds(pin) else scratch[: leaf.byte_count]

    def memory_named(self, name: str) -> Bytes:
        """The memory of one tensor; written to inside `writing` only."""
        return next(cell.memory for cell in self._cells if cell.entry.name == name)

    def holds(self, pin: Pin) -> bool:
        """Says whether this pin's bytes can still be had, from memory or a copy."""
        with self._lock:
            return not pin.lost and (pin.copies is not None or pin.sequence == self._sequence)

    def follow(self) -> None:
        with self._lock:
            self._followers += 1

    def unfollow(self) -> None:
        with self._lock:
            self._followers -= 1

    def results_of(self, revision: int) -> Results | None:
        with self._lock:
            return self._results.get(revision)
