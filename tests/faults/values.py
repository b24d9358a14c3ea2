"""What each peer contributes to each step: integers that give away who is in a sum.

A contribution is a stretch of one random table that begins where the peer's id says, plus a number
made of the id and the step.  So any process can compute what any set of peers must sum to, element
by element; a contribution that is missing, doubled, stale or shifted gives another sum.

Invariant: contributions are integers below 2^20, so sums of up to 16 of them are exact in f32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np

PEERS_MAX = 16
HALF = 1 << 19
SHIFTS = 1 << 16
SEED = 20


@cache
def _table(count: int) -> Any:
    return np.random.default_rng(SEED).integers(0, HALF, count + SHIFTS).astype(np.float32)


def contribution(peer: bytes, step: int, count: int) -> Any:
    """Returns the f32 array that `peer` brings to `step`."""
    mixed = hashlib.blake2b(peer + step.to_bytes(8, "little"), digest_size=8).digest()
    offset = int.from_bytes(peer[:2], "little")
    constant = int.from_bytes(mixed, "little") % HALF
    return _table(count)[offset : offset + count] + np.float32(constant)


def expected_sum(peers: Iterable[bytes], step: int, count: int) -> Any:
    """Returns the exact sum of the contributions of `peers`."""
    total = np.zeros(count, np.float32)
    for number, peer in enumerate(peers, 1):
        assert number <= PEERS_MAX, "the sum would not be exact"
        total += contribution(peer, step, count)
    return total


def digest(array: Any) -> str:
    """Returns a hash of an array's bytes, for the comparison between peers."""
    return hashlib.blake2b(memoryview(array).cast("B"), digest_size=8).hexdigest()
