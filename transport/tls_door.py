"""The first moments of a connection to a secured listener: from its first byte to a proven name.

    a byte that begins TLS -> its turn among handshakes -> handshake -> streams and certificates

Until a connection has sent its first byte it costs a socket and a task, and no TLS state.  What
does not begin TLS is told once, in the plain protocol, what the listener wants, and is closed.

Invariant: no byte of a connection that is not TLS 1.3 is ever handed on, but for engines without
TLS where a test has said so; the first byte, the turn and the handshake have
`first_frame_timeout_s` each.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Final

from pccl.base.clock import Clock
from pccl.base.config import ControlLimits
from pccl.base.errors import DeadlineExceeded, RemoteError
from pccl.transport.channel import Channel
from pccl.transport.handshake_pace import Prefer
from pccl.transport.tls import HANDSHAKE_RECORD, ServerIdentity
from pccl.transport.tls_session import TlsSession, handshake
from pccl.transport.tls_turns import PEEK_BYTES, HandshakeTurns, first_bytes

STREAM_BUFFER_BYTES: Final = 1 << 16
_CODES: Final = {  # by OpenSSL's X509_V_ERR_
    10: "expired",
    18: "ca",  # signed by itself
    19: "ca",  # by a chain that ends in one that nobody here trusts
    20: "ca",  # by one that is not there
    21: "ca",
    7: "ca",  # by another key of the CA's name
}


class NotTls(RemoteError):
    """A connection began with something else than a TLS handshake; it has been told."""


class BadHandshake(RemoteError):
    """A TLS handshake failed; `code` says by what kind of fault, for who keeps a list of them."""

    def __init__(self, error: ssl.SSLError) -> None:
        self.code = "handshake"
        text = f"a TLS handshake failed: {error.reason or error}"
        if isinstance(error, ssl.SSLCertVerificationError):
            self.code = _CODES.get(error.verify_code, "certificate")
            text = f"its certificate is not believed: {error.verify_message}"
        super().__init__(text)


class TlsDoor:
    """Opens accepted connections; belongs to one event loop.

    Args:
        identity: what the listener shows now; asked at every handshake.
        to_plain: a whole answer, framed, for who does not speak TLS.
        prefer: says whether an `address_group` is one of those that come first.
        plain_allowed: says whether what begins so may go on without TLS; for tests alone.
    """

    def __init__(
        self,
        identity: Callable[[], ServerIdentity],
        *,
        to_plain: bytes = b"",
        prefer: Prefer = lambda host: False,
        plain_allowed: Callable[[bytes], bool] = lambda said: False,
    ) -> None:
        self._identity = identity
        self._to_plain = to_plain
        self._prefer = prefer
        self._plain_allowed = plain_allowed
        self._turns: HandshakeTurns | None = None

    async def open(
        self, connection: socket.socket, host: str, limits: ControlLimits, clock: Clock
    ) -> Channel:
        """Takes a connection through its handshake; after an error the caller closes it.

        Raises:
            NotTls, BadHandshake: see there.
            DeadlineExceeded: it said nothing, had no turn, or did not finish, in time.
            OSError: it broke.
        """
        try:
            async with asyncio.timeout(limits.first_frame_timeout_s):
                said = await first_bytes(connection)
        except TimeoutError as error:
            raise DeadlineExceeded("it said nothing") from error
        if not said:
            raise ConnectionResetError("it ended before it said anything")
        if said[0] != HANDSHAKE_RECORD:
            if self._plain_allowed(said):
                return Channel(*await open_streams(connection), limits=limits)
            _tell(connection, self._to_plain)
            raise NotTls("it does not speak TLS, and this run is secured")
        await self._turn(host, limits, clock)
        return await self._handshake(connection, limits)

    async def _handshake(self, connection: socket.socket, limits: ControlLimits) -> Channel:
        shown = self._identity()
        session = TlsSession(shown.context, server_side=True)
        reader, writer = await open_streams(connection)
        try:
            async with asyncio.timeout(limits.first_frame_timeout_s):
                said = await handshake(reader, writer, session, dials=False)
            return Channel(
                reader,
                writer,
                limits=limits,
                tls=session,
                own_certificate=shown.leaf_der,
                said=said,
            )
        except ssl.SSLError as error:  # why, was queued for the other end
            writer.close()
            raise BadHandshake(error) from error
        except TimeoutError as error:
            writer.transport.abort()
            raise DeadlineExceeded("its TLS handshake did not end in time") from error
        except BaseException:
            writer.transport.abort()
            raise

    def _turn(self, host: str, limits: ControlLimits, clock: Clock) -> Awaitable[None]:
        if self._turns is None:
            self._turns = HandshakeTurns(
                rate_per_s=limits.handshake_rate_per_s,
                burst=float(limits.handshake_burst_max),
                clock=clock,
                prefer=self._prefer,
            )
        return self._turns.take(host, limits.first_frame_timeout_s)


async def open_streams(
    connection: socket.socket,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Makes streams of an accepted connection, without TLS."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=STREAM_BUFFER_BYTES, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def _tell(connection: socket.socket, answer: bytes) -> None:
    """Says one thing to who does not speak TLS; what it sent is read first, for a socket that is
    closed over unread bytes resets the connection, and the answer with it."""
    with contextlib.suppress(OSError):
        connection.recv(PEEK_BYTES)
        if answer:
            connection.send(answer)
        connection.shutdown(socket.SHUT_WR)
