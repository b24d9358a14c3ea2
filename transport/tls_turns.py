"""What comes before a TLS handshake at any door of Python's: a first byte, and one's turn.

Until a connection has said something it costs a socket and a task; then it waits for its turn among
all that do (`HandshakePace` decides), and only then a processor's time is spent on it.  At no door
more wait than have places, so a turn comes long before who dials gives this try up: after 3 s
(`transport/dial.py`), or by the time-out its caller gave; it tries again until its own deadline.

Invariant: who stops waiting gives up its turn; nobody waits longer than it was given.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from typing import Final

from pccl.base.clock import Clock
from pccl.base.errors import DeadlineExceeded
from pccl.transport.handshake_pace import HandshakePace, Prefer

PEEK_BYTES: Final = 8192


class HandshakeTurns:
    """Those who wait at one door; belongs to one event loop."""

    def __init__(self, *, rate_per_s: float, burst: float, clock: Clock, prefer: Prefer) -> None:
        self._pace = HandshakePace(rate_per_s=rate_per_s, burst=burst, now_s=clock())
        self._clock = clock
        self._prefer = prefer
        self._turns: dict[int, asyncio.Future[None]] = {}
        self._tickets = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, host: str, patience_s: float) -> None:
        """Returns when one that comes from `host` may begin.

        Raises:
            DeadlineExceeded: not within its patience.
        """
        ticket = next(self._tickets)
        turn = self._turns[ticket] = asyncio.get_running_loop().create_future()
        self._pace.ask(ticket, host)
        self._heed()
        try:
            async with asyncio.timeout(patience_s):
                await turn
        except TimeoutError as error:
            raise DeadlineExceeded("too many wait for a handshake here") from error
        finally:
            self._turns.pop(ticket, None)
            self._pace.forget(ticket)

    def _heed(self) -> None:
        """Sees to it that the next one who may begin is let go; one per turn of the loop, so that
        members are heard between two."""
        if self._timer is None and (wait_s := self._pace.wait_s(self._clock())) is not None:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._let_one_go)

    def _let_one_go(self) -> None:
        self._timer = None
        ticket = self._pace.grant(self._clock(), self._prefer)
        if ticket is not None and not self._turns[ticket].done():
            self._turns[ticket].set_result(None)
        self._heed()


async def first_bytes(connection: socket.socket) -> bytes:
    """Waits until a connection has brought something, and leaves it there; b"" if it ended."""
    loop = asyncio.get_running_loop()
    while True:
        with contextlib.suppress(BlockingIOError, InterruptedError):
            return connection.recv(PEEK_BYTES, socket.MSG_PEEK)
        ready = loop.create_future()
        loop.add_reader(connection.fileno(), _wake, ready)
        try:
            await ready
        finally:
            loop.remove_reader(connection.fileno())


def remote_host(connection: socket.socket) -> str:
    """Where a connection comes from; "" if it has ended."""
    try:
        name = connection.getpeername()
    except OSError:
        return ""
    return str(name[0]) if isinstance(name, tuple) else ""


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
