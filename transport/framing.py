"""Cuts a stream of bytes into frames, and back.  No I/O.

Frame: a head of three u32, little-endian, and the body.  The head is the body's length, the CRC-32
of the body, and the CRC-32 of those eight bytes, so that a damaged length is found at once and not
when as many bytes have come.  The first frame of a connection has a smaller limit, because nobody
knows yet who sends it.

Invariant: at most one frame's worth of bytes beyond what was fed last is kept, a length above the
limit raises before anything of that size is allocated, and no body is returned that differs from
what was sent.  Once wrong, a stream stays wrong.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from pccl.base.errors import RemoteError

LENGTH_BYTES: Final = 4
HEAD_BYTES: Final = 12
FRAME_BYTES_MAX: Final = 1 << 20
FIRST_FRAME_BYTES_MAX: Final = 4096

_CHECKED = struct.Struct("<II")  # what the head's own check is about
_HEAD = struct.Struct("<III")


def frame(body: bytes, *, frame_bytes_max: int = FRAME_BYTES_MAX) -> bytes:
    """Returns `body` with its head in front.  Raises ValueError on an empty or too long body."""
    if not 0 < len(body) <= frame_bytes_max:
        raise ValueError(f"a frame holds 1 to {frame_bytes_max} bytes, not {len(body)}")
    checked = _CHECKED.pack(len(body), zlib.crc32(body))
    return checked + zlib.crc32(checked).to_bytes(4, "little") + body


class Framer:
    """The receiving end of one connection: `feed` what arrived, take frames with `next_message`."""

    def __init__(
        self,
        *,
        first_frame_bytes_max: int = FIRST_FRAME_BYTES_MAX,
        frame_bytes_max: int = FRAME_BYTES_MAX,
    ) -> None:
        self._buffer = bytearray()
        self._limit = first_frame_bytes_max
        self._later_limit = frame_bytes_max
        self._error: str | None = None

    @property
    def pending_bytes(self) -> int:
        """Bytes fed and not yet returned: 0 at the end of a stream that was cut at a frame."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Takes what arrived; after an error it is thrown away."""
        if self._error is None:
            self._buffer += data

    def next_message(self) -> bytes | None:
        """Returns the next body, or None if more bytes are needed.

        Raises:
            RemoteError: the length in front is 0 or above the limit, or a check does not fit; so
                does every later call.
        """
        if self._error is not None:
            raise RemoteError(self._error)
        if len(self._buffer) < LENGTH_BYTES:
            return None
        length = int.from_bytes(self._buffer[:LENGTH_BYTES], "little")
        if not 0 < length <= self._limit:
            raise self._wrong(f"a frame of {length} bytes, where 1 to {self._limit} are allowed")
        if len(self._buffer) < HEAD_BYTES:
            return None
        _, body_check, head_check = _HEAD.unpack_from(self._buffer)
        if zlib.crc32(self._buffer[: _CHECKED.size]) != head_check:
            raise self._wrong("a frame's head was damaged on its way, or is none")
        end = HEAD_BYTES + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[HEAD_BYTES:end])
        if zlib.crc32(body) != body_check:
            raise self._wrong(f"a frame of {length} bytes was damaged on its way")
        del self._buffer[:end]
        self._limit = self._later_limit
        return body

    def _wrong(self, what: str) -> RemoteError:
        self._error = what
        self._buffer.clear()
        return RemoteError(what)
