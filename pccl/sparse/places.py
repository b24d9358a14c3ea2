"""Ascending places in blocks, in fewer bits than they have.

Theory: of k ascending places among n, each has its low bits written as they are, floor(log2(n / k))
of them; the high parts, which do not descend, are the numbers of zeros before each of k ones.  For
64 of 4096 that is 7.98 bits a place, where log2(C(4096, 64)) / 64 = 7.36 is the least on average.
An entropy code proper would save half a bit more, but its size would depend on the data, and a
collective whose sizes nobody knows costs a round to tell them.

Source: Elias 1974, Fano 1971 ("Elias-Fano").

Invariant: sizes depend on n, k and the number of blocks only; `decode` returns ascending places
below n, or raises ValueError.
"""

from __future__ import annotations

import numpy as np

from pccl.sparse.blocks import Places
from pccl.sparse.packing import Bytes, pack, packed_bytes, unpack


class PlaceCode:
    """Encodes places [count, k] in blocks of `size` elements."""

    def __init__(self, count: int, size: int, k: int) -> None:
        self._shape = (count, k)
        self._size = size
        self._whole = k == size  # then there is nothing to say
        self._low_bits = 0 if self._whole else (size // k).bit_length() - 1
        self._high_size = 0 if self._whole else k + ((size - 1) >> self._low_bits)
        self._low_bytes = packed_bytes(count * k, self._low_bits)
        self.encoded_bytes = self._low_bytes + packed_bytes(count * self._high_size, 1)

    def encode(self, places: Places) -> Bytes:
        if self._whole or not places.size:
            return np.zeros(0, np.uint8)
        count, k = self._shape
        low = places & np.uint16((1 << self._low_bits) - 1)
        ones = (places >> np.uint16(self._low_bits)) + np.arange(k)
        high = np.zeros((count, self._high_size), np.uint8)
        high[np.arange(count)[:, None], ones] = 1
        return np.concatenate([pack(low.reshape(-1), self._low_bits), np.packbits(high)])

    def decode(self, data: Bytes) -> Places:
        """Raises ValueError if no places are encoded so."""
        count, k = self._shape
        if data.size != self.encoded_bytes:
            raise ValueError(f"{data.size} bytes of places where {self.encoded_bytes} are expected")
        if self._whole:
            return np.broadcast_to(np.arange(k, dtype=np.uint16), self._shape)
        if not count:
            return np.zeros(self._shape, np.uint16)
        low = unpack(data[: self._low_bytes], count * k, self._low_bits).reshape(self._shape)
        bits = np.unpackbits(data[self._low_bytes :], count=count * self._high_size)
        high = bits.reshape(count, self._high_size)
        if (high.sum(axis=1, dtype=np.int64) != k).any():
            raise ValueError("a block has another number of places")
        ones = np.nonzero(high)[1].reshape(self._shape)
        places = ((ones - np.arange(k)) << self._low_bits) | low
        if int(places.max()) >= self._size:
            raise ValueError("a place lies outside of its block")
        if k > 1 and bool((places[:, 1:] <= places[:, :-1]).any()):
            raise ValueError("the places of a block do not ascend")
        return places.astype(np.uint16)
