"""Cuts a stream of bytes into frames, and back.  No I/O.

Frame: the body's length as u32, little-endian, then the body.  The first frame of a connection has
a smaller limit, because nobody knows yet who sends it.

Invariant: at most one frame's worth of bytes beyond what was fed last is kept, and a length above
the limit raises before anything of that size is allocated.  Once wrong, a stream stays wrong.
"""

from __future__ import annotations

from typing import Final

from pccl.base.errors import RemoteError

LENGTH_BYTES: Final = 4
FRAME_BYTES_MAX: Final = 1 << 20
FIRST_FRAME_BYTES_MAX: Final = 4096


def frame(body: bytes, *, frame_bytes_max: int = FRAME_BYTES_MAX) -> bytes:
    """Returns `body` with its length in front.  Raises ValueError on an empty or too long body."""
    if not 0 < len(body) <= frame_bytes_max:
        raise ValueError(f"a frame holds 1 to {frame_bytes_max} bytes, not {len(body)}")
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


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
            RemoteError: the length in front is 0 or above the limit; so does every later call.
        """
        if self._error is not None:
            raise RemoteError(self._error)
        if len(self._buffer) < LENGTH_BYTES:
            return None
        length = int.from_bytes(self._buffer[:LENGTH_BYTES], "little")
        if not 0 < length <= self._limit:
            self._error = f"a frame of {length} bytes, where 1 to {self._limit} are allowed"
            self._buffer.clear()
            raise RemoteError(self._error)
        end = LENGTH_BYTES + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[LENGTH_BYTES:end])
        del self._buffer[:end]
        self._limit = self._later_limit
        return body
