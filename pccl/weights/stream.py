"""One connection between a publisher and a receiver, or between two receivers; over TLS if asked.

TLS is a session of bytes over a plain connection, so that whoever is cut off, also in the middle of
a handshake, leaves nothing that closes by itself and later than its event loop.

Messages are frames; a chunk is raw bytes behind its head, and is not copied into frames.  Every
receive has a deadline, every send either waits for room within one (`send`) or refuses to queue
more than a limit (`post`), so that one slow reader costs its own connection and nothing else.

Invariant: after `close` nothing is sent, and after `end` nothing of the connection is left;
whatever the other end does, only StreamEnded, RemoteError and DeadlineExceeded leave this module.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
import zlib
from typing import TYPE_CHECKING, Final

from pccl.base.config import ControlLimits
from pccl.base.errors import DeadlineExceeded, PcclError, RemoteError
from pccl.transport.address import Address
from pccl.transport.framing import HEAD_BYTES, frame
from pccl.transport.keep_alive import keep_alive
from pccl.transport.tls_session import TlsSession, handshake
from pccl.weights.channels import PLAIN, Way
from pccl.weights.frames import Message, codec

if TYPE_CHECKING:
    import socket

_LIMITS: Final = ControlLimits()
FRAME_BYTES_MAX: Final = 300 << 10  # a manifest with all its digests
FIRST_FRAME_BYTES_MAX: Final = _LIMITS.first_frame_bytes_max
QUEUE_BYTES_MAX: Final = 8 << 20  # manifests and answers that a receiver does not read
READ_BYTES: Final = 1 << 20
END_S: Final = 1.0  # a transport that was aborted has ended after a turn or two of its loop
_HEAD: Final = struct.Struct("<III")
_CHECKED: Final = struct.Struct("<II")


class StreamEnded(PcclError):
    """The other end has closed its connection, or its machine has."""


class Stream:
    """Messages and chunks over one connection; belongs to one event loop."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        frame_bytes_max: int = FRAME_BYTES_MAX,
        tls: TlsSession | None = None,
        said: bytes = b"",
    ) -> None:
        """`tls`: its handshake is done, and `said` came behind it."""
        self._tls = tls
        self._opened = bytearray(said)  # by TLS, and not yet asked for
        self._reader = reader
        self._writer = writer
        self._frame_bytes_max = frame_bytes_max
        self._sending = asyncio.Lock()  # a chunk follows its head, and nothing comes between
        keep_alive(writer.get_extra_info("socket"))

    @property
    def remote_host(self) -> str:
        name = self._writer.get_extra_info("peername")
        return str(name[0]) if isinstance(name, tuple) else ""

    @property
    def local_host(self) -> str:
        name = self._writer.get_extra_info("sockname")
        return str(name[0]) if isinstance(name, tuple) else ""

    @property
    def certificate(self) -> bytes:
        """The other end's, DER; "" where it has shown none."""
        return b"" if self._tls is None else self._tls.certificate

    def trust(self) -> None:
        """From here on frames may be as long as any: the other end has said who it is."""
        self._frame_bytes_max = FRAME_BYTES_MAX

    def post(self, message: Message) -> bool:
        """Queues a message without waiting; False if the connection is, or is now, at its end."""
        transport = self._writer.transport
        if transport.is_closing():
            return False
        if transport.get_write_buffer_size() > QUEUE_BYTES_MAX:
            transport.abort()
            return False
        self._write(frame(codec.encode(message)))
        return True

    async def send(
        self, message: Message, payload: memoryview | bytes = b"", *, timeout_s: float
    ) -> None:
        """Sends a message, and raw bytes behind it; waits until the socket has room.

        Raises:
            StreamEnded, DeadlineExceeded: the other end is gone, or does not read.
        """
        try:
            async with asyncio.timeout(timeout_s), self._sending:
                if self._writer.transport.is_closing():
                    raise StreamEnded("the connection is closed")
                self._write(frame(codec.encode(message)))
                if len(payload):
                    self._write(payload)
                await self._writer.drain()
        except TimeoutError as error:
            raise DeadlineExceeded(f"the other end took nothing for {timeout_s:g} s") from error
        except OSError as error:
            raise StreamEnded(f"the connection broke: {error}") from error

    async def receive(self, timeout_s: float) -> Message:
        """Returns the next message.

        Raises:
            StreamEnded: there is none, the connection has ended.
            RemoteError: what came is no message; the connection is of no more use.
            DeadlineExceeded: nothing whole within the time.
        """
        head = await self._exactly(HEAD_BYTES, timeout_s)
        length, body_check, head_check = _HEAD.unpack(head)
        if (
            not 0 < length <= self._frame_bytes_max
            or zlib.crc32(head[: _CHECKED.size]) != head_check
        ):
            raise RemoteError(f"what came is no frame of 1 to {self._frame_bytes_max} bytes")
        body = await self._exactly(length, timeout_s)
        if zlib.crc32(body) != body_check:
            raise RemoteError(f"a frame of {length} bytes was damaged on its way")
        return codec.decode(body)

    async def receive_bytes(self, count: int, timeout_s: float) -> bytes:
        """Returns exactly `count` raw bytes; the caller has checked the count.  Raises alike."""
        return await self._exactly(count, timeout_s)

    async def _exactly(self, count: int, timeout_s: float) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._read(count)
        except TimeoutError as error:
            raise DeadlineExceeded(f"nothing whole came within {timeout_s:g} s") from error
        except (OSError, asyncio.IncompleteReadError) as error:
            raise StreamEnded("the other end closed the connection") from error

    async def _read(self, count: int) -> bytes:
        if self._tls is None:
            return await self._reader.readexactly(count)
        while len(self._opened) < count:
            sealed = b"" if self._tls.ended else await self._reader.read(READ_BYTES)
            if not sealed:
                raise asyncio.IncompleteReadError(bytes(self._opened), count)
            try:
                self._opened += self._tls.feed(sealed)
            except ssl.SSLError:
                self.close()  # the session is over
                raise
            if more := self._tls.take():  # keys are renewed now and then
                self._writer.write(more)
        found = bytes(self._opened[:count])
        del self._opened[:count]
        return found

    def _write(self, data: bytes | memoryview) -> None:
        self._writer.write(data if self._tls is None else self._tls.seal(data))

    def close(self) -> None:
        """Ends the connection at once; what is queued is dropped.  For who does not own it, too."""
        self._writer.transport.abort()

    async def end(self) -> None:
        """Closes it, and returns when it has ended; its owner's last word."""
        await _cut(self._writer)


