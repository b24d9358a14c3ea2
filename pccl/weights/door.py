"""The listening side of publisher and receivers: takes connections, hears their first word.

A door that encrypts is as a coordinator's: who comes says something that begins TLS, waits for its
turn among all that do (addresses take turns, those where somebody has proved to be of the run come
before all), and has `FIRST_WORD_S` from then on.

Invariant: at most `CONNECTIONS_MAX` connections exist and `HALF_OPEN_MAX` of them have not said
what they want; no task outlives `close`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

from pccl.base.clock import Clock, system_clock
from pccl.base.config import ControlLimits
from pccl.base.errors import DeadlineExceeded, RemoteError, UsageError
from pccl.base.log import get_logger
from pccl.transport.address import Address, is_loopback
from pccl.transport.doors import Doors, serve
from pccl.transport.handshake_pace import FairPlaces, KnownHosts, SilentPlaces
from pccl.transport.tls import HANDSHAKE_RECORD
from pccl.transport.tls_turns import HandshakeTurns, first_bytes, remote_host
from pccl.weights.frames import Message
from pccl.weights.stream import FIRST_FRAME_BYTES_MAX, Stream, StreamEnded, accept_stream

CONNECTIONS_MAX: Final = 4096
HALF_OPEN_MAX: Final = 64
FIRST_WORD_S: Final = 5.0
_log = get_logger("weights")

Serve = Callable[[Stream, Message], Awaitable[None]]
"""Owns the connection until it returns; RemoteError from it ends the connection and is counted."""


class Door:
    """Listens on one address and runs `serve` per connection; belongs to one event loop."""

    def __init__(
        self,
        serve: Serve,
        *,
        context: Callable[[], ssl.SSLContext | None] = lambda: None,
        encrypts: bool = False,
        limits: ControlLimits | None = None,
        clock: Clock = system_clock,
    ) -> None:
        """
        Args:
            context: returns what encrypts, for each connection anew.
            encrypts: whether it does.  Then who comes when all places are taken ends the eldest
                connection without a first word from the address that has the most of them; else
                one that has been silent, for what comes in the clear is a sign of good will.
        """
        limits = limits or ControlLimits()
        self.drops: Counter[str] = Counter()
        self._serve = serve
        self._context = context
        self._encrypts = encrypts
        self._half_open: FairPlaces[asyncio.Task[None]] = FairPlaces(HALF_OPEN_MAX)
        self._known = KnownHosts()
        self._turns = HandshakeTurns(
            rate_per_s=limits.handshake_rate_per_s,
            burst=float(limits.handshake_burst_max),
            clock=clock,
            prefer=self._known,
        )
        self._doors = Doors(self._take, lambda: self.drops.update(["descriptors"]))
        self._tasks: set[asyncio.Task[None]] = set()
        self._silent: SilentPlaces[asyncio.Task[None]] = SilentPlaces(HALF_OPEN_MAX)

    async def open(self, address: Address) -> Address:
        """Listens; returns the address with the port it got.

        Raises:
            OSError: the port is taken, or the host is not one of this machine.
        """
        return Address(address.host, await self._doors.open(address))

    async def close(self) -> None:
        self._doors.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _take(self, connection: socket.socket, said: bytes | None) -> bool:
        full = len(self._tasks) >= CONNECTIONS_MAX
        if not self._encrypts:
            full = full or not self._silent.has_room(spoken=said is not None)
        if said == b"" or full:
            self.drops["left" if said == b"" else "full"] += 1
            connection.close()
            return False
        task = serve(connection, self._run)
        self._tasks.add(task)
        if self._encrypts:
            victim = self._half_open.enter(task, remote_host(connection))
        else:
            victim = self._silent.enter(task, spoken=said is not None)
        if victim is not None:
            self.drops["full"] += 1
            victim.cancel()
        task.add_done_callback(self._forget)
        return True

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._has_spoken(task)

    def _has_spoken(self, task: asyncio.Task[None]) -> None:
        self._silent.leave(task)
        self._half_open.leave(task)

    async def _run(self, connection: socket.socket) -> None:
        stream: Stream | None = None
        host = remote_host(connection)
        try:
            if self._encrypts:
                await self._wait_for_turn(connection, host)
            async with asyncio.timeout(FIRST_WORD_S):
                stream = await accept_stream(
                    connection, self._context(), frame_bytes_max=FIRST_FRAME_BYTES_MAX
                )
                first = await stream.receive(FIRST_WORD_S)
            task = asyncio.current_task()
            assert task is not None
            self._has_spoken(task)
            if self._encrypts:
                self._known.prove(host)
            stream.trust()
            await self._serve(stream, first)
        except RemoteError as error:
            self.drops["protocol"] += 1
            _log.info("dropped a connection: %s", error)
        except (StreamEnded, DeadlineExceeded, OSError):  # among them TimeoutError
            self.drops["ended"] += 1
        except Exception:
            # Our mistake, but one connection's: it ends, and everybody else goes on.
            _log.exception("a connection failed")
            self.drops["internal"] += 1
        finally:
            if stream is None:
                connection.close()
            else:
                await stream.end()

    async def _wait_for_turn(self, connection: socket.socket, host: str) -> None:
        async with asyncio.timeout(FIRST_WORD_S):
            said = await first_bytes(connection)
        if not said:
            raise StreamEnded("it ended before it said anything")
        if said[0] != HANDSHAKE_RECORD:
            raise RemoteError("it does not speak TLS, and this door is secured")
        await self._turns.take(host, FIRST_WORD_S)


def require_allowed(host: str, insecure: bool) -> None:
    """Raises UsageError if listening there would show weights to other machines unasked."""
    if not insecure and not is_loopback(host):
        raise UsageError(
            f"this process would serve weights on {host} without encryption, where other machines "
            "can reach it; join a secured run (ticket=...), pass insecure=True on a network you "
            "trust, or listen='127.0.0.1:0' for this machine only"
        )
