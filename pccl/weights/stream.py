"""One connection between a publisher and a receiver, or between two receivers.

Messages are frames; a chunk is raw bytes behind its head, and is not copied into frames.  Every
receive has a deadline, every send either waits for room within one (`send`) or refuses to queue
more than a limit (`post`), so that one slow reader costs its own connection and nothing else.

Invariant: after `close` nothing is sent; whatever the other end does, only StreamEnded, RemoteError
and DeadlineExceeded leave this module.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from typing import Final

from pccl.base.config import ControlLimits
from pccl.base.errors import DeadlineExceeded, PcclError, RemoteError
from pccl.transport.address import Address
from pccl.transport.channel import keep_alive
from pccl.transport.framing import HEAD_BYTES, frame
from pccl.weights.channels import PLAIN, Way
from pccl.weights.frames import Message, codec

_LIMITS: Final = ControlLimits()
FRAME_BYTES_MAX: Final = 300 << 10  # a manifest with all its digests
FIRST_FRAME_BYTES_MAX: Final = _LIMITS.first_frame_bytes_max
QUEUE_BYTES_MAX: Final = 8 << 20  # manifests and answers that a receiver does not read
READ_BYTES: Final = 1 << 20
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
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._frame_bytes_max = frame_bytes_max
        self._sending = asyncio.Lock()  # a chunk follows its head, and nothing comes between
        keep_alive(writer)

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
        tls = self._writer.get_extra_info("ssl_object")
        return b"" if tls is None else tls.getpeercert(binary_form=True) or b""

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
        self._writer.write(frame(codec.encode(message)))
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
                self._writer.write(frame(codec.encode(message)))
                if len(payload):
                    self._writer.write(payload)
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
                return await self._reader.readexactly(count)
        except TimeoutError as error:
            raise DeadlineExceeded(f"nothing whole came within {timeout_s:g} s") from error
        except (OSError, asyncio.IncompleteReadError) as error:
            raise StreamEnded("the other end closed the connection") from error

    def close(self) -> None:
        """Ends the connection at once; what is queued is dropped."""
        self._writer.transport.abort()


async def open_stream(address: Address, *, timeout_s: float, way: Way = PLAIN) -> Stream:
    """Connects.

    Raises:
        StreamEnded: nobody is there, or it does not encrypt as `way` does.
        DeadlineExceeded: no answer within the time.
        RemoteError: who is there is not whom `way` expects; it was told nothing.
    """
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(
                address.host, address.port, limit=READ_BYTES, ssl=way.context
            )
    except TimeoutError as error:
        raise DeadlineExceeded(f"{address} does not answer within {timeout_s:g} s") from error
    except OSError as error:
        raise StreamEnded(f"{address}: {error.strerror or error}") from error
    name = writer.get_extra_info("sockname")
    if name is not None and name == writer.get_extra_info("peername"):
        # Linux connects a socket to itself when it draws the very port it dials.
        writer.transport.abort()
        raise StreamEnded(f"{address}: nobody listens there")
    stream = Stream(reader, writer)
    if way.check is not None:
        try:
            way.check(stream.certificate)
        except RemoteError:
            stream.close()
            raise
    return stream
