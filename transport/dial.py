"""Connects to the first address of a list that answers, with back-off and one deadline for all."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pccl.base.clock import Clock, Deadline, system_clock
from pccl.base.errors import ConnectError, RemoteError
from pccl.transport.address import Address
from pccl.transport.channel import Channel
from pccl.transport.tls import Secured
from pccl.transport.tls_session import TlsSession, handshake

ATTEMPT_TIMEOUT_S = 3.0  # a SYN lost twice; the next address may be better
STREAM_BUFFER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class ClientTls:
    """How to dial in a secured run: with this context, and content with who answers if `check`
    raises no RemoteError."""

    context: ssl.SSLContext
    check: Callable[[Secured], None]


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
    tls: ClientTls | None = None,
) -> tuple[Channel, Address]:
    """Connects to the first of `addresses` that accepts, going round until `timeout_s` is over.

    The channel takes frames of any length from the first on: this end has chosen the other.

    Args:
        rounds_max: give up after so many attempts per address; None tries until the deadline.
        on_failure: told the reason after every round in which no address answered.
        tls: who answers without TLS, or with a certificate that this does not like, does not count
            as answering.

    Raises:
        ConnectError: nobody accepted in time; the text has the last reason for each address.
    """
    deadline = Deadline(timeout_s, clock)
    backoff = Backoff(rng)
    for number in itertools.count(1):
        reasons = []
        for address in addresses:
            try:
                return await _attempt(address, deadline, tls), address
            except (OSError, TimeoutError, RemoteError) as error:
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
        case ssl.SSLCertVerificationError():
            return f"its certificate is not one of this run ({error.verify_message})"
        case ssl.SSLError():
            return f"no TLS as this run has it ({error.reason or error.strerror})"
        case socket.gaierror():
            return "unknown host name"
        case ConnectionResetError():
            return "connection reset"
        case OSError(strerror=str() as text):
            return text.lower()
        case _:
            return str(error) or type(error).__name__


async def _attempt(address: Address, deadline: Deadline, tls: ClientTls | None) -> Channel:
    async with asyncio.timeout(min(ATTEMPT_TIMEOUT_S, deadline.remaining_s())):
        reader, writer = await asyncio.open_connection(
            address.host, address.port, limit=STREAM_BUFFER_BYTES
        )
        try:
            connection = writer.get_extra_info("socket")
            if connection is not None and connection.getsockname() == connection.getpeername():
                # Linux connects a socket to itself when it draws the very port it dials.
                raise ConnectionRefusedError("nobody listens there")
            if tls is None:
                return Channel(reader, writer, trusted=True)
            return await _secure(reader, writer, tls)
        except BaseException:
            writer.transport.abort()
            raise


async def _secure(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tls: ClientTls
) -> Channel:
    session = TlsSession(tls.context, server_side=False)
    said = await handshake(reader, writer, session, dials=True)
    channel = Channel(reader, writer, trusted=True, tls=session, said=said)
    assert channel.secured is not None
    tls.check(channel.secured)
    return channel