async def accept_stream(
    connection: socket.socket, context: ssl.SSLContext | None, *, frame_bytes_max: int
) -> Stream:
    """Makes a stream of an accepted connection, which it owns from then on; after an error the
    caller closes it.

    Raises:
        OSError: it broke, or TLS failed; the other end was told why, as far as TLS tells it.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=READ_BYTES, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection)
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    if context is None:
        return Stream(reader, writer, frame_bytes_max=frame_bytes_max)
    session = TlsSession(context, server_side=True)
    said = await _shaken(reader, writer, session, dials=False)
    return Stream(reader, writer, frame_bytes_max=frame_bytes_max, tls=session, said=said)


async def open_stream(address: Address, *, timeout_s: float, way: Way = PLAIN) -> Stream:
    """Connects.

    Raises:
        StreamEnded: nobody is there, or it does not encrypt as `way` does.
        DeadlineExceeded: no answer within the time.
        RemoteError: who is there is not whom `way` expects; it was told nothing.
    """
    try:
        async with asyncio.timeout(timeout_s):
            stream = await _dial(address, way.context)
    except TimeoutError as error:
        raise DeadlineExceeded(f"{address} does not answer within {timeout_s:g} s") from error
    except OSError as error:
        raise StreamEnded(f"{address}: {error.strerror or error}") from error
    if way.check is not None:
        try:
            way.check(stream.certificate)
        except RemoteError:
            await stream.end()
            raise
    return stream


async def _dial(address: Address, context: ssl.SSLContext | None) -> Stream:
    reader, writer = await asyncio.open_connection(address.host, address.port, limit=READ_BYTES)
    name = writer.get_extra_info("sockname")
    if name is not None and name == writer.get_extra_info("peername"):
        # Linux connects a socket to itself when it draws the very port it dials.
        await _cut(writer)
        raise ConnectionRefusedError("nobody listens there")
    if context is None:
        return Stream(reader, writer)
    session = TlsSession(context, server_side=False, server_hostname=address.host)
    said = await _shaken(reader, writer, session, dials=True)
    return Stream(reader, writer, tls=session, said=said)


async def _shaken(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session: TlsSession, *, dials: bool
) -> bytes:
    """Shakes hands; if that fails, or is cancelled, returns when the connection has ended."""
    try:
        return await handshake(reader, writer, session, dials=dials)
    except ssl.SSLError:
        writer.close()  # what tells the other end why is queued, and is short
        await _cut(writer, at_once=False)
        raise
    except BaseException:
        await _cut(writer)
        raise


async def _cut(writer: asyncio.StreamWriter, *, at_once: bool = True) -> None:
    """Returns when a connection has ended: at once, or when it is rid of what is queued."""
    if at_once:
        writer.transport.abort()
    with contextlib.suppress(OSError):  # whatever it ended by; TimeoutError is one
        try:
            async with asyncio.timeout(END_S):
                await writer.wait_closed()
        finally:
            writer.transport.abort()
