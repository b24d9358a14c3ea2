"""Dice that can be thrown again: secrets and run ids from one seed, so that a replay gets the same.

A stream of SHA-256 blocks over a 32-byte seed and a counter: without the seed nobody can tell the
next bytes from chance.  Who has the seed has every secret, so whatever records it is sensitive.
"""

from __future__ import annotations

import hashlib
from typing import Final

SEED_BYTES: Final = 32


class Dice:
    """Draws bytes; equal seeds give equal draws."""

    def __init__(self, seed: bytes) -> None:
        assert len(seed) == SEED_BYTES
        self._seed = seed
        self._drawn = 0

    def __call__(self, count: int) -> bytes:
        blocks = b""
        while len(blocks) < count:
            self._drawn += 1
            blocks += hashlib.sha256(self._seed + self._drawn.to_bytes(8, "little")).digest()
        return blocks[:count]
