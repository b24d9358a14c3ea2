"""The shell of one control connection: bodies in, bodies out, limits on both.

Sending never waits: what the socket does not take is queued, and a peer that lets more than the
limit pile up is cut off, because one slow reader must not slow the sender's decisions about others.
Receiving waits with a deadline or until the connection ends.

Invariant: after `close` or any error nothing more is sent, and `receive` returns None.
"""

from __future__ import annotations

import asyncio
import socket
import ssl

from pccl.base.config import ControlLimits
from pccl.base.errors import DeadlineExceeded
from pccl.transport.framing import Framer, frame
from pccl.transport.tls_session import TlsSession

READ_BYTES = 1 << 16
UNACKNOWLEDGED_MS_MAX = 10_000  # as the engine's sockets have it
CLOSE_LINGER_S = 2.0  # a last word is worth a retransmission or two, not more


class Channel:
    """One connection between a peer and the coordinator.  Belongs to one event loop."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        limits: ControlLimits | None = None,
        trusted: bool = False,
        tls: TlsSession | None = None,
        own_certificate: bytes = b"",
        said: bytes = b"",
    ) -> None:
        """Takes over the streams.

        Args:
            trusted: the other end was chosen by this one (it dialled), so that its first frame may
                be as long as any.
            tls: seals what is sent and opens what is received, its handshake being done; None:
                neither.  This end showed `own_certificate` in it, and `said` came behind it.

        Raises:
            RemoteError: it is not the TLS of a run; the streams are the caller's to close.
        """
        self._limits = limits or ControlLimits()
        first = self._limits.frame_bytes_max if trusted else self._limits.first_frame_bytes_max
        self._framer = Framer(
            first_frame_bytes_max=first, frame_bytes_max=self._limits.frame_bytes_max
        )
        self._reader = reader
        self._writer = writer
        self._closed = False
        self.close_reason = ""
        self._tls = tls
        self.secured = None if tls is None else tls.proved(own_certificate)
        self._framer.feed(said)
        keep_alive(writer)

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def remote_host(self) -> str:
        """The literal address of the other end, as this one sees it; "" if it is gone already."""
        name = self._writer.get_extra_info("peername")
        return str(name[0]) if isinstance(name, tuple) else ""

    @property
    def local_host(self) -> str:
        """The literal address of this end, as the other one sees it."""
        name = self._writer.get_extra_info("sockname")
        return str(name[0]) if isinstance(name, tuple) else ""

    @property
    def remote_port(self) -> int:
        name = self._writer.get_extra_info("peername")
        return int(name[1]) if isinstance(name, tuple) else 0

    def send(self, body: bytes) -> bool:
        """Queues one body; returns False if the connection is closed, or was closed just now
        because the other end does not read."""
        if self._closed or self._writer.is_closing():
            return False
        data = frame(body, frame_bytes_max=self._limits.frame_bytes_max)
        if self._tls is not None:
            data = self._tls.seal(data)
        queued = self._writer.transport.get_write_buffer_size()
        if queued + len(data) > self._limits.write_queue_bytes_max:
            self.abort(f"{queued} bytes wait to be read by the other end")
            return False
        self._writer.write(data)
        return True

    async def receive(self, timeout_s: float | None = None) -> bytes | None:
        """Returns the next body, or None when the connection has ended, however it did.

        Raises:
            RemoteError: the other end sent a frame with an impossible length.
            DeadlineExceeded: nothing whole came within `timeout_s`; the connection stays usable.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._receive()
        except TimeoutError as error:
            raise DeadlineExceeded(f"no message within {timeout_s:g} s") from error

    async def _receive(self) -> bytes | None:
        while not self._closed:
            body = self._framer.next_message()
            if body is not None:
                return body
            try:
                data = await self._reader.read(READ_BYTES)
            except OSError:
                data = b""
            if data and self._tls is not None:
                data = self._opened(self._tls, data)
                if not data and not self._tls.ended:
                    continue
            if not data:
                self.abort("the other end closed the connection")
                return None
            self._framer.feed(data)
        return None

    def _opened(self, tls: TlsSession, sealed: bytes) -> bytes:
        """Returns what is in a part of the stream; ends the connection if it was tampered with, or
        if the other end says that it will not have this one."""
        try:
            opened = tls.feed(sealed)
        except ssl.SSLError as error:
            self.abort(f"the connection's TLS broke: {error.reason or error}")
            return b""
        if more := tls.take():  # keys are renewed now and then
            self._writer.write(more)
        return opened

    def close(self, reason: str = "") -> None:
        """Ends the connection after what is queued has been sent; does not wait for that, and gives
        up on it after `CLOSE_LINGER_S`."""
        if not self._closed:
            self._closed, self.close_reason = True, reason
            transport = self._writer.transport
            if self._tls is not None and not transport.is_closing():
                self._writer.write(self._tls.goodbye())
            if transport.get_write_buffer_size() > 0:
                asyncio.get_running_loop().call_later(CLOSE_LINGER_S, transport.abort)
            self._writer.close()

    def abort(self, reason: str = "") -> None:
        """Ends the connection at once and drops what is queued."""
        if not self._closed:
            self._closed, self.close_reason = True, reason
        self._writer.transport.abort()

    async def finish(self, timeout_s: float) -> None:
        """Closes, and gives queued bytes `timeout_s` to leave; then drops them."""
        self.close()
        try:
            async with asyncio.timeout(timeout_s):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self._writer.transport.abort()


def keep_alive(writer: asyncio.StreamWriter) -> None:
    """Lets the kernel notice a machine that vanished, where no heartbeat runs."""
    connection = writer.get_extra_info("socket")
    if connection is None:
        return
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Bytes under way stop the probes above, and are sent again for a quarter of an hour.
            connection.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS_MAX
            )
    except OSError:
        return  # it was closed meanwhile, or is no TCP socket
