"""Connects to the first address of a list that answers, with back-off and one deadline for all."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
from collections.abc import Callable, Sequence

from pccl.base.clock import Clock, Deadline, system_clock
from pccl.base.errors import ConnectError
from pccl.transport.address import Address

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

ATTEMPT_TIMEOUT_S = 3.0  # a SYN lost twice; the next address may be better
STREAM_BUFFER_BYTES = 1 << 16


class Backoff:
    """Delays between attempts: they double up to a limit, each shortened by up to a half at random
    so that peers which lost the same coordinator do not come back in step.  Pure."""

    def __init__(self, rng: random.Random, *, first_s: float = 0.1, max_s: float = 2.0) -> None:
        if not 0 < first_s <= max_s:
            raise ValueError(f"0 < first_s <= max_s must hold, not {first_s} and {max_s}")
        self._rng = rng
        self._first_s = first_s
        self._max_s = max_s
        self._next_s = first_s

    def next_delay_s(self) -> float:
        """Returns how long to wait before the next attempt."""
        delay_s = self._next_s * self._rng.uniform(0.5, 1.0)
        self._next_s = min(self._max_s, self._next_s * 2)
        return delay_s

    def reset(self) -> None:
        """The last attempt went well: begin with short delays again."""
        self._next_s = self._first_s


async def dial(
    addresses: Sequence[Address],
    *,
    timeout_s: float,
    rng: random.Random,
    clock: Clock = system_clock,
    rounds_max: int | None = None,
    on_failure: Callable[[str], None] | None = None,
) -> tuple[Streams, Address]:
    """Connects to the first of `addresses` that accepts, going round until `timeout_s` is over.

    Args:
        rounds_max: give up after so many attempts per address; None tries until the deadline.
        on_failure: told the reason after every round in which no address answered.

    Raises:
        ConnectError: nobody accepted in time; the text has the last reason for each address.
    """
    deadline = Deadline(timeout_s, clock)
    backoff = Backoff(rng)
    for number in itertools.count(1):
        reasons = []
        for address in addresses:
            try:
                return await _attempt(address, deadline), address
            except (OSError, TimeoutError) as error:
                reasons.append(f"{address}: {explain(error)}")
        summary = "; ".join(reasons)
        if on_failure is not None:
            on_failure(summary)
        delay_s = backoff.next_delay_s()
        if number == rounds_max or delay_s >= deadline.remaining_s():
            break
        await asyncio.sleep(delay_s)
    raise ConnectError(
        f"no coordinator answered ({summary}); "
        "is `pccl coordinator` running, and is the address right?"
    )


async def probe(host: str, port: int, *, timeout_s: float) -> bool:
    """Dials once and hangs up.  Says whether somebody may live there.

    Returns:
        False only on proof of the contrary: the host itself answered that nobody listens.  Silence,
        a network that knows no way, and this process being short of sockets prove nothing about
        the peer and count as alive.
    """
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, port)
    except (ConnectionRefusedError, ConnectionResetError):
        return False
    except OSError:  # among them TimeoutError
        return True
    writer.transport.abort()
    return True


def explain(error: BaseException) -> str:
    """Returns a connection error in words a person can act on."""
    match error:
        case ConnectionRefusedError():
            return "connection refused"
        case TimeoutError():
            return "no answer"
        case socket.gaierror():
            return "unknown host name"
        case ConnectionResetError():
            return "connection reset"
        case OSError(strerror=str() as text):
            return text.lower()
        case _:
            return str(error) or type(error).__name__


async def _attempt(address: Address, deadline: Deadline) -> Streams:
    async with asyncio.timeout(min(ATTEMPT_TIMEOUT_S, deadline.remaining_s())):
        reader, writer = await asyncio.open_connection(
            address.host, address.port, limit=STREAM_BUFFER_BYTES
        )
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if connection.getsockname() == connection.getpeername():
            # Linux connects a socket to itself when it draws the very port it dials.
            writer.transport.abort()
            raise ConnectionRefusedError("nobody listens there")
    return reader, writer
