"""A listener that takes frames from strangers and hands over only those who behave.

Every connection is one task.  It must say who it is (its first frame) within five seconds, keep to
the frame limit, and send no more messages than the limits grant; whoever does not is dropped and
counted by reason, and nobody else notices.  What frames mean is up to `serve`.

A peer says who it is in the moment it is connected, and who only wants to fill the places says
nothing.  So when all places of those who have not spoken are taken, the newest one is closed; but
one that has spoken already gets the place of whoever has been silent for longest.  What cannot be a
frame is closed before anything is spent on it.

A secured listener gives each connection to its `TlsDoor` first.  There everybody can speak, so a
newcomer gets the place of the connection that has waited longest at the address with the most.

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
from pccl.transport.doors import Doors, serve
from pccl.transport.framing import Framer
from pccl.transport.handshake_pace import FairPlaces, SilentPlaces
from pccl.transport.tls_door import BadHandshake, NotTls, TlsDoor, open_streams
from pccl.transport.tls_turns import remote_host
from pccl.transport.token_bucket import TokenBucket

MISFITS_LOGGED_PER_S = 10.0  # a flood of them must not become a flood of lines
_log = get_logger("transport")

Serve = Callable[[Channel, bytes], Awaitable[None]]
Refused = Callable[[str, str, str], None]
"""Is told the address, a word for the kind of fault, and the reason."""


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
        tls: TlsDoor | None = None,
        on_refused: Refused | None = None,
    ) -> None:
        """`on_refused` hears of each that does not come as far as `serve` for its own fault."""
        self.limits = limits or ControlLimits()
        self.clock = clock
        self.drops: Counter[str] = Counter()
        self.accepted = 0
        self._serve = serve
        self._on_misfit = on_misfit
        self._tls = tls
        self._on_refused = on_refused
        self._doors = Doors(self._take, lambda: self.drops.update(["descriptors"]))
        self._tasks: set[asyncio.Task[None]] = set()
        most = self.limits.half_open_max
        self._unproven: FairPlaces[asyncio.Task[None]] = FairPlaces(most)  # if it is secured
        self._silent: SilentPlaces[asyncio.Task[None]] = SilentPlaces(most)  # if not
        self._logged = TokenBucket(
            burst=MISFITS_LOGGED_PER_S, rate_per_s=MISFITS_LOGGED_PER_S, now_s=clock()
        )

    @property
    def half_open(self) -> int:
        """Connections that have not yet said who they are."""
        return len(self._unproven) + len(self._silent)

    def bucket(self, *, native: bool) -> TokenBucket:
        """Returns what holds a new connection to its rate of messages."""
        limits, now_s = self.limits, self.clock()
        if native:
            burst, rate_per_s = limits.native_burst_max, limits.native_rate_per_s
        else:
            burst, rate_per_s = limits.message_burst_max, limits.message_rate_per_s
        return TokenBucket(burst=burst, rate_per_s=rate_per_s, now_s=now_s)

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
        task = serve(connection, self._run)
        self._tasks.add(task)
        if self._tls is None:
            victim = self._silent.enter(task, spoken=said is not None)
        else:
            victim = self._unproven.enter(task, remote_host(connection))
        if victim is not None:
            self.drops["half_open"] += 1
            victim.cancel()
        task.add_done_callback(self._forget)
        return True

    def _let_in(self, connection: socket.socket, said: bytes | None) -> bool:
        if said == b"":
            self.drops["left"] += 1
            return False
        plain = self._tls is None
        if plain and said is not None and (wrong := self._not_a_frame(said)) is not None:
            self._drop(_remote(connection), "protocol", wrong)
            return False
        if len(self._tasks) >= self.limits.connections_max:
            self.drops["connections"] += 1
            return False
        if plain and not self._silent.has_room(spoken=said is not None):
            self.drops["half_open"] += 1
            return False
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

    # ------------------------------------------------------------------ one connection

    async def _run(self, connection: socket.socket) -> None:
        remote = _remote(connection)
        try:
            channel = await self._open(connection, remote)
        except (OSError, asyncio.CancelledError):
            channel = None
        if channel is None:
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
            self._refuse(remote, channel.remote_host, "silent", "it did not say who it is")
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

    async def _open(self, connection: socket.socket, remote: str) -> Channel | None:
        """Returns the channel; None, and counted, if it did not come to one."""
        if self._tls is None:
            return Channel(*await open_streams(connection), limits=self.limits)
        host = remote_host(connection)
        try:
            return await self._tls.open(connection, host, self.limits, self.clock)
        except NotTls as error:
            self._refuse(remote, host, "plaintext", error.reason)
        except BadHandshake as error:
            self._refuse(remote, host, "handshake", error.reason, error.code)
        except DeadlineExceeded as error:
            self._refuse(remote, host, "silent", str(error))
        except RemoteError as error:
            self._refuse(remote, host, "certificate", error.reason)
        return None

    async def _first_frame(self, channel: Channel) -> bytes | None:
        first = await channel.receive(self.limits.first_frame_timeout_s)
        task = asyncio.current_task()
        assert task is not None
        self._has_spoken(task)
        return first

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._has_spoken(task)

    def _has_spoken(self, task: asyncio.Task[None]) -> None:
        self._silent.leave(task)
        self._unproven.leave(task)

    def _refuse(self, remote: str, host: str, reason: str, text: str, code: str = "") -> None:
        if self._on_refused is not None:
            self._on_refused(host, code or reason, text)
        self._drop(remote, reason, text)

    def _drop(self, remote: str, reason: str, text: str) -> None:
        self.drops[reason] += 1
        self._on_misfit()
        if _log.isEnabledFor(logging.INFO) and self._logged.take(self.clock()) == 0:
            _log.info("dropped the connection from %s: %s", remote, text)


def _remote(connection: socket.socket) -> str:
    try:
        name = connection.getpeername()
    except OSError:
        return "nowhere"
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)
