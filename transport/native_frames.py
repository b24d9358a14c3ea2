"""The frames of the native control connections, as Python values.

Body, little-endian: 0xC1, type u8, version u8, then the fields of the type in order.  0xC1 is the
one byte no MessagePack document begins with, so one port serves both kinds.  The C++ side is
native/src/control/; tests/wire/native_frames.json holds vectors that both must agree on.

Kinds: ids, secrets and digests are 16 raw bytes; text is a u16 byte count and UTF-8; a list is a
u16 item count and the items; a bool is a byte that is 0 or 1.

Invariant: decode(encode(f)) == f; decode consumes every byte and checks every field, and raises
RemoteError otherwise.  A frame from the wire is therefore as trustworthy in shape as one made here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from pccl.base.errors import RemoteError

MAGIC: Final = 0xC1
VERSION: Final = 1
ID_BYTES: Final = 16
TEXT_BYTES_MAX: Final = 2048
COUNT_MAX: Final = 0xFFFF


class Purpose(IntEnum):
    """What a connection is for; the first thing its HELLO says."""

    COORDINATOR = 0
    DATA_LANE = 1
    PEER_CONTROL = 2


class RefusalCode(IntEnum):
    """Why a HELLO was not welcome."""

    PROTOCOL = 1
    RUN = 2
    SECRET = 3
    INCARNATION = 4
    LIMIT = 5
    PURPOSE = 6


class Waiting(IntEnum):
    """What a peer waits for, as its heartbeat says."""

    NOTHING = 0
    GATE = 1
    DATA = 2


class SuspectCode(IntEnum):
    """Why a peer asks for a flush."""

    DESCRIPTOR = 1
    DIGEST = 2
    DEADLINE = 3
    LINK_DOWN = 4
    LOCAL = 5


@dataclass(frozen=True, slots=True)
class NativeHello:
    """Opens a connection.  `secret` is the listener's for lanes and peer control, else our own."""

    purpose: int
    run_id: bytes
    peer_id: bytes
    incarnation: int
    secret: bytes
    lane: int = 0
    lanes: int = 0


@dataclass(frozen=True, slots=True)
class Welcome:
    generation: int = 0  # 0 from peers


@dataclass(frozen=True, slots=True)
class RefusedFrame:
    """The last frame of a connection that was not welcome."""

    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    generation: int
    epoch: int
    watermark: int  # all steps below are committed at the sender
    next_step: int
    progress: int  # bytes moved; only grows
    waiting: int = 0
    lag_ms: int = 0
    down: tuple[bytes, ...] = ()  # peers without a live lane for more than half a second


@dataclass(frozen=True, slots=True)
class Pong:
    generation: int
    epoch: int  # of the durable view


@dataclass(frozen=True, slots=True)
class Flush:
    generation: int
    target: int  # the epoch to come; everything below it is fenced


@dataclass(frozen=True, slots=True)
class OpenStep:
    """A step that was neither committed nor forgotten when the fence fell."""

    step: int
    epoch: int  # of the attempt
    sealed: bool
    complete: bool
    waiting: bool  # at the gate: not started in this epoch
    manifest: bytes
    digest: bytes
    name_hash: int


@dataclass(frozen=True, slots=True)
class Report:
    """The answer to FLUSH: a promise that nothing below `target` completes here any more."""

    generation: int
    target: int
    epoch: int  # of the sender's view
    switched: bool
    switch_step: int  # meaningful if switched
    watermark: int
    next_step: int
    committed: tuple[int, ...] = ()  # above the watermark
    open: tuple[OpenStep, ...] = ()


