"""The frames of the native control connections, as Python values.

Body, little-endian: 0xC1, type u8, version u8, then the fields of the type in order.  0xC1 is the
one byte no MessagePack document begins with, so one port serves both kinds.  The C++ side is
native/src/control/; tests/wire/native_frames.json holds vectors that both must agree on.

Invariant: decode(encode(f)) == f; decode consumes every byte and checks every field, and raises
RemoteError otherwise.  A frame from the wire is therefore as trustworthy in shape as one made here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from pccl.base.errors import RemoteError
from pccl.transport.native_kinds import (
    BOOL,
    ID,
    TEXT,
    U32,
    U64,
    Kind,
    Reader,
    list_of,
    one_of,
    struct_of,
    unsigned,
)

MAGIC: Final = 0xC1
VERSION: Final = 4
NO_STEP: Final = (1 << 64) - 1


class Purpose(IntEnum):
    """What a connection is for; the first thing its HELLO says."""

    COORDINATOR = 0
    DATA_LANE = 1
    PEER_CONTROL = 2
    RELAY = 3
    RELAYED_LANE = 4
    STREAM = 5


class RefusalCode(IntEnum):
    """Why a HELLO was not welcome."""

    PROTOCOL = 1
    RUN = 2
    SECRET = 3
    INCARNATION = 4
    LIMIT = 5
    PURPOSE = 6
    UNREACHABLE = 7
    GENERATION = 8  # a coordinator on an old copy of its journal; for now
    SECURITY = 9  # one side is of a secured run, the other is not, or cannot prove its name


class Waiting(IntEnum):
    """What a peer's oldest open step waits for, as its heartbeat says."""

    NOTHING = 0
    GATE = 1
    PEERS = 2
    PROGRAM = 3  # the peer's own: the step is begun and not sealed


class WaitKind(IntEnum):
    """What is missing of another peer."""

    POST = 1  # its OPEN or SEAL: its program is not there yet
    DATA = 2  # its slices or its DONE
    CREDIT = 3  # bytes for it are queued and it takes none
    UNREAD = 4  # nothing: its bytes are here, and the sender of this does not read them


class SuspectCode(IntEnum):
    """Why a peer asks for a flush, and why a step failed: 6 only that; who says 7 means itself."""

    DESCRIPTOR = 1
    DIGEST = 2
    DEADLINE = 3
    LINK_DOWN = 4
    LOCAL = 5
    UNDERFLOW = 6
    EXCLUDED = 7
    VIEW_CHANGED = 9  # 8 is the native core's own, for a program that has left
    NONFINITE = 10


@dataclass(frozen=True, slots=True)
class NativeHello:
    """Opens a connection.  `secret` is the listener's for lanes and peer control, else our own."""

    purpose: int
    run_id: bytes
    peer_id: bytes
    incarnation: int
    secret: bytes
    series: int = 0  # of a lane: the dialler's lanes of an older one are over
    generation: int = 0  # towards a coordinator: the newest one that was followed; else 0
    epoch: int = 0  # towards a coordinator: the one in force; else 0


@dataclass(frozen=True, slots=True)
class Welcome:
    generation: int = 0  # 0 from peers


@dataclass(frozen=True, slots=True)
class RefusedFrame:
    """The last frame of a connection that was not welcome."""

    code: int
    text: str


@dataclass(frozen=True, slots=True)
class WaitOn:
    peer: bytes
    kind: int  # a WaitKind


@dataclass(frozen=True, slots=True)
class Heartbeat:
    generation: int
    epoch: int
    watermark: int  # all steps below are committed at the sender
    next_step: int
    progress: int  # bytes moved and frames handled; only grows
    lag_ms: int = 0  # how late the sender's timer was
    rtt_us: int = 0  # from a heartbeat to its Pong, smoothed; 0: not known
    step: int = NO_STEP  # the oldest open one
    waiting: int = 0  # what it waits for, a Waiting
    waits: tuple[WaitOn, ...] = ()  # and on whom
    down: tuple[bytes, ...] = ()  # peers without a live lane for more than half a second
    relayed: tuple[bytes, ...] = ()  # peers reached through a third one


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
    bound: bool = False  # holds an operation that means nothing among other members


