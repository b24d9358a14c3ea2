"""A listener that takes frames from strangers and hands over only those who behave.

Every connection is one task.  It must say who it is (its first frame) within five seconds, keep to
the frame limit, and send no more messages than the limits grant; whoever does not is dropped and
counted by reason, and nobody else notices.  What frames mean is up to `serve`.

A peer says who it is in the moment it is connected, and who only wants to fill the places says
nothing.  So when all places of those who have not spoken are taken, the newest one is closed; but
one that has spoken already gets the place of whoever has been silent for longest.  What cannot be a
frame is closed before anything is spent on it.

Invariant: at most `half_open_max` connections have not sent their first frame, at most
`connections_max` exist, and no task outlives `close`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable

from pccl.base.clock import Clock, system_clock
from pccl.base.config import ControlLimits
from pccl.base.errors import DeadlineExceeded, RemoteError
from pccl.base.log import get_logger
from pccl.transport.address import Address
from pccl.transport.channel import Channel
from pccl.transport.doors import Doors
from pccl.transport.framing import Framer

MISFITS_LOGGED_PER_S = 10.0  # a flood of them must not become a flood of lines
STREAM_BUFFER_BYTES = 1 << 16
_log = get_logger("transport")

Serve = Callable[[Channel, bytes], Awaitable[None]]


class TokenBucket:
    """Grants `burst` at once and `rate_per_s` in the long run.  Pure: told the time."""

    def __init__(self, *, burst: float, rate_per_s: float, now_s: float) -> None:
        self._burst = burst
        self._rate_per_s = rate_per_s
        self._tokens = burst
        self._at_s = now_s

    def take(self, now_s: float) -> float:
        """Takes one token; returns 0, or the seconds until there will be one (and takes none)."""
        elapsed_s = max(0.0, now_s - self._at_s)
        self._tokens = min(self._burst, self._tokens + elapsed_s * self._rate_per_s)
        self._at_s = now_s
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate_per_s


class FrameServer:
    """Listens on one address and runs `serve(channel, first_body)` per connection.

    `serve` owns the connection until it returns; RemoteError from it drops the connection and is
    counted.  `drops` counts dropped connections by reason; `accepted` counts all; `on_misfit` is
    called for each that was dropped for what it sent, or for sending nothing.
    """

    def __init__(
        self,
        serve: Serve,
        *,
        limits: ControlLimits | None = None,
        clock: Clock = system_clock,
        on_misfit: Callable[[], None] = lambda: None,
    ) -> None:
        self.limits = limits or ControlLimits()
        self.clock = clock
        self.drops: Counter[str] = Counter()
        self.accepted = 0
        self._serve = serve
        self._on_misfit = on_misfit
        self._doors = Doors(self._take, lambda: self.drops.update(["descriptors"]))
        self._tasks: set[asyncio.Task[None]] = set()
        self._half_open: dict[asyncio.Task[None], bool] = {}  # in order of arrival: has it spoken?
        self._logged = TokenBucket(
            burst=MISFITS_LOGGED_PER_S, rate_per_s=MISFITS_LOGGED_PER_S, now_s=clock()
        )

    @property
    def half_open(self) -> int:
        """Connections that have not yet said who they are."""
        return len(self._half_open)

    async def listen(self, address: Address) -> Address:
        """Binds and begins to accept; returns the address with the port it got.

        Raises:
            OSError: the port is taken, or the host is not one of this machine.
        """
        return Address(address.host, await self._doors.open(address))

    def shut(self) -> None:
        """Takes no new connection until `reopen`; they wait in the kernel's backlog."""
        self._doors.shut()

    def reopen(self) -> None:
        self._doors.reopen()

    async def close(self) -> None:
        """Stops accepting, ends every connection and waits for their tasks."""
        self._doors.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ------------------------------------------------------------------ at the door

    def _take(self, connection: socket.socket, said: bytes | None) -> bool:
        self.accepted += 1
        if not self._let_in(connection, said):
            connection.close()
            return False
        task = asyncio.get_running_loop().create_task(self._run(connection))
        self._tasks.add(task)
        self._half_open[task] = said is not None
        task.add_done_callback(self._forget)
        return True

    def _let_in(self, connection: socket.socket, said: bytes | None) -> bool:
        if said == b"":
            self.drops["left"] += 1
            return False
        if said is not None and (wrong := self._not_a_frame(said)) is not None:
            self._drop(_remote(connection), "protocol", wrong)
            return False
        if len(self._tasks) >= self.limits.connections_max:
            self.drops["connections"] += 1
            return False
        if len(self._half_open) >= self.limits.half_open_max:
            self.drops["half_open"] += 1
            return said is not None and self._end_the_longest_silence()
        return True

    def _not_a_frame(self, said: bytes) -> str | None:
        """Says what is wrong with a beginning, as far as it has come."""
        framer = Framer(first_frame_bytes_max=self.limits.first_frame_bytes_max)
        framer.feed(said)
        try:
            framer.next_message()
        except RemoteError as error:
            return str(error)
        return None

    def _end_the_longest_silence(self) -> bool:
        for task, spoken in self._half_open.items():
            if not spoken:
                del self._half_open[task]
                task.cancel()
                return True
        return False

    # ------------------------------------------------------------------ one connection

    async def _run(self, connection: socket.socket) -> None:
        remote = _remote(connection)
        try:
            channel = Channel(*await _streams(connection), limits=self.limits)
        except (OSError, asyncio.CancelledError):
            connection.close()
            return
        try:
            first = await self._first_frame(channel)
            if first is not None:
                await self._serve(channel, first)
        except RemoteError as error:
            self._drop(remote, "protocol", str(error))
            if not channel.closed:  # else it has been told, and what it was told may still leave
                channel.abort(str(error))
        except DeadlineExceeded:
            self._drop(remote, "silent", "it did not say who it is")
            channel.abort("it did not say who it is")
        except asyncio.CancelledError:
            channel.abort("the listener has no more use for it")
        except Exception:
            # Our mistake, but one connection's: it ends, the listener and everybody else go on.
            _log.exception("the connection from %s failed", remote)
            self.drops["internal"] += 1
            channel.abort("internal error")
        finally:
            channel.close()

    async def _first_frame(self, channel: Channel) -> bytes | None:
        first = await channel.receive(self.limits.first_frame_timeout_s)
        task = asyncio.current_task()
        assert task is not None
        self._half_open.pop(task, None)
        return first

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._half_open.pop(task, None)

    def _drop(self, remote: str, reason: str, text: str) -> None:
        self.drops[reason] += 1
        self._on_misfit()
        if _log.isEnabledFor(logging.INFO) and self._logged.take(self.clock()) == 0:
            _log.info("dropped the connection from %s: %s", remote, text)


async def _streams(
    connection: socket.socket,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=STREAM_BUFFER_BYTES, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def _remote(connection: socket.socket) -> str:
    try:
        name = connection.getpeername()
    except OSError:
        return "nowhere"
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)
