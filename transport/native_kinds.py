"""How single fields of native control frames are written and read.

Kinds: ids, secrets and digests are 16 raw bytes; text is a u16 byte count and UTF-8; a list is a
u16 item count and the items; a bool is a byte that is 0 or 1; integers are little-endian.

Invariant: what a kind writes it reads back, and it reads nothing else; both raise ValueError on a
value out of range, and a Reader never reads past its end.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

ID_BYTES: Final = 16
TEXT_BYTES_MAX: Final = 2048
COUNT_MAX: Final = 0xFFFF


class Reader:
    """Takes fields off a body; never reads past its end."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._body):
            raise ValueError(f"ends {end - len(self._body)} bytes early")
        taken = self._body[self._at : end]
        self._at = end
        return taken

    def finish(self) -> None:
        if self._at != len(self._body):
            raise ValueError(f"has {len(self._body) - self._at} bytes too many")


@dataclass(frozen=True, slots=True)
class Kind:
    """How one field is written and read; both sides raise ValueError on a value out of range."""

    write: Callable[[Any], bytes]
    read: Callable[[Reader], Any]


def unsigned(code: str, low: int = 0, high: int | None = None) -> Kind:
    layout = struct.Struct("<" + code)
    top = (1 << (8 * layout.size)) - 1 if high is None else high

    def check(value: int) -> int:
        if not low <= value <= top:
            raise ValueError(f"{value} is not within {low} to {top}")
        return value

    return Kind(
        lambda value: layout.pack(check(value)),
        lambda reader: check(layout.unpack(reader.take(layout.size))[0]),
    )


def one_of(code: str, values: Collection[int]) -> Kind:
    """An unsigned that is one of these."""
    kind = unsigned(code, min(values), max(values))

    def check(value: int) -> int:
        if value not in values:
            raise ValueError(f"{value} is none of {', '.join(map(str, values))}")
        return value

    return Kind(lambda value: kind.write(check(value)), lambda reader: check(kind.read(reader)))


def _write_id(value: bytes) -> bytes:
    if len(value) != ID_BYTES:
        raise ValueError(f"{len(value)} bytes instead of {ID_BYTES}")
    return bytes(value)


def _write_text(value: str) -> bytes:
    data = value.encode()
    if len(data) > TEXT_BYTES_MAX:
        raise ValueError(f"a text of {len(data)} bytes, more than {TEXT_BYTES_MAX}")
    return struct.pack("<H", len(data)) + data


def _read_text(reader: Reader) -> str:
    (size,) = struct.unpack("<H", reader.take(2))
    if size > TEXT_BYTES_MAX:
        raise ValueError(f"a text of {size} bytes, more than {TEXT_BYTES_MAX}")
    return reader.take(size).decode()


def list_of(item: Kind) -> Kind:
    def write(values: tuple[Any, ...]) -> bytes:
        if len(values) > COUNT_MAX:
            raise ValueError(f"{len(values)} items, more than {COUNT_MAX}")
        return struct.pack("<H", len(values)) + b"".join(item.write(value) for value in values)

    def read(reader: Reader) -> tuple[Any, ...]:
        (count,) = struct.unpack("<H", reader.take(2))
        return tuple([item.read(reader) for _ in range(count)])

    return Kind(write, read)


def struct_of(cls: type[Any], *kinds: Kind) -> Kind:
    """A dataclass whose fields follow each other."""

    def write(value: Any) -> bytes:
        names = cls.__slots__
        return b"".join(k.write(getattr(value, n)) for k, n in zip(kinds, names, strict=True))

    return Kind(write, lambda reader: cls(*[kind.read(reader) for kind in kinds]))


U32, U64 = unsigned("I"), unsigned("Q")
ID = Kind(_write_id, lambda reader: reader.take(ID_BYTES))
TEXT = Kind(_write_text, _read_text)
_BYTE_BOOL = unsigned("B", 0, 1)
BOOL = Kind(_BYTE_BOOL.write, lambda reader: bool(_BYTE_BOOL.read(reader)))
