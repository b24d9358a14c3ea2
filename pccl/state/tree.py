"""The hash tree of a state.

    leaf       content hash of at most 1 MiB of one tensor
    tensor     binary tree over its leaves, then bound to its name, element type and shape
    root       binary tree over the tensors in the order of the layout

XXH3-128 finds what has changed or was corrupted by chance, at memory speed; BLAKE3 also withstands
a peer that looks for two contents of one hash.  Source: R. Merkle, "A digital signature based on a
conventional encryption function" (1987).  A node without a sibling moves up unchanged; domains of
leaves' contents, inner nodes and tensors are kept apart by their first byte.

Invariant: equal roots mean equal layouts and equal contents, as far as the hash can tell.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pccl.base.errors import UsageError
from pccl.state.layout import LEAF_BYTES, Entry, Layout
from pccl.transport.digests import XXH3_BYTES, xxh3, xxh3_blocks

NODE: Final = b"\x01"
TENSOR: Final = b"\x02"
EMPTY: Final = b"\x03"


@dataclass(frozen=True, slots=True)
class Hashing:
    """A hash function over memory and over small values."""

    name: str
    digest_bytes: int
    blocks: Callable[[int, int, int], bytes]
    """(address, byte count, block bytes) -> the blocks' digests, one after the other."""
    value: Callable[[bytes], bytes]


def _blake3_blocks(address: int, byte_count: int, block_bytes: int) -> bytes:
    hash_type = _blake3()
    memory = np.ctypeslib.as_array((ctypes.c_uint8 * byte_count).from_address(address))
    blocks = (memory[at : at + block_bytes] for at in range(0, byte_count, block_bytes))
    return b"".join(hash_type(block).digest() for block in blocks)


def _blake3() -> Any:
    import blake3

    return blake3.blake3


XXH3: Final = Hashing("xxh3-128", XXH3_BYTES, xxh3_blocks, xxh3)
BLAKE3: Final = Hashing("blake3", 32, _blake3_blocks, lambda data: bytes(_blake3()(data).digest()))


def hashing_named(name: str) -> Hashing:
    """Raises UsageError for a name that is none of the two."""
    for known in (XXH3, BLAKE3):
        if known.name == name:
            return known
    raise UsageError(f"hashing is {XXH3.name!r} or {BLAKE3.name!r}, not {name!r}")


def root_of(layout: Layout, digests: bytes, hashing: Hashing) -> bytes:
    """Returns the root over the leaves' digests.

    Args:
        digests: of all leaves in the order of `layout.leaves`, one after the other.
    """
    size = hashing.digest_bytes
    assert len(digests) == size * layout.leaf_count
    at, tensors = 0, []
    for entry in layout.entries:
        count = -(-entry.byte_count // LEAF_BYTES)
        level = [digests[at + size * i : at + size * (i + 1)] for i in range(count)]
        at += size * count
        tensors.append(hashing.value(TENSOR + _domain(entry) + _top(level, hashing)))
    return _top(tensors, hashing)


def _domain(entry: Entry) -> bytes:
    return json.dumps([entry.name, entry.dtype.label, list(entry.shape)]).encode() + b"\0"


def _top(level: Sequence[bytes], hashing: Hashing) -> bytes:
    if not level:
        return hashing.value(EMPTY)
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [hashing.value(NODE + p[0] + p[1]) if len(p) == 2 else p[0] for p in pairs]
    return level[0]


def differing(ours: bytes, theirs: bytes, hashing: Hashing) -> list[int]:
    """Returns the leaves whose digests differ; both belong to one layout."""
    size = hashing.digest_bytes
    assert len(ours) == len(theirs)
    if ours == theirs:
        return []
    return [
        at // size
        for at in range(0, len(ours), size)
        if ours[at : at + size] != theirs[at : at + size]
    ]
