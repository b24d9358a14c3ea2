"""What a Communicator, its steps and its works share: an engine, an agent, and the open steps.

Steps get their numbers in program order: beginning one is serialised by a lock, so that threads of
one process agree on the order; that all processes use the same order is the program's duty.

Invariant: `close` may be called at any moment from any thread, any number of times; after it
nothing of this session runs, and no memory of the caller is touched.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from pccl.base import forks
from pccl.base.clock import Deadline
from pccl.base.config import LAN
from pccl.base.errors import (
    Closed,
    DeadlineExceeded,
    Excluded,
    Forked,
    Left,
    PcclError,
    UsageError,
)
from pccl.base.log import get_logger
from pccl.collectives.buffers import Buffer
from pccl.collectives.nonfinite import NonFinite, NonFiniteCounts
from pccl.collectives.placed import NOTHING
from pccl.membership.agent import MemberAgent
from pccl.membership.member import GOODBYE_S
from pccl.outcome import Peer
from pccl.ticket import Ticket
from pccl.transport.engine import error_of
from pccl.transport.engine_api import BegunStep, EngineLike

if TYPE_CHECKING:
    from pccl.transfer import Transfer

WAIT_QUIET_S = 5.0  # then a newcomer's log says what it waits for
REFUSED_S = 10.0  # at the gate, for a call that was refused: what a flush takes, and more
OPEN_STEPS_MAX = 16  # the engine holds 64; more in flight than this only costs memory
TRANSFERS_LOOKED_AT = 64  # so many open ones before those that have ended are looked for
NAME_CHARACTERS_MAX = 256  # what the coordinator accepts as an entry's name
_log = get_logger("face")


class Keeper(Protocol):
    """Brings a newcomer's state up to date, before it comes in and as it does."""

    def before_entry(self, name: str, timeout_s: float) -> None: ...

    def after_entry(self, ticket: Ticket) -> bool:
        """False: this step is over without this process, which tries to come in again."""
        ...

    def close(self) -> None: ...


