"""Takes connections off a listening port a few at a time, whatever stands in front of it.

asyncio's own server accepts as many connections as its backlog holds in one go, makes a transport
for each before anybody has looked at it, and stops accepting for a second when descriptors run
out.  Here a turn takes a bounded number and a rest follows, so that those who are in are heard
between two turns, and a crowd wakes this process once for many; a connection is looked at while it
costs no more than its socket; and one descriptor is kept in reserve, so that without any left
connections are still taken and closed, rather than left to fill the backlog that members have to
pass.

Invariant: at most TAKEN_PER_TURN sockets are accepted, and at most OPENED_PER_TURN of them handed
on, per listener and REST_S; none while the doors are shut.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Final

from pccl.transport.address import Address

BACKLOG: Final = 1024  # a whole run that comes back at once, behind as many strangers
TAKEN_PER_TURN: Final = 64  # some 10 us each, with looking at them
OPENED_PER_TURN: Final = 8  # some 150 us each
PEEK_BYTES: Final = 8192  # more than any first frame may have
REST_S: Final = 0.005  # a waking per connection costs several times what it does among others
RETRY_S: Final = 0.1  # without a descriptor in reserve
_SHORT: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

Take = Callable[[socket.socket, bytes | None], bool]
"""Is given a new connection, with what can be read from it already (b"": it has ended; None:
nothing yet), and owns it from then on; says whether it opened it rather than closed it."""


def serve(
    connection: socket.socket, run: Callable[[socket.socket], Coroutine[Any, Any, None]]
) -> asyncio.Task[None]:
    """Starts `run(connection)`, which closes it at its end, also when it is cancelled.  A task that
    is cancelled before its first step never runs, as in a crowd: then it is closed here."""
    begun = False

    async def whole() -> None:
        nonlocal begun
        begun = True
        await run(connection)

    def ended(task: asyncio.Task[None]) -> None:
        if not begun:
            connection.close()

    task = asyncio.get_running_loop().create_task(whole())
    task.add_done_callback(ended)
    return task


class Doors:
    """The listening sockets of one address; belongs to one event loop."""

    def __init__(self, take: Take, on_short: Callable[[], None]) -> None:
        """`on_short` is called for each connection that was closed for want of descriptors."""
        self._take = take
        self._on_short = on_short
        self._sockets: list[socket.socket] = []
        self._reserve: int | None = None
        self._shut = False
        self._resting: set[socket.socket] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self, address: Address) -> int:
        """Listens; returns the port (of the first, if the host is several addresses).

        Raises:
            OSError: the port is taken, or the host is not one of this machine.
        """
        self._loop = asyncio.get_running_loop()
        found = await self._loop.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        try:
            for family, kind, protocol, _, where in dict.fromkeys(found):
                self._sockets.append(_listen(family, kind, protocol, where))
        except OSError:
            self.close()
            raise
        self._reserve = os.open(os.devnull, os.O_RDONLY)
        for listener in self._sockets:
            self._loop.add_reader(listener.fileno(), self._turn, listener)
        return int(self._sockets[0].getsockname()[1])

    def close(self) -> None:
        for listener in self._sockets:
            if self._loop is not None:
                self._loop.remove_reader(listener.fileno())
            listener.close()
        self._sockets.clear()
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None

    def shut(self) -> None:
        """Takes nobody until `reopen`."""
        self._shut = True
        for listener in self._sockets:
            self._attend(listener)

    def reopen(self) -> None:
        self._shut = False
        for listener in self._sockets:
            self._attend(listener)

    def _turn(self, listener: socket.socket) -> None:
        self._rest(listener, REST_S if self._accept_some(listener) else RETRY_S)

    def _accept_some(self, listener: socket.socket) -> bool:
        """Returns False if there is no descriptor to take anybody with."""
        opened = 0
        for _ in range(TAKEN_PER_TURN):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                break
            except OSError as error:
                return error.errno in _SHORT and self._turn_away(listener)
            connection.setblocking(False)
            opened += self._take(connection, _peek(connection))
            if opened >= OPENED_PER_TURN:
                break
        return True

    def _turn_away(self, listener: socket.socket) -> bool:
        """Takes one connection with the descriptor in reserve and closes it at once."""
        if self._reserve is None:
            return False
        os.close(self._reserve)
        self._reserve = None
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            connection.close()
            self._on_short()
        with contextlib.suppress(OSError):
            self._reserve = os.open(os.devnull, os.O_RDONLY)
        return self._reserve is not None

    def _rest(self, listener: socket.socket, for_s: float) -> None:
        assert self._loop is not None
        self._resting.add(listener)
        self._attend(listener)
        self._loop.call_later(for_s, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        if listener not in self._sockets or self._loop is None:
            return
        if self._reserve is None:
            with contextlib.suppress(OSError):
                self._reserve = os.open(os.devnull, os.O_RDONLY)
        self._resting.discard(listener)
        self._attend(listener)

    def _attend(self, listener: socket.socket) -> None:
        """Listens or does not, as things are."""
        assert self._loop is not None
        if self._shut or listener in self._resting:
            self._loop.remove_reader(listener.fileno())
        else:
            self._loop.add_reader(listener.fileno(), self._turn, listener)


def _listen(family: int, kind: int, protocol: int, where: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setblocking(False)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _peek(connection: socket.socket) -> bytes | None:
    """Returns what a new connection has brought, and leaves it there."""
    try:
        return connection.recv(PEEK_BYTES, socket.MSG_PEEK)
    except (BlockingIOError, InterruptedError):
        return None
    except OSError:
        return b""
