"""The bytes of a flight recording: a coordinator's whole state, then every event it was given.

A recording is the magic, and frames (`transport.framing`) that hold one entry each:

    Begin, StatePart ..., (Arrived or TimePassed or Misfit) ..., End

Begin and its parts are the machine itself, pickled: after a recording has wrapped, the durable
record alone would not be where the machine was.  Each later entry carries a digest of the effects
that followed, so that a replay which goes another way is noticed at its first different step.

Reading is strict, because a file may come from anywhere: entries are decoded by the project's
codec, and the pickle may name only plain classes of the rooms that decide.  Errors: RemoteError.

Invariant: event(arrived(e)) == e.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import pickletools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, assert_never

from pccl.base.errors import RemoteError
from pccl.base.ids import ID_BYTES
from pccl.membership import events as v
from pccl.membership.messages import coordinator_codec, peer_codec
from pccl.membership.record import record_codec
from pccl.transport import native_frames
from pccl.transport.codec import Codec, message
from pccl.transport.framing import HEAD_BYTES, Framer, frame

MAGIC: Final = b"PCCLFLY1"
FORMAT: Final = 1
PART_BYTES: Final = 200_000  # below the codec's limit for byte strings
DIGEST_BYTES: Final = 8
CHUNK_BYTES: Final = 1 << 16
_DECIDING: Final = ("pccl.membership.", "pccl.transport.native_frames", "pccl.base.config")
_SHELLS: Final = ("pccl.membership.agent", "pccl.membership.journal", "pccl.membership.service")
_NEVER_WRITTEN: Final = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))  # by `freeze`
_BUILTINS: Final = frozenset(("set", "frozenset", "bytearray", "complex"))


@message(1)
@dataclass(frozen=True, slots=True)
class Begin:
    """The first entry; `parts` StatePart follow."""

    format: int
    version: str  # of pccl: a state is read by the version that wrote it
    now_s: float
    parts: int


@message(2)
@dataclass(frozen=True, slots=True)
class StatePart:
    state: bytes


@message(3)
@dataclass(frozen=True, slots=True)
class Arrived:
    """An event was handed in; which fields mean something depends on its kind."""

    now_s: float
    effects: bytes
    kind: int
    number: int = 0  # connection, incarnation or token
    body: bytes = b""  # message, frame or peer id
    text: str = ""
    seconds: float = 0.0
    flag: bool = False


@message(4)
@dataclass(frozen=True, slots=True)
class TimePassed:
    now_s: float
    effects: bytes


@message(5)
@dataclass(frozen=True, slots=True)
class Misfit:
    """A connection sent what is no message."""


@message(6)
@dataclass(frozen=True, slots=True)
class End:
    """The coordinator was told to stop; what its status was then."""

    now_s: float
    status: bytes


Entry = Begin | StatePart | Arrived | TimePassed | Misfit | End
entry_codec: Codec[Entry] = Codec(Begin, StatePart, Arrived, TimePassed, Misfit, End)


# ---------------------------------------------------------------------- events and effects


def arrived(event: v.Event, now_s: float, effects: bytes) -> Arrived:
    match event:
        case v.ConnUp(conn, host):
            return Arrived(now_s, effects, 1, number=conn, text=host)
        case v.ConnDown(conn):
            return Arrived(now_s, effects, 2, number=conn)
        case v.PeerMessage(conn, msg):
            return Arrived(now_s, effects, 3, number=conn, body=peer_codec.encode(msg))
        case v.NativeFrame(conn, said):
            return Arrived(now_s, effects, 4, number=conn, body=native_frames.encode(said))
        case v.Dialled(peer_id, incarnation, alive):
            return Arrived(now_s, effects, 5, number=incarnation, body=peer_id, flag=alive)
        case v.Synced(token):
            return Arrived(now_s, effects, 6, number=token)
        case v.Paused(duration_s):
            return Arrived(now_s, effects, 7, seconds=duration_s)
        case v.Denied(peer_ids):
            return Arrived(now_s, effects, 8, body=b"".join(peer_ids))
        case _:
            assert_never(event)


def event(entry: Arrived) -> v.Event:
    match entry.kind:
        case 1:
            return v.ConnUp(entry.number, entry.text)
        case 2:
            return v.ConnDown(entry.number)
        case 3:
            return v.PeerMessage(entry.number, peer_codec.decode(entry.body))
        case 4:
            return v.NativeFrame(entry.number, native_frames.decode(entry.body))
        case 5:
            return v.Dialled(entry.body, entry.number, entry.flag)
        case 6:
            return v.Synced(entry.number)
        case 7:
            return v.Paused(entry.seconds)
        case 8:
            ids = range(0, len(entry.body), ID_BYTES)
            return v.Denied(tuple(entry.body[at : at + ID_BYTES] for at in ids))
        case _:
            raise RemoteError(f"a recorded event of the unknown kind {entry.kind}")


def digest(effects: Iterable[v.Effect]) -> bytes:
    """Returns what tells one list of effects from another."""
    total = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for effect in effects:
        match effect:
            case v.Send(conn, msg):
                parts = ("send", conn, coordinator_codec.encode(msg))
            case v.SendNative(conn, said):
                parts = ("native", conn, native_frames.encode(said))
            case v.Persist(token, record):
                parts = ("persist", token, record_codec.encode(record))
            case _:
                parts = (type(effect).__name__, 0, repr(effect).encode())
        total.update(f"{parts[0]} {parts[1]} {len(parts[2])} ".encode() + parts[2])
    return total.digest()


# ---------------------------------------------------------------------- the machine itself


def freeze(machine: object) -> bytes:
    """Returns the whole machine as bytes."""
    return pickle.dumps(machine, protocol=5)


def thaw(state: bytes) -> Any:
    """Returns the machine that was frozen."""
    try:
        # A numbered place far up makes pickle allocate all places below it.
        strange = {op.name for op, _, _ in pickletools.genops(state)} & _NEVER_WRITTEN
        if strange:
            raise RemoteError(f"the recorded state has {', '.join(sorted(strange))} in it")
        return _Thawing(io.BytesIO(state)).load()
    except RemoteError:
        raise
    except Exception as error:  # whatever strange bytes make of it
        raise RemoteError(f"the recorded state cannot be read: {error}") from error


class _Thawing(pickle.Unpickler):
    """Knows the plain classes of the deciding rooms and no function."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "builtins" and name in _BUILTINS:
            return super().find_class(module, name)
        # A class of a shell does something when it is made: opens a file, a socket.
        decides = module.startswith(_DECIDING) and not module.startswith(_SHELLS)
        found = super().find_class(module, name) if decides else None
        if not isinstance(found, type) or found.__module__ != module:
            raise RemoteError(f"a recorded state has no place for {module}.{name}")
        return found


