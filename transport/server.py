"""A listener that takes frames from strangers and hands over only those who behave.

Every connection is one task.  It must say who it is (its first frame) within five seconds, keep to
the frame limit, and send no more messages than the limits grant; whoever does not is dropped and
counted by reason, and nobody else notices.  What frames mean is up to `serve`.

Invariant: at most `half_open_max` connections have not sent their first frame, at most
`connections_max` exist, and no task outlives `close`.
"""

from __future__ import annotations

import asyncio
import contextlib
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

LISTEN_BACKLOG = 256  # a whole run that comes back at once after a restart
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
        self.half_open = 0
        self._serve = serve
        self._on_misfit = on_misfit
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, address: Address) -> Address:
        """Binds and begins to accept; returns the address with the port it got.

        Raises:
            OSError: the port is taken, or the host is not one of this machine.
        """
        self._server = await asyncio.start_server(
            self._on_connect,
            address.host,
            address.port,
            limit=STREAM_BUFFER_BYTES,
            backlog=LISTEN_BACKLOG,
            reuse_address=True,
        )
        return Address(address.host, bound_port(self._server.sockets))

    async def close(self) -> None:
        """Stops accepting, ends every connection and waits for their tasks."""
        if self._server is not None:
            self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _on_connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.half_open >= self.limits.half_open_max:
            return self._shed(writer, "half_open")
        if len(self._tasks) >= self.limits.connections_max:
            return self._shed(writer, "connections")
        self.half_open += 1
        channel = Channel(reader, writer, limits=self.limits)
        task = asyncio.get_running_loop().create_task(self._run(channel))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return None

    def _shed(self, writer: asyncio.StreamWriter, reason: str) -> None:
        self.drops[reason] += 1
        writer.transport.abort()

    async def _run(self, channel: Channel) -> None:
        remote = f"{channel.remote_host}:{channel.remote_port}"
        try:
            first = await self._first_frame(channel)
            if first is not None:
                await self._serve(channel, first)
        except RemoteError as error:
            self._drop(channel, remote, "protocol", str(error))
        except DeadlineExceeded:
            self._drop(channel, remote, "silent", "it did not say who it is")
        except asyncio.CancelledError:
            channel.abort("the listener was closed")
        except Exception:
            # Our mistake, but one connection's: it ends, the listener and everybody else go on.
            _log.exception("the connection from %s failed", remote)
            self.drops["internal"] += 1
            channel.abort("internal error")
        finally:
            channel.close()

    async def _first_frame(self, channel: Channel) -> bytes | None:
        try:
            return await channel.receive(self.limits.first_frame_timeout_s)
        finally:
            self.half_open -= 1

    def _drop(self, channel: Channel, remote: str, reason: str, text: str) -> None:
        self.drops[reason] += 1
        self._on_misfit()
        if _log.isEnabledFor(logging.INFO):
            _log.info("dropped the connection from %s: %s", remote, text)
        channel.abort(text)


def bound_port(sockets: tuple[socket.socket, ...]) -> int:
    """Returns the port the first of a server's sockets is bound to."""
    for listener in sockets:
        with contextlib.suppress(OSError):
            return int(listener.getsockname()[1])
    return 0
