"""One group's run: its communicator, the coordinator it may host, and what its errors mean.

    ALIVE --a rank is lost--> OVER    every later call raises StaleView at once
      └────abort, shutdown──> OVER    every later call raises Aborted

Works hold the Run, and the ProcessGroup holds it too; so a group that is dropped can be closed
while its works are still in flight.

Invariant: a Run that is over stays over, for the reason that came first.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pccl import messaging
from pccl.base.errors import (
    CoordinatorLost,
    Evicted,
    PcclError,
    UsageError,
    ViewChanged,
    WorldTooSmall,
)
from pccl.collectives.placed import Seat
from pccl.communicator import Communicator
from pccl.outcome import Peer
from pccl.pytorch import hosting
from pccl.pytorch.errors import Aborted, PcclDistError, PeerLost, StaleView, TimedOut, kind_of
from pccl.pytorch.hosting import Hosted
from pccl.pytorch.issue import Issuer, Posting
from pccl.pytorch.options import Options
from pccl.pytorch.wording import GONE, GROUP_OVER, gone, in_torchs_terms
from pccl.work import Work

DRAIN_S = 2.0  # for operations that nobody has waited for when the group is shut down


@dataclass(frozen=True, slots=True)
class Place:
    """Which group this is, and which rank this process has in it."""

    rank: int
    size: int
    group_id: str


class Queue(Protocol):
    """Calls of this group that have not begun."""

    def drain(self, timeout_s: float) -> None: ...
    def close(self) -> None: ...


class Run:
    """Made by `bootstrap`.  Its methods may be called from any thread."""

    def __init__(
        self,
        place: Place,
        communicator: Communicator,
        options: Options,
        coordinator: Hosted | None,
        members: tuple[Peer, ...] | None = None,
        *,
        hosted: bool = True,
    ) -> None:
        """
        Args:
            hosted: the coordinator runs in the process of rank 0, and not by itself.
        """
        self.place = place
        self.process_id = os.getpid()
        self.options = options
        self.communicator = communicator
        self.seat = Seat(place.rank, place.size, bytes(communicator.peer_id))
        self._members = members or communicator.view.members
        self._coordinator = coordinator
        self._hosted = hosted
        self._issuer = Issuer(communicator.session)
        self._lock = threading.Lock()
        self._over: PcclDistError | None = None
        self.queues: list[Queue] = []

    @property
    def alive(self) -> bool:
        return self._over is None

    @property
    def whole(self) -> bool:
        """Says whether no rank is known to be lost."""
        return self._over is None and not self._missing()

    @property
    def busy(self) -> bool:
        """Says whether steps of this process are in flight."""
        return self.communicator.session.busy

    def peer_of(self, rank: int) -> Peer:
        """Raises UsageError if the group has no such rank."""
        if not 0 <= rank < len(self._members):
            raise UsageError(f"the group has ranks 0 to {len(self._members) - 1}, not {rank}")
        return self._members[rank]

    def rank_of(self, peer: bytes) -> int:
        return self._members.index(Peer(peer))

    def issue(self, op: str, postings: Sequence[Posting], timeout_s: float) -> Work:
        """Begins a step.  Raises PcclDistError if it could not."""
        self.check(op)
        try:
            return self._issuer.issue(op, postings, timeout_s)
        except StaleView as stale:
            said = self._lost(StaleView, stale.reason, op)
            self._end(said)
            raise said from stale
        except PcclError as error:
            raise self.translate(error, op) from error

    def refuse(self, op: str, timeout_s: float) -> None:
        """Lets the others know that a call of theirs has no counterpart here.  Raises nothing."""
        with contextlib.suppress(PcclError, PcclDistError):
            self.check(op)
            self._issuer.refuse(op, timeout_s)

    def refuse_message(self, sends: bool, other: int | None, tag: int, timeout_s: float) -> None:
        """Lets the other end of a message know that its call has no counterpart.  Raises nothing.

        Args:
            other: its rank; None receives from any.
        """
        with contextlib.suppress(PcclError):
            end = messaging.FROM_ANY if other is None else self.peer_of(other)
            messaging.refuse(self.communicator.session, end, tag, sends, timeout_s)

    def check(self, op: str) -> None:
        """Raises what every call raises now, if the group is over."""
        over = self._over
        if over is None:
            return
        if isinstance(over, Aborted):
            raise Aborted(over.reason, op=op)
        raise StaleView(
            f"called after the loss of a rank: {over.reason}",  # which says that this is the end
            op=op,
            epoch=over.epoch,
            ranks=over.ranks,
        )

    def translate(self, error: BaseException, op: str) -> PcclDistError:
        """Returns an error of the library, or of torch, as one of this backend's."""
        if isinstance(error, PcclDistError):
            return error
        kind = kind_of(error)
        over = self._over
        if isinstance(over, Aborted) and kind.ends_group:
            return Aborted(over.reason, op=op)  # whatever its own end looks like from below
        if kind is Aborted and over is not None:  # this end has closed because of the loss
            return PeerLost(over.reason, op=op, epoch=over.epoch, ranks=over.ranks)
        if kind is PcclDistError and self._missing():
            kind = PeerLost
        said: PcclDistError
        text = in_torchs_terms(str(error), self._members)
        if kind is TimedOut:
            if "was not done after" in text:  # whom it waited for, no rank can know for all
                text += "; that rank's time ran out, but it may be another one that did not call it"
            said = kind(f"its timeout is over: {text}", op=op, epoch=self._epoch())
        elif not issubclass(kind, PeerLost):
            said = kind(text, op=op, epoch=self._epoch())
        else:
            said = self._lost(kind, error, op)
        if kind.ends_group:
            self._end(said)
        return said

    def _end(self, said: PcclDistError) -> None:
        with self._lock:
            self._over = self._over or said

    def absorb(self, error: BaseException, op: str) -> PcclDistError | None:
        """Returns what whoever waits for a failed operation is to be told; None: nothing, yet."""
        return self.translate(error, op)

    def _lost(
        self, kind: type[PcclDistError], error: BaseException | str, op: str
    ) -> PcclDistError:
        ranks = self._missing()
        if isinstance(error, Evicted):
            ranks, who = (self.place.rank,), "the others have given up this rank"
        elif ranks and not (self._hosted and isinstance(error, CoordinatorLost)):
            who = gone(ranks, self.place.size)
        elif self._hosted:
            ranks, who = ranks or (0,), "rank 0, whose process ran the coordinator, is gone"
        elif isinstance(error, CoordinatorLost):
            who = "the coordinator does not answer"
        else:
            who = "a rank is gone"
        # How many members a view takes is no concern of who has a group of so many ranks.
        counted = isinstance(error, (ViewChanged, WorldTooSmall))
        why = GONE if counted else in_torchs_terms(str(error), self._members)
        return kind(f"{who}: {why}; {GROUP_OVER}", op=op, epoch=self._epoch(), ranks=ranks)

    def lose_host(self, what: str, reason: str) -> None:
        """Ends the run: the process of rank 0 has ended, or is there, but does not run."""
        text = f"rank 0, whose process ran the coordinator, {what}: {reason}; {GROUP_OVER}"
        self._end(PeerLost(text, ranks=(0,)))
        self.communicator.session.close(reason)

    def host_is_in(self) -> bool:
        """False once rank 0 has left."""
        return 0 not in self._missing()

    def _missing(self) -> tuple[int, ...]:
        with contextlib.suppress(PcclError):
            now = set(self.communicator.view.members)
            return tuple(rank for rank, peer in enumerate(self._members) if peer not in now)
        return ()

    def _epoch(self) -> int | None:
        with contextlib.suppress(PcclError):
            return self.communicator.view.epoch
        return None

    # ---- the end

    def close(self, reason: str, *, drain_s: float = DRAIN_S) -> None:
        """Leaves the run; idempotent, bounded.  Operations in flight get `drain_s` to be decided,
        then they raise Aborted."""
        if self._over is None and drain_s > 0:
            for queue in self.queues:
                queue.drain(drain_s)
        with self._lock:
            first = self._over is None or not isinstance(self._over, Aborted)
            alive = self._over is None
            self._over = Aborted(reason)
            coordinator, self._coordinator = self._coordinator, None
        if first:
            session = self.communicator.session
            if alive and drain_s > 0:
                session.wait_open(drain_s)
            session.close(reason)
            self.communicator.close()
            for queue in self.queues:
                queue.close()
        if coordinator is not None:
            hosting.retire(coordinator)
