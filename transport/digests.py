"""Hashes of memory at memory speed, by the native core, without the GIL.

Invariant: what a hash says of memory is true only if nobody writes to it meanwhile.
"""

from __future__ import annotations

from typing import Any

from pccl.transport.native_core import load_native

XXH3_BYTES = 16


def xxh3_blocks(address: int, byte_count: int, block_bytes: int) -> bytes:
    """Returns XXH3-128 of each block of the memory, 16 bytes each; the last may be short."""
    native: Any = load_native()
    return bytes(native.xxh3_128_blocks(address, byte_count, block_bytes))


def xxh3(data: bytes) -> bytes:
    """Returns XXH3-128 of `data`."""
    native: Any = load_native()
    return bytes(native.xxh3_128(data))
