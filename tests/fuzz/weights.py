"""Fuzz targets of weight sync: an update that anybody may have written, and positions of any kind.

Whatever the bytes say, a state is brought to what they promise or stays as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import cache
from typing import Any, cast

import numpy as np

from pccl.base.errors import RemoteError, UsageError
from pccl.transport.framing import frame
from pccl.weights import streams
from pccl.weights.applying import apply_updates, digest_of
from pccl.weights.errors import BaseMismatch
from pccl.weights.frames import Message, codec
from pccl.weights.layout import tensor_digest, tensors_of
from pccl.weights.stream import Stream, StreamEnded
from pccl.weights.update import encode_anchor, encode_delta, parse
from tests.fuzz.drawing import Source

State = dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.uint16]]"]


def state(number: int) -> State:
    table = np.arange(40, dtype=np.uint16).reshape(5, 8)
    table[number % 5, 3:5] += number
    return {"a": table, "b": np.array(number, np.uint16), "c": np.zeros((0, 3), np.uint16)}


def updates() -> list[bytes]:
    """An anchor of state 0, and deltas from it to others."""
    base = tensors_of(state(0))
    digests = [tensor_digest(t.memory) for t in base]
    memory = [t.memory for t in base]
    whole = digest_of(base)
    found = [encode_anchor(base, digests, 1)]
    for number in (0, 1, 7):
        new = tensors_of(state(number))
        found.append(encode_delta(new, memory, digests, 2, whole).payload)
    return found


def update(data: bytes) -> None:
    """Any bytes as an update of a small state."""
    held = state(0)
    tensors = tensors_of(held, writable=True)
    before = digest_of(tensors)
    try:
        parsed = parse(memoryview(data), state_bytes_max=1 << 12)
        apply_updates(tensors, [parsed])
    except (RemoteError, UsageError, BaseMismatch):
        assert digest_of(tensors) == before, "what was refused has changed something"
        return
    assert digest_of(tensors) == parsed.digest


def positions(data: bytes) -> None:
    """Any digits as positions of changed cells, any bytes as a plane."""
    source = Source(data)
    count, cells, coding, size = (source.below(1000) for _ in range(4))
    wide = source.chance(2)
    rest = source.rest()
    digits = np.frombuffer(rest[: len(rest) // 2 * 2], "<u2" if wide else "u1")
    with contextlib.suppress(RemoteError):
        found = streams.decode_positions(digits, count, cells)
        assert found.size == count and (np.diff(found) > 0).all()
        assert not count or (found[0] >= 0 and found[-1] < cells)
    with contextlib.suppress(RemoteError):
        assert streams.decode_plane(coding % 3, memoryview(rest), size).size == size


class _Writer:
    """Nobody reads what this end says."""

    def get_extra_info(self, name: str) -> None:
        return None


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


async def _heard(pieces: list[bytes]) -> tuple[list[Message], str]:
    """What comes of a stream, and how it ends.  All of it is there: nothing ever waits."""
    reader = asyncio.StreamReader()
    end = Stream(reader, cast("Any", _Writer()), frame_bytes_max=200)
    for piece in pieces:
        reader.feed_data(piece)
    reader.feed_eof()
    heard: list[Message] = []
    try:
        while True:
            heard.append(await end.receive(60.0))
    except (StreamEnded, RemoteError) as error:
        return heard, type(error).__name__


def stream(data: bytes) -> None:
    """Bodies in frames, some of them damaged, on a stream between a publisher and a receiver."""
    source, said = Source(data), b""
    while source:
        body = source.take(1 + source.below(64))
        whole = bytearray(frame(body) if body and not source.chance(8) else body)
        if whole and source.chance(8):
            whole[source.below(len(whole))] ^= 1 << source.below(8)
        said += whole
    cut = len(said) // 3
    heard, end = _loop().run_until_complete(_heard([said]))
    assert (heard, end) == _loop().run_until_complete(_heard([said[:cut], said[cut:]]))
    for message in heard:
        assert codec.decode(codec.encode(message)) == message


def stream_seeds(bodies: list[bytes]) -> list[bytes]:
    short = [body for body in bodies if 0 < len(body) <= 64]
    listed = [bytes((len(body) - 1,)) + body + b"\x00\x00" for body in short]
    return [*listed, b"".join(listed[:4]), b"\x07garbage!\x07\x07"]
