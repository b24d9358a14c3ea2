"""Small unsigned integers, packed bit by bit.  Pure.

Invariant: `unpack(pack(x, bits), len(x), bits) == x` for all x below 2 ** bits; the first value's
highest bit is the first byte's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint16]
Bytes = npt.NDArray[np.uint8]
BITS_MAX = 16


def packed_bytes(count: int, bits: int) -> int:
    """Returns the bytes that `count` values of so many bits take."""
    return (count * bits + 7) // 8


def pack(values: Words, bits: int) -> Bytes:
    """Packs values below 2 ** bits, 0 ≤ bits ≤ 16; with 0 bits there is nothing to say.

    Cost: 16 bytes of memory per value while it runs.
    """
    assert 0 <= bits <= BITS_MAX
    if bits == 0 or not values.size:
        return np.zeros(0, np.uint8)
    if bits == 8:
        return values.astype(np.uint8)
    rows = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)
    return np.packbits(rows[:, BITS_MAX - bits :])


def unpack(data: Bytes, count: int, bits: int) -> Words:
    """Returns the `count` values that `pack` was given."""
    assert data.size == packed_bytes(count, bits)
    if bits == 0 or not count:
        return np.zeros(count, np.uint16)
    if bits == 8:
        return data.astype(np.uint16)
    rows = np.zeros((count, BITS_MAX), np.uint8)
    rows[:, BITS_MAX - bits :] = np.unpackbits(data, count=count * bits).reshape(count, bits)
    return np.packbits(rows, axis=1).view(">u2").reshape(count).astype(np.uint16)