class Session:
    """One process's seat in a run.  Its methods may be called from any thread."""

    def __init__(
        self, engine: EngineLike, agent: MemberAgent, peer_id: Peer, *, step_timeout_s: float
    ) -> None:
        self.engine = engine
        self.agent = agent
        self.peer_id = peer_id
        self.step_timeout_s = step_timeout_s
        self._generation = forks.generation()
        self._begin_lock = threading.Lock()
        # Re-entrant: a signal handler or a finalizer may close while this thread is closing.
        self._close_lock = threading.RLock()
        self._closed: str | None = None
        self._open: dict[int, Ticket] = {}
        self._transfers: set[Transfer] = set()
        self._look_at = TRANSFERS_LOOKED_AT
        self._next_step = 0
        self.on_close: Callable[[], None] | None = None
        self.keeper: Keeper | None = None
        self.exclusions = 0
        """How often this peer was found out of the view that it had been in."""
        self._peers: dict[bytes, Peer] = {bytes(peer_id): peer_id}
        self.nonfinite = NonFiniteCounts()
        self._count_lock = threading.Lock()

    @property
    def closed(self) -> bool:
        return self._closed is not None or forks.generation() != self._generation

    @property
    def data_host(self) -> str:
        """The address by which the others reach this process; "" if the coordinator sees it."""
        seat = self.agent.seat
        return "" if seat is None else seat.data_host

    @property
    def decision_s(self) -> float:
        """How long to wait for the members' decision once a step's own deadline is over."""
        admitted = self.agent.standing.admitted
        return LAN.decision_s if admitted is None else admitted.decision_s

    def count_nonfinite(self, elements: int, policy: NonFinite) -> None:
        """Takes note of a contribution that held NaN or infinities."""
        with self._count_lock:
            self.nonfinite = self.nonfinite.with_one_more(elements, policy)

    def was_excluded(self) -> None:
        """Takes note that the others have gone on without this peer."""
        with self._count_lock:
            self.exclusions += 1

    def check(self) -> None:
        """Raises what every call on this session now raises, if it is over."""
        if forks.generation() != self._generation:
            raise Forked()
        if self._closed is not None:
            raise Closed(self._closed)
        standing = self.agent.standing
        if standing.ended is not None:
            raise error_of(standing.ended.code, standing.ended.text, deciding=False)
        if standing.failure is not None:
            raise PcclError(f"the member agent failed: {standing.failure}") from standing.failure

    @property
    def next_step(self) -> int:
        """The number after that of the newest step that has begun here."""
        return self._next_step

    @contextlib.contextmanager
    def told_if_refused(self, op: str) -> Iterator[None]:
        """A call of all members that is refused in here is a step without operations on this peer,
        so that those who have posted something are told at once, and all stay at the same step.
        A newcomer has nobody to tell."""
        try:
            yield
        except Exception:
            with contextlib.suppress(PcclError):
                if self.engine.view().rank >= 0:
                    self.begin(op, self.step_timeout_s, REFUSED_S).seal()
            raise

    def begin(self, name: str, timeout_s: float, gate_s: float | None = None) -> Ticket:
        """Passes the gate of an entry; returns the step.

        Args:
            gate_s: for the gate alone; None as long as for the step.

        Raises:
            DeadlineExceeded: no view let this peer in within `timeout_s`; nothing has begun.
            Left: this peer has left, as it had asked to; its earlier steps are decided.
            Excluded, WorldTooSmall: as the run's policies say; nothing has begun.
            UsageError: the name is empty or too long.
        """
        self.check()
        if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARACTERS_MAX:
            raise UsageError(f"a step's name has 1 to {NAME_CHARACTERS_MAX} characters: {name!r}")
        try:
            deadline = Deadline(timeout_s)
            while True:
                if self.keeper is not None:
                    self.keeper.before_entry(name, deadline.remaining_s())
                try:
                    own_s = timeout_s if gate_s is None else gate_s
                    ticket = self._begin(name, timeout_s, own_s)
                except Excluded:
                    self.was_excluded()
                    raise
                if self.keeper is None or self.keeper.after_entry(ticket):
                    return ticket
        except PcclError:
            raise
        except BaseException as error:  # Ctrl-C at the gate
            self.leave_after(error)
            raise

    def _begin(self, name: str, timeout_s: float, gate_s: float) -> Ticket:
        deadline = Deadline(gate_s)
        waited = not self._begin_lock.acquire(blocking=False)
        if waited and not self._begin_lock.acquire(timeout=gate_s):
            raise DeadlineExceeded(f"another thread still begins a step after {gate_s:g} s")
        try:
            if waited:
                self.check()
            if self._open:
                self._make_room(deadline)
            begun = self._pass_gate(name, deadline)
            self._next_step = begun.step + 1
            own = deadline if gate_s == timeout_s else Deadline(timeout_s)
            ticket = Ticket(self, name, begun, timeout_s, own)
            self._open[begun.step] = ticket
            return ticket
        except Left:
            self._finish_open(deadline)
            raise
        except DeadlineExceeded as error:
            raise DeadlineExceeded(
                f"step {name!r} did not begin within {gate_s:g} s: {self._why_not_begun(error)}"
            ) from error
        finally:
            self._begin_lock.release()

    def _pass_gate(self, name: str, deadline: Deadline) -> BegunStep:
        """A newcomer that waits for long is told once, in the log, what for."""
        quiet_s = min(WAIT_QUIET_S, deadline.remaining_s())
        try:
            return self.engine.begin_step(name, quiet_s)
        except DeadlineExceeded:
            if deadline.remaining_s() <= 0:
                raise
        if waits := self._waits():
            _log.warning("step %r has not begun for %g s: %s", name, quiet_s, waits)
        return self.engine.begin_step(name, deadline.remaining_s())

    def _waits(self) -> str:
        """Says what this peer waits for, if it is a newcomer."""
        return self.agent.standing.waits if self.engine.view().rank < 0 else ""

    def _why_not_begun(self, error: DeadlineExceeded) -> str:
        view = self.engine.view()
        if not view.paused:
            why = f"; {waits}" if (waits := self._waits()) else ""
            return f"{error}{why}; a newcomer enters when the members reach an entry of that name"
        return (
            f"the run is paused: {len(view.members)} in, fewer than min_world; steps run again "
            "when enough have come in"
        )

    def _make_room(self, deadline: Deadline) -> None:
        """Settles what is decided; with too many steps in flight, waits for the oldest."""
        for ticket in list(self._open.values()):
            if ticket.sealed:
                ticket.poll()
        while len(self._open) >= OPEN_STEPS_MAX:
            oldest = next((t for t in list(self._open.values()) if t.sealed), None)
            if oldest is None:
                raise UsageError(
                    f"{len(self._open)} steps are open in this process; leave their blocks first"
                )
            if not oldest.wait(deadline.remaining_s()):
                raise DeadlineExceeded(f"{len(self._open)} steps are still in flight")

    def _finish_open(self, deadline: Deadline) -> None:
        """Waits for the steps before the one at which this peer leaves; what becomes of them, those
        who hold their works are told."""
        for ticket in list(self._open.values()):
            if ticket.sealed:
                with contextlib.suppress(PcclError):
                    ticket.wait(min(deadline.remaining_s(), ticket.deadline.remaining_s()))

    def _decided_below(self) -> int:
        """Returns the first step of which this peer does not know what became."""
        undecided = [t.begun.step for t in list(self._open.values()) if not t.decided]
        return min(undecided, default=self._next_step)

    def check_free(self, source: Buffer, target: Buffer) -> None:
        """Raises UsageError if an operation in flight uses this memory in conflict."""
        for ticket in self.users_of(source, target):
            raise UsageError(
                "the memory of this operation is in use by another one in flight "
                f"(step {ticket.begun.step}); wait for it, or use separate arrays"
            )
        for transfer in list(self._transfers):
            reads, writes = transfer.reads, transfer.writes
            conflict = target.overlaps(writes) or target.overlaps(reads) or source.overlaps(writes)
            if conflict and not transfer.done():
                raise UsageError(f"the memory of this operation is in use: {transfer!r}")

    @property
    def busy(self) -> bool:
        """Says whether steps of this process are in flight."""
        return bool(self._open)

    def in_flight(self) -> frozenset[object]:
        """Returns the steps and messages of this process that are not decided."""
        steps = [ticket for ticket in list(self._open.values()) if not ticket.poll()]
        return frozenset((*steps, *(t for t in list(self._transfers) if not t.done())))

    def users_of(self, source: Buffer, target: Buffer) -> list[Ticket]:
        """Returns the steps in flight whose operations use this memory in conflict."""
        if not self._open:
            return []
        return [
            ticket
            for ticket in list(self._open.values())
            if ticket.spans.conflict(source, target) and not ticket.poll()
        ]

    def wait_open(self, timeout_s: float) -> None:
        """Gives steps in flight, and messages on their way from here, so much time; what becomes of
        them, those who hold their works are told."""
        deadline = Deadline(timeout_s)
        self._finish_open(deadline)
        for transfer in list(self._transfers):
            if transfer.reads is not NOTHING:  # what nobody sends may never come
                with contextlib.suppress(PcclError):
                    transfer.wait(deadline.remaining_s())

    def keep_transfer(self, transfer: Transfer) -> None:
        """Keeps the memory of a message until it has ended, whoever drops its handle."""
        self._transfers.add(transfer)
        if len(self._transfers) < self._look_at:
            return
        for known in list(self._transfers):
            known.done()
        self._look_at = max(TRANSFERS_LOOKED_AT, 2 * len(self._transfers))

    def forget_transfer(self, transfer: Transfer) -> None:
        self._transfers.discard(transfer)

    def forget(self, ticket: Ticket) -> None:
        self._open.pop(ticket.begun.step, None)
        self.agent.steps_decided += 1

    def peers(self, ids: Iterable[bytes]) -> tuple[Peer, ...]:
        known = self._peers
        found = []
        for one in ids:
            peer = known.get(one)
            if peer is None:
                peer = known[one] = Peer(one)
            found.append(peer)
        return tuple(found)

    def leave(self, deadline_s: float, reason: str) -> None:
        """Asks to be planned out of the run; returns at once."""
        self.engine.leaving = True
        self.agent.leave(deadline_s, reason)

    def leave_after(self, error: BaseException) -> None:
        """The program broke off inside a step: this peer leaves, the others go on without it."""
        name = type(error).__name__
        self.close(f"the communicator closed after {name} inside a step; connect again")

    def close(self, reason: str = "") -> None:
        """Leaves the run and frees everything; idempotent, bounded, never raises PcclError.

        After an error as after success; `reason` is what later calls are told.
        """
        if forks.generation() != self._generation:
            return  # a fork: the run is the parent's, and its locks may be held for ever
        with self._close_lock:
            if self._closed is not None:
                return
            self._closed = reason or "the communicator is closed; connect again"
            try:
                if self.keeper is not None:
                    self.keeper.close()
                if self.on_close is not None:
                    self.on_close()
                self.agent.stop(reason or "closed", GOODBYE_S, self._decided_below())
            finally:
                with contextlib.suppress(PcclError):
                    self.engine.close()
                self._open.clear()
                self._transfers.clear()
