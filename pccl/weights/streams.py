"""Changed cells as bytes: where they are, and what they are now.  Pure; numpy does the work.

A *cell* is an element's bits as an unsigned integer.  Positions of changed cells are sorted, so
the gaps between them say all: gap = position - previous position - 1.  A gap is a run of digits of
255 (or of 65,535 where cells are sparse) and a last smaller one, so that a decoder needs one
running sum.  Values are split into planes, the first bytes of all, the second bytes of all: in
floats the plane with the exponent says little, and Huffman's code makes it small.  Each plane is
coded only if it is worth it.

Invariant: decode(encode(x)) == x for all sorted positions; no decoder allocates more than what
the number of cells of its segment allows, whatever bytes it is given.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pccl.base.errors import RemoteError

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]
Cells = npt.NDArray[Any]

RAW: Final = 0
HUFFMAN: Final = 1  # a deflate stream of literals alone
_WINDOW: Final = -15  # deflate without zlib's head and checksum: chunks have one of ours
_BLOCK_WORDS: Final = 1 << 15  # 256 KiB of each side: what is compared stays in the cache
_PLANE_MIN: Final = 512  # below it the table of a code costs as much as it gains
_WORTH: Final = 0.95  # of the raw size; for less gain no receiver should have to work


def unsigned(cell_bytes: int) -> np.dtype[Any]:
    """Returns the type that a cell's bits are seen as."""
    return np.dtype(f"<u{cell_bytes}")


def changed_cells(old: Bytes, new: Bytes, cell_bytes: int) -> Positions:
    """Returns the sorted positions of cells whose bits differ.

    Cost: both are read once, eight bytes at a time; a word that differs is looked at again.
    """
    assert old.size == new.size and old.size % cell_bytes == 0
    whole = old.size // 8 * 8
    words = _differing(old[:whole].view("<u8"), new[:whole].view("<u8"))
    found = words
    per_word = 8 // cell_bytes
    kind = unsigned(cell_bytes)
    if per_word > 1:
        before = old[:whole].view("<u8")[words].view(kind)
        after = new[:whole].view("<u8")[words].view(kind)
        hits = np.flatnonzero(before != after)
        found = words[hits // per_word] * per_word + hits % per_word
    if whole < old.size:
        tail = np.flatnonzero(old[whole:].view(kind) != new[whole:].view(kind))
        found = np.concatenate([found, tail + whole // cell_bytes])
    return found


def _differing(old: Cells, new: Cells) -> Positions:
    parts = []
    for start in range(0, old.size, _BLOCK_WORDS):
        end = start + _BLOCK_WORDS
        hits = np.flatnonzero(old[start:end] != new[start:end])
        if hits.size:
            parts.append(hits + start)
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


# ---- positions


def encode_positions(positions: Positions) -> tuple[int, Cells]:
    """Returns the bytes per digit, 1 or 2, and the digits of all gaps."""
    gaps = np.diff(positions, prepend=-1) - 1
    narrow = gaps.size + int((gaps // 0xFF).sum())
    wide = 2 * (gaps.size + int((gaps // 0xFFFF).sum()))
    return (
        (1, _digits(gaps, 0xFF, np.uint8)) if narrow <= wide else (2, _digits(gaps, 0xFFFF, "<u2"))
    )


def _digits(gaps: Positions, full: int, kind: Any) -> Cells:
    runs, last = np.divmod(gaps, full)
    ends = np.cumsum(runs + 1) - 1
    digits = np.full(int(ends[-1]) + 1 if ends.size else 0, full, kind)
    digits[ends] = last
    return digits


def digits_max(count: int, cell_count: int, digit_bytes: int) -> int:
    """Returns how many digits `count` positions below `cell_count` can take."""
    return count + cell_count // (0xFF if digit_bytes == 1 else 0xFFFF)


def decode_positions(digits: Cells, count: int, cell_count: int) -> Positions:
    """Returns `count` sorted positions below `cell_count`, or raises RemoteError."""
    full = 0xFF if digits.dtype.itemsize == 1 else 0xFFFF
    ends = np.flatnonzero(digits != full)
    if ends.size != count or (digits.size and int(ends[-1] if count else -1) != digits.size - 1):
        raise RemoteError(f"an update has {ends.size} positions where it announced {count}")
    sums = np.cumsum(digits, dtype=np.int64)
    positions: Positions = sums[ends] + np.arange(count, dtype=np.int64)
    if count and int(positions[-1]) >= cell_count:
        raise RemoteError(f"an update changes cell {int(positions[-1])} of {cell_count}")
    return positions


# ---- planes


def planes(cells: Cells) -> list[Bytes]:
    """Returns the first bytes of all cells, the second bytes of all, and so on."""
    width = cells.dtype.itemsize
    table = np.ascontiguousarray(cells).view(np.uint8).reshape(-1, width)
    return [np.ascontiguousarray(table[:, at]) for at in range(width)]


def from_planes(parts: list[Bytes]) -> Cells:
    """The inverse of `planes`."""
    table = np.empty((parts[0].size, len(parts)), np.uint8)
    for at, part in enumerate(parts):
        table[:, at] = part
    return table.reshape(-1).view(unsigned(len(parts)))


def encode_plane(plane: Bytes) -> tuple[int, bytes]:
    """Returns how a plane is coded, and its bytes."""
    raw = plane.tobytes()
    if plane.size < _PLANE_MIN or _entropy_bytes(plane) > _WORTH * plane.size:
        return RAW, raw
    packer = zlib.compressobj(1, zlib.DEFLATED, _WINDOW, 9, zlib.Z_HUFFMAN_ONLY)
    packed = packer.compress(raw) + packer.flush()
    return (HUFFMAN, packed) if len(packed) < _WORTH * len(raw) else (RAW, raw)


def decode_plane(coding: int, data: memoryview, size: int) -> Bytes:
    """Returns a plane of exactly `size` bytes, or raises RemoteError; allocates no more."""
    if coding == RAW:
        if len(data) != size:
            raise RemoteError(f"a plane has {len(data)} bytes, not {size}")
        return np.frombuffer(data, np.uint8)
    if coding != HUFFMAN:
        raise RemoteError(f"a plane has the unknown coding {coding}")
    unpacker = zlib.decompressobj(_WINDOW)
    try:
        raw = unpacker.decompress(data, size + 1)
    except zlib.error as error:
        raise RemoteError(f"a plane cannot be decoded: {error}") from error
    if len(raw) != size or not unpacker.eof or unpacker.unused_data:
        raise RemoteError(f"a plane does not have the {size} bytes it should")
    return np.frombuffer(raw, np.uint8)


def _entropy_bytes(plane: Bytes) -> float:
    counts = np.bincount(plane, minlength=256)
    shares = counts[counts > 0] / plane.size
    return float(-(shares * np.log2(shares)).sum()) * plane.size / 8