@dataclass(frozen=True, slots=True)
class Suspect:
    epoch: int
    step: int
    code: int
    suspects: tuple[bytes, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class EvictedFrame:
    generation: int
    text: str


@dataclass(frozen=True, slots=True)
class PeerBeat:
    epoch: int
    watermark: int
    progress: int


Frame = (
    NativeHello
    | Welcome
    | RefusedFrame
    | Heartbeat
    | Pong
    | Flush
    | Report
    | Suspect
    | EvictedFrame
    | PeerBeat
)


class UnknownVersion(RemoteError):
    """The frame is of another protocol version; a HELLO is then answered with REFUSED."""


class _Reader:
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
class _Kind:
    """How one field is written and read; both sides raise ValueError on a value out of range."""

    write: Callable[[Any], bytes]
    read: Callable[[_Reader], Any]


def _unsigned(code: str, low: int = 0, high: int | None = None) -> _Kind:
    layout = struct.Struct("<" + code)
    top = (1 << (8 * layout.size)) - 1 if high is None else high

    def check(value: int) -> int:
        if not low <= value <= top:
            raise ValueError(f"{value} is not within {low} to {top}")
        return value

    return _Kind(
        lambda value: layout.pack(check(value)),
        lambda reader: check(layout.unpack(reader.take(layout.size))[0]),
    )


def _write_id(value: bytes) -> bytes:
    if len(value) != ID_BYTES:
        raise ValueError(f"{len(value)} bytes instead of {ID_BYTES}")
    return bytes(value)


def _write_text(value: str) -> bytes:
    data = value.encode()
    if len(data) > TEXT_BYTES_MAX:
        raise ValueError(f"a text of {len(data)} bytes, more than {TEXT_BYTES_MAX}")
    return struct.pack("<H", len(data)) + data


def _read_text(reader: _Reader) -> str:
    (size,) = struct.unpack("<H", reader.take(2))
    if size > TEXT_BYTES_MAX:
        raise ValueError(f"a text of {size} bytes, more than {TEXT_BYTES_MAX}")
    return reader.take(size).decode()


def _list_of(item: _Kind) -> _Kind:
    def write(values: tuple[Any, ...]) -> bytes:
        if len(values) > COUNT_MAX:
            raise ValueError(f"{len(values)} items, more than {COUNT_MAX}")
        return struct.pack("<H", len(values)) + b"".join(item.write(value) for value in values)

    def read(reader: _Reader) -> tuple[Any, ...]:
        (count,) = struct.unpack("<H", reader.take(2))
        return tuple([item.read(reader) for _ in range(count)])

    return _Kind(write, read)


_U16, _U32, _U64 = _unsigned("H"), _unsigned("I"), _unsigned("Q")
_ID = _Kind(_write_id, lambda reader: reader.take(ID_BYTES))
_TEXT = _Kind(_write_text, _read_text)
_BYTE_BOOL = _unsigned("B", 0, 1)
_BOOL = _Kind(_BYTE_BOOL.write, lambda reader: bool(_BYTE_BOOL.read(reader)))
_FLAGS = _unsigned("B", 0, 7)


def _write_open_step(value: OpenStep) -> bytes:
    flags = (1 if value.sealed else 0) | (2 if value.complete else 0) | (4 if value.waiting else 0)
    return b"".join(
        (
            _U64.write(value.step),
            _U32.write(value.epoch),
            _FLAGS.write(flags),
            _ID.write(value.manifest),
            _ID.write(value.digest),
            _U64.write(value.name_hash),
        )
    )


def _read_open_step(reader: _Reader) -> OpenStep:
    step, epoch, flags = _U64.read(reader), _U32.read(reader), _FLAGS.read(reader)
    manifest, digest, name_hash = _ID.read(reader), _ID.read(reader), _U64.read(reader)
    return OpenStep(
        step, epoch, bool(flags & 1), bool(flags & 2), bool(flags & 4), manifest, digest, name_hash
    )


_OPEN_STEP = _Kind(_write_open_step, _read_open_step)
_IDS, _STEPS, _OPEN_STEPS = _list_of(_ID), _list_of(_U64), _list_of(_OPEN_STEP)

# One line per frame: its number, its class, and the kinds of its fields in the class's order.
_LAYOUTS: Final[tuple[tuple[int, type[Any], tuple[_Kind, ...]], ...]] = (
    (1, NativeHello, (_unsigned("B", 0, 2), _ID, _ID, _U64, _ID, _U16, _U16)),
    (2, Welcome, (_U64,)),
    (3, RefusedFrame, (_unsigned("B", 1, 6), _TEXT)),
    (4, Heartbeat, (_U64, _U32, _U64, _U64, _U64, _unsigned("B", 0, 2), _U32, _IDS)),
    (5, Pong, (_U64, _U32)),
    (6, Flush, (_U64, _U32)),
    (7, Report, (_U64, _U32, _U32, _BOOL, _U64, _U64, _U64, _STEPS, _OPEN_STEPS)),
    (8, Suspect, (_U32, _U64, _unsigned("B", 1, 5), _IDS, _TEXT)),
    (9, EvictedFrame, (_U64, _TEXT)),
    (10, PeerBeat, (_U32, _U64, _U64)),
)
_BY_NUMBER: Final = {number: (cls, kinds) for number, cls, kinds in _LAYOUTS}
_BY_CLASS: Final = {cls: (number, kinds) for number, cls, kinds in _LAYOUTS}


def is_native(body: bytes) -> bool:
    """Says whether a body is a native frame (and not MessagePack)."""
    return len(body) > 0 and body[0] == MAGIC


def encode(frame: Frame) -> bytes:
    """Returns the body of a frame.  Raises ValueError if a field is out of range: our mistake."""
    number, kinds = _BY_CLASS[type(frame)]
    parts = [bytes((MAGIC, number, VERSION))]
    for name, kind in zip(type(frame).__slots__, kinds, strict=True):
        try:
            parts.append(kind.write(getattr(frame, name)))
        except (ValueError, TypeError, struct.error) as error:
            raise ValueError(f"{type(frame).__name__}.{name}: {error}") from error
    return b"".join(parts)


def decode(body: bytes) -> Frame:
    """Returns the frame in `body`; raises RemoteError whatever is wrong with it."""
    body = bytes(body)
    if len(body) < 3 or body[0] != MAGIC:
        raise RemoteError("bad native frame: it does not begin like one")
    entry = _BY_NUMBER.get(body[1])
    if body[2] != VERSION:
        raise UnknownVersion(f"native frame of protocol version {body[2]}, ours is {VERSION}")
    if entry is None:
        raise RemoteError(f"bad native frame: type {body[1]} is unknown")
    cls, kinds = entry
    reader = _Reader(body)
    reader.take(3)
    values: list[Any] = []
    try:
        for kind in kinds:
            values.append(kind.read(reader))
        reader.finish()
    except ValueError as error:
        where = (*cls.__slots__, "the end")[len(values)]
        raise RemoteError(f"bad native frame: {cls.__name__}, {where}: {error}") from error
    frame: Frame = cls(*values)
    return frame