# ---------------------------------------------------------------------- entries and bytes


def begin(machine: object, *, version: str, now_s: float) -> Iterator[Entry]:
    """Yields the entries that a recording opens with."""
    state = freeze(machine)
    parts = [state[at : at + PART_BYTES] for at in range(0, len(state), PART_BYTES)]
    yield Begin(FORMAT, version, now_s, len(parts))
    yield from (StatePart(part) for part in parts)


def to_bytes(entry: Entry) -> bytes:
    return frame(entry_codec.encode(entry))


def read_entries(recording: Iterable[bytes]) -> Iterator[Entry]:
    """Yields the entries of a recording, given in pieces; a last one that is cut off is left out.

    Raises:
        RemoteError: these are not the bytes of a recording.
    """
    framer = Framer(first_frame_bytes_max=1 << 20)
    head, read = b"", len(MAGIC)
    for piece in recording:
        if len(head) < len(MAGIC):
            head += piece
            if len(head) < len(MAGIC):
                continue
            if head[: len(MAGIC)] != MAGIC:
                raise RemoteError("this file is no flight recording of a coordinator")
            piece, head = head[len(MAGIC) :], MAGIC
        framer.feed(piece)
        while True:
            try:
                if (body := framer.next_message()) is None:
                    break
                entry = entry_codec.decode(body)
            except RemoteError:  # its text speaks of a connection
                raise RemoteError(f"the recording is damaged at byte {read}") from None
            read += HEAD_BYTES + len(body)
            yield entry
    if len(head) < len(MAGIC):
        raise RemoteError("this file is too short to be a flight recording")
