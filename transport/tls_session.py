"""One TLS connection as bytes in and bytes out: what arrives goes into `feed`, what is to be sent
comes out of `take`.  The sockets are those of plain connections, which begin and end alike.

Invariant: `feed` returns only bytes that the other end's TLS has sealed, whole and in order; after
it has raised, the session is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Final

from pccl.base.errors import RemoteError
from pccl.transport.identity import CERTIFICATE_BYTES_MAX
from pccl.transport.tls import Secured

READ_BYTES: Final = 1 << 16
HANDSHAKE_BYTES_MAX: Final = 1 << 15  # ours have 2 kB each way
VERSION: Final = "TLSv1.3"


class TlsSession:
    """One end.  `handshake` first; then `feed` and `seal` in any order.

    Cost: some 10 us per call, and 0.2 us per KiB.
    """

    def __init__(
        self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None
    ) -> None:
        """`server_hostname`: whom a dialler wants, for contexts that check it."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)
        self.ready = False
        self.ended = False  # the other end has said that nothing more comes
        self._handshake_bytes = 0

    @property
    def certificate(self) -> bytes:
        """The other end's, DER; b"" if it showed none, or has not yet."""
        return self._tls.getpeercert(binary_form=True) or b""

    def start(self) -> None:
        """A dialler's first step; `take` then has its greeting."""
        self._step()

    def feed(self, sealed: bytes) -> bytes:
        """Takes what arrived; returns what is in it for the room above.

        Raises:
            ssl.SSLError: it is damaged, forged, or not of this run; `take` has what to tell the
                other end.
        """
        self._incoming.write(sealed)
        if not self.ready:
            self._handshake_bytes += len(sealed)
            if self._handshake_bytes > HANDSHAKE_BYTES_MAX:
                raise ssl.SSLError(f"a handshake of more than {HANDSHAKE_BYTES_MAX} bytes")
            self._step()
        parts = []
        while self.ready and not self.ended:
            try:
                part = self._tls.read(READ_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                part = b""
            self.ended = not part
            parts.append(part)
        return b"".join(parts)

    def seal(self, data: bytes | memoryview) -> bytes:
        """Returns what to send for `data`."""
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]
        return self.take()

    def take(self) -> bytes:
        """Returns what TLS itself wants sent."""
        return self._outgoing.read()

    def goodbye(self) -> bytes:
        """Returns what tells the other end that nothing more comes."""
        with contextlib.suppress(ssl.SSLError, ValueError):
            self._tls.unwrap()
        return self.take()

    def proved(self, own: bytes) -> Secured:
        """Returns the certificates at both ends; `own` is what this one showed.

        Raises:
            RemoteError: the connection is not of the kind that a run has.
        """
        if not self.ready or self._tls.version() != VERSION:
            raise RemoteError(f"a connection without {VERSION}")
        theirs = self.certificate
        if len(theirs) > CERTIFICATE_BYTES_MAX:
            raise RemoteError(f"a certificate of {len(theirs)} bytes")
        return Secured(theirs, own)

    def _step(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
            self.ready = True


async def handshake(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session: TlsSession, *, dials: bool
) -> bytes:
    """Carries a handshake to its end; returns what the other end said right behind it.

    Raises:
        ssl.SSLError: it failed; the other end was told why, as far as TLS tells it.
        ConnectionResetError: the connection ended before.
    """
    said = b""
    if dials:
        session.start()
    while True:
        if greeting := session.take():
            writer.write(greeting)
        if session.ready:
            return said
        sealed = await reader.read(READ_BYTES)
        if not sealed:
            raise ConnectionResetError("it closed the connection within the TLS handshake")
        try:
            said = session.feed(sealed)
        except ssl.SSLError:
            if alert := session.take():
                writer.write(alert)
            raise