@dataclass(frozen=True, slots=True)
class FailedStep:
    """A step that the members have failed, as the sender was told; a SuspectCode says why."""

    step: int
    code: int


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
    failed: tuple[FailedStep, ...] = ()  # the last ones: they too are below the watermark


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


@dataclass(frozen=True, slots=True)
class Route:
    """Lanes to `peer` run through `via`."""

    peer: bytes
    via: bytes


@dataclass(frozen=True, slots=True)
class Routes:
    """The whole table of the receiving peer; it replaces the one before."""

    generation: int
    epoch: int
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True, slots=True)
class RelayFrame:
    """After a HELLO of purpose RELAY: whom the bytes to come are for."""

    peer: bytes
    incarnation: int
    call: int = 0  # 0: a lane; else the sender's number for this call, a stream
    answers: bool = False  # that peer has called the sender


@dataclass(frozen=True, slots=True)
class CallFrame:
    """To a peer that nobody can dial: `peer` waits at the sender to open a stream to it."""

    peer: bytes
    incarnation: int
    call: int


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
    | Routes
    | RelayFrame
    | CallFrame
)


class UnknownVersion(RemoteError):
    """The frame is of another protocol version; a HELLO is then answered with REFUSED."""


_FLAGS = unsigned("B", 0, 15)
_SUSPECTED = one_of("B", set(SuspectCode) - {SuspectCode.UNDERFLOW})


def _write_open_step(value: OpenStep) -> bytes:
    flags = (1 if value.sealed else 0) | (2 if value.complete else 0)
    flags |= (4 if value.waiting else 0) | (8 if value.bound else 0)
    return b"".join(
        (
            U64.write(value.step),
            U32.write(value.epoch),
            _FLAGS.write(flags),
            ID.write(value.manifest),
            ID.write(value.digest),
            U64.write(value.name_hash),
        )
    )


def _read_open_step(reader: Reader) -> OpenStep:
    step, epoch, flags = U64.read(reader), U32.read(reader), _FLAGS.read(reader)
    manifest, digest, name_hash = ID.read(reader), ID.read(reader), U64.read(reader)
    sealed, complete, waiting, bound = (bool(flags & bit) for bit in (1, 2, 4, 8))
    return OpenStep(step, epoch, sealed, complete, waiting, manifest, digest, name_hash, bound)


_OPEN_STEP = Kind(_write_open_step, _read_open_step)
_IDS, _STEPS, _OPEN_STEPS = list_of(ID), list_of(U64), list_of(_OPEN_STEP)
_WAITS = list_of(struct_of(WaitOn, ID, unsigned("B", 1, 4)))
_FAILED = list_of(struct_of(FailedStep, U64, unsigned("B", 0, max(SuspectCode))))
_ROUTES = list_of(struct_of(Route, ID, ID))
_WAITING = unsigned("B", 0, 3)

# One line per frame: its number, its class, and the kinds of its fields in the class's order.
_LAYOUTS: Final[tuple[tuple[int, type[Any], tuple[Kind, ...]], ...]] = (
    (1, NativeHello, (unsigned("B", 0, max(Purpose)), ID, ID, U64, ID, U32, U64, U32)),
    (2, Welcome, (U64,)),
    (3, RefusedFrame, (unsigned("B", 1, 9), TEXT)),
    (4, Heartbeat, (U64, U32, U64, U64, U64, U32, U32, U64, _WAITING, _WAITS, _IDS, _IDS)),
    (5, Pong, (U64, U32)),
    (6, Flush, (U64, U32)),
    (7, Report, (U64, U32, U32, BOOL, U64, U64, U64, _STEPS, _OPEN_STEPS, _FAILED)),
    (8, Suspect, (U32, U64, _SUSPECTED, _IDS, TEXT)),
    (9, EvictedFrame, (U64, TEXT)),
    (10, PeerBeat, (U32, U64, U64)),
    (11, Routes, (U64, U32, _ROUTES)),
    (12, RelayFrame, (ID, U64, U64, BOOL)),
    (13, CallFrame, (ID, U64, U64)),
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
    reader = Reader(body)
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
