"""What a state looks like: names, element types and shapes, in one canonical order.  Pure.

Invariant: equal states have equal layouts, byte for byte, on every machine; `decode` returns a
layout that `encode` could have written, or raises RemoteError.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, zip_longest
from typing import Any, Final, Self

from pccl.base.errors import RemoteError, UsageError
from pccl.collectives.dtypes import ITEM_BYTES, Dtype
from pccl.transport.digests import xxh3

LEAF_BYTES: Final = 1 << 20
ENTRIES_MAX: Final = 1 << 20
NAME_CHARACTERS_MAX: Final = 1024
DIMENSIONS_MAX: Final = 64
STATE_BYTES_MAX: Final = 1 << 46  # 64 TiB: more than any process holds, and no overflow anywhere
ENCODED_BYTES_MAX: Final = 256 << 20


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One tensor of a state."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= NAME_CHARACTERS_MAX:
            raise UsageError(f"a tensor's name has 1 to {NAME_CHARACTERS_MAX} characters")
        if len(self.shape) > DIMENSIONS_MAX or any(n < 0 for n in self.shape):
            raise UsageError(f"{self.name!r} has an impossible shape: {self.shape}")

    @property
    def byte_count(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.name!r}, {self.dtype.label}{list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Leaf:
    """A piece of one tensor, at most LEAF_BYTES; what is hashed, sent and verified as one."""

    entry: int
    offset: int
    byte_count: int


@dataclass(frozen=True)
class Layout:
    """The tensors of a state, sorted by name."""

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Self:
        """Raises UsageError if two tensors have one name, or there are too many."""
        ordered = tuple(sorted(entries))
        for before, after in pairwise(ordered):
            if before.name == after.name:
                raise UsageError(f"two tensors of the state are called {after.name!r}")
        if len(ordered) > ENTRIES_MAX:
            raise UsageError(f"the state has {len(ordered)} tensors; at most {ENTRIES_MAX}")
        layout = cls(ordered)
        if layout.byte_count > STATE_BYTES_MAX:
            raise UsageError(f"the state has {layout.byte_count} bytes; at most {STATE_BYTES_MAX}")
        return layout

    @cached_property
    def byte_count(self) -> int:
        return sum(entry.byte_count for entry in self.entries)

    @cached_property
    def leaf_count(self) -> int:
        return sum(-(-entry.byte_count // LEAF_BYTES) for entry in self.entries)

    @cached_property
    def encoded(self) -> bytes:
        rows = [[e.name, e.dtype.label, list(e.shape)] for e in self.entries]
        return json.dumps(rows, ensure_ascii=True, separators=(",", ":")).encode()

    @cached_property
    def digest(self) -> bytes:
        return xxh3(self.encoded)

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        return tuple(self._cut())

    def _cut(self) -> Iterator[Leaf]:
        for index, entry in enumerate(self.entries):
            count = entry.byte_count
            for offset in range(0, count, LEAF_BYTES):
                yield Leaf(index, offset, min(LEAF_BYTES, count - offset))

    def first_difference(self, other: Layout) -> str | None:
        """Says in words how the first tensor that differs, differs; None if all are alike."""
        for ours, theirs in zip_longest(self.entries, other.entries):
            if ours == theirs:
                continue
            if theirs is None or (ours is not None and ours.name < theirs.name):
                return f"{ours} is only here"
            if ours is None or theirs.name < ours.name:
                return f"{theirs} is missing here"
            return f"{ours} here is {theirs.dtype.label}{list(theirs.shape)} there"
        return None

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises RemoteError if the bytes are no layout in its one canonical form."""
        try:
            rows = json.loads(data)
            if not isinstance(rows, list):
                raise ValueError("no list")
            layout = cls.of(_entry(row) for row in rows)
        except (ValueError, TypeError, KeyError, RecursionError, UsageError) as error:
            raise RemoteError(f"a layout that is none: {error}") from error
        if layout.encoded != data:
            raise RemoteError("a layout in another form than the canonical one")
        return layout


def _entry(row: Any) -> Entry:
    name, label, shape = row
    if not isinstance(name, str) or not isinstance(label, str) or not isinstance(shape, list):
        raise ValueError("a tensor is a name, a type and a shape")
    if not all(type(n) is int and n <= STATE_BYTES_MAX for n in shape):
        raise ValueError(f"the shape of {name!r}")
    return Entry(name, Dtype[label.upper()], tuple(shape))
