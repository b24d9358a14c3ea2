"""Turns the bytes of a fuzzer into values: numbers, choices, messages of every shape.

The bytes are the whole of a case, so a case is replayed by its bytes alone; when they run out, all
further draws are zero.  Messages are drawn along their type hints, so a field that is added is
fuzzed without a change here.
"""

from __future__ import annotations

import types
import typing
from collections import deque
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from enum import IntEnum
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")
EDGES = (0, 1, 2, 255, 256, 65535, 65536, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1)
FLOATS = (0.0, 1.0, -1.0, 0.25, 1e-9, 1e9, 1e300, -1e300)
TEXTS = ("", "step", "sync", "10.0.0.9", "::1", "x" * 255, "ä\n\x00", "x" * 5000)
KNOWN_MAX = 32  # of each kind; the newest are what a machine is about


class Source:
    """Draws from bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Says whether bytes are left."""
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def byte(self) -> int:
        taken = self.take(1)
        return taken[0] if taken else 0

    def chance(self, one_in: int) -> bool:
        return self.byte() % one_in == one_in - 1

    def below(self, limit: int) -> int:
        return self.byte() % limit if limit <= 256 else int.from_bytes(self.take(2), "big") % limit

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def rest(self) -> bytes:
        return self.take(len(self._data))


class Known:
    """Values that a machine has said or was told, to be said again by others."""

    def __init__(self) -> None:
        self._numbers: deque[int] = deque((0, 1), KNOWN_MAX)
        self._bytes: deque[bytes] = deque((b"", bytes(16)), KNOWN_MAX)

    def note(self, value: object) -> None:
        """Keeps all numbers and byte strings in a value."""
        if isinstance(value, bool | float | str) or value is None:
            return
        if isinstance(value, int):
            if value not in self._numbers:
                self._numbers.append(int(value))
        elif isinstance(value, bytes):
            if len(value) <= 64 and value not in self._bytes:
                self._bytes.append(value)
        elif isinstance(value, tuple):
            for item in value[:4]:
                self.note(item)
        elif is_dataclass(value):
            for item in fields(value):
                self.note(getattr(value, item.name))

    def number(self, source: Source) -> int:
        match source.below(8):
            case 0:
                return source.byte()
            case 1:
                return source.pick(EDGES)
            case 2:
                return min(source.pick(self._numbers) + 1, EDGES[-1])
            case 3:
                return max(0, source.pick(self._numbers) - 1)
            case _:
                return source.pick(self._numbers)

    def binary(self, source: Source) -> bytes:
        match source.below(8):
            case 0:
                return source.take(source.below(20))
            case 1:
                return bytes([source.byte()]) * 16
            case _:
                return source.pick(self._bytes)


@cache
def hints_of(cls: type) -> tuple[tuple[str, Any], ...]:
    hints = typing.get_type_hints(cls)
    return tuple((item.name, hints[item.name]) for item in fields(cls))


def draw(hint: Any, source: Source, known: Known) -> Any:
    """Draws a value of a type; dataclasses that refuse their fields raise ValueError."""
    origin = typing.get_origin(hint)
    if origin is typing.Union or origin is types.UnionType:
        return draw(source.pick(typing.get_args(hint)), source, known)
    if origin is tuple:
        (item, _) = typing.get_args(hint)
        return tuple(draw(item, source, known) for _ in range(source.below(4)))
    if hint is bool:
        return source.chance(2)
    if hint is int:
        return known.number(source)
    if hint is float:
        return source.pick(FLOATS)
    if hint is str:
        return source.pick(TEXTS)
    if hint is bytes:
        return known.binary(source)
    if hint is type(None):
        return None
    if issubclass(hint, IntEnum):
        return source.pick(list(hint))
    return hint(**{name: draw(inner, source, known) for name, inner in hints_of(hint)})


def draw_or_none(hint: Any, source: Source, known: Known) -> Any:
    """Draws a message, or None if its fields do not go together."""
    try:
        return draw(hint, source, known)
    except ValueError:
        return None
