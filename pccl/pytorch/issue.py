"""From tensors to a step: what an operation is posted with, and the order in which steps begin.

A torch call is one step: of one operation, or of several for coalesced calls and lists.  The world
of a static group never changes, so an operation is placed in it before its step begins, and what
does not fit is refused with nothing sent.  Where it may have,
in an elastic group, the step ends empty.

Invariant: steps begin in the order of the calls; an operation whose memory another one in flight
still uses begins when that one is decided, as if calls ran one after the other.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from pccl.base.errors import UsageError
from pccl.collectives.buffers import Buffer, SpanSet
from pccl.collectives.placed import Placed, Request, Seat
from pccl.pytorch.errors import StaleView
from pccl.pytorch.meaning import Meaning, tag_of
from pccl.pytorch.ordering import await_users
from pccl.session import Session
from pccl.standalone import end_empty
from pccl.step import CheckedAllReduce
from pccl.ticket import Ticket
from pccl.work import Work


class Posting(Protocol):
    """One operation with its memory."""

    @property
    def source(self) -> Buffer: ...
    @property
    def target(self) -> Buffer: ...
    @property
    def seat(self) -> Seat | None: ...  # where it was placed, if its meaning depends on that
    @property
    def meaning(self) -> Meaning | None: ...  # what the engine does not compare of it
    def post(self, ticket: Ticket, tag: int, last: bool) -> None: ...


class AllReducePosting:
    """An all-reduce, which the engine takes by a door of its own."""

    __slots__ = ("_checked", "meaning", "source", "target")
    seat = None

    def __init__(self, checked: CheckedAllReduce, meaning: Meaning) -> None:
        self._checked = checked
        self.meaning = meaning
        self.source = checked.source
        self.target = checked.target

    def post(self, ticket: Ticket, tag: int, last: bool) -> None:
        ticket.post(self._checked.descriptor, self.source, self.target, tag, 1.0, last)


class PlacedPosting:
    """Any other operation, placed in the group's fixed world."""

    __slots__ = ("_placed", "meaning", "seat", "source", "target")

    def __init__(self, request: Request, seat: Seat, meaning: Meaning | None = None) -> None:
        self._placed: Placed = request.place(seat)
        self.meaning = meaning
        self.seat = seat
        self.source = self._placed.source
        self.target = self._placed.target

    def post(self, ticket: Ticket, tag: int, last: bool) -> None:
        ticket.post_collective(self._placed, tag, last)


class Issuer:
    """Begins the steps of one group.  `issue` may be called from any thread."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()

    def issue(self, name: str, postings: Sequence[Posting], timeout_s: float) -> Work:
        """Begins a step, posts all of its operations and says that none follows.

        Raises:
            UsageError: two of the operations conflict in memory; nothing was sent.
            PcclError: the step could not begin; nothing was sent.
            StaleView: it began in another view than the operations were placed in.
        """
        session = self._session
        if len(postings) > 1:
            _require_apart(postings)
        first_tag = tag_of([posting.meaning for posting in postings])
        with self._lock:
            for posting in postings:
                await_users(session, posting.source, posting.target, timeout_s)
            ticket = session.begin(name, timeout_s)
            last = len(postings) - 1
            if any([p.seat is not None and p.seat != ticket.seat for p in postings]):
                end_empty(ticket)  # as all others do, whose view has changed, too
                raise StaleView(
                    f"the group's ranks are of an older view, of which {ticket.seat.world_size} "
                    "members are left",
                    op=name,
                    epoch=ticket.begun.epoch,
                )
            try:
                for number, posting in enumerate(postings):
                    posting.post(ticket, number or first_tag, number == last)
            except BaseException as error:
                session.leave_after(error)  # begun, but never to be completed by this rank
                raise
        return Work(ticket, None)

    def refuse(self, name: str, timeout_s: float) -> None:
        """Begins a step that has no operation here, for a call that cannot be posted.

        Raises:
            PcclError: the step could not begin.
        """
        with self._lock:
            self._session.begin(name, timeout_s).seal()


def _require_apart(postings: Sequence[Posting]) -> None:
    spans = SpanSet()
    for posting in postings:
        if spans.conflict(posting.source, posting.target):
            raise UsageError(
                "two tensors of one coalesced call share memory; give each operation its own"
            )
        spans.add(posting.source, posting.target)
