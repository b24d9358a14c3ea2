"""Fuzz targets of weight sync: an update that anybody may have written, and positions of any kind.

Whatever the bytes say, a state is brought to what they promise or stays as it is.
"""

from __future__ import annotations

import contextlib

import numpy as np

from pccl.base.errors import RemoteError, UsageError
from pccl.weights import streams
from pccl.weights.applying import apply_updates, digest_of
from pccl.weights.errors import BaseMismatch
from pccl.weights.layout import tensor_digest, tensors_of
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
