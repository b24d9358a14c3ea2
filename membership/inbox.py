"""What has arrived at a coordinator and waits to be decided: members' events before strangers'.

Two queues.  A connection is a stranger's until the coordinator has let it in; what members say, and
what the coordinator's own errands bring back, is taken first and all of it, strangers' events only
so many per turn.  So a crowd of newcomers, honest or not, delays a recovery by a bounded time.

Invariant: events of one connection keep their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from pccl.membership.events import ConnDown, ConnUp, Event, NativeFrame, PeerMessage

QUEUED_MAX: Final = 1024  # per queue; then readers pause, so that TCP pushes back on the senders
STRANGERS_PER_TURN: Final = 16  # a hello costs some 50 us


class Inbox:
    def __init__(self) -> None:
        self._members: deque[Event] = deque()
        self._strangers: deque[Event] = deque()
        self._waiting: dict[int, int] = {}  # connection: its events among the strangers'
        self._let_in: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._members or self._strangers)

    @property
    def has_members(self) -> bool:
        return bool(self._members)

    def is_full_for(self, conn: int) -> bool:
        """Says whether who reads this connection must wait."""
        queue = self._members if conn in self._let_in else self._strangers
        return len(queue) >= QUEUED_MAX

    def post(self, event: Event) -> None:
        conn = _connection(event)
        if conn is None or (conn in self._let_in and conn not in self._waiting):
            self._members.append(event)
        else:
            self._strangers.append(event)
            self._waiting[conn] = self._waiting.get(conn, 0) + 1

    def let_in(self, conn: int) -> None:
        """From the next event on this connection is a member's (or a learner's)."""
        self._let_in.add(conn)

    def members(self) -> Iterator[Event]:
        """Yields what to decide now; not what keeps coming, so that timers get a turn."""
        for _ in range(len(self._members)):
            yield self._taken(self._members.popleft())

    def strangers(self) -> Iterator[Event]:
        """Yields what may be decided after that; who takes it may stop at any event."""
        for _ in range(min(len(self._strangers), STRANGERS_PER_TURN)):
            event = self._strangers.popleft()
            conn = _connection(event)
            assert conn is not None
            self._waiting[conn] -= 1
            if self._waiting[conn] == 0:
                del self._waiting[conn]
            yield self._taken(event)

    def _taken(self, event: Event) -> Event:
        if isinstance(event, ConnDown):  # the number is never used again
            self._let_in.discard(event.conn)
        return event


def _connection(event: Event) -> int | None:
    match event:
        case ConnUp(conn, _) | ConnDown(conn) | PeerMessage(conn, _) | NativeFrame(conn, _):
            return conn
        case _:
            return None
