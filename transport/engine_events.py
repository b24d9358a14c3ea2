"""What the native engine reports, as values.

The engine queues tuples and makes its event descriptor readable; `parse_event` names them, so that
the deciding code above never sees a bare tuple.  Invariant: every event is idempotent news ("this
is so"), never a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class EntryReached:
    """The program waits at an entry and this process runs in no unpaused view."""

    name: str
    next_step: int


@dataclass(frozen=True, slots=True)
class EntryLeft:
    """The program waits at no entry any more: the step began, or the wait ended."""


@dataclass(frozen=True, slots=True)
class LinksOpened:
    """Links to every other member of the planned view are up."""

    epoch: int


@dataclass(frozen=True, slots=True)
class LinksUnreachable:
    """Links to these members of the planned view could not be opened in time."""

    epoch: int
    peers: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ViewSwitched:
    """A planned view came into force here, with `step` as its first step."""

    epoch: int
    step: int


@dataclass(frozen=True, slots=True)
class ViewLeft:
    """From `step` on a planned view is in force that is without this process; what began before
    goes on."""

    epoch: int
    step: int


@dataclass(frozen=True, slots=True)
class EngineExcluded:
    """This process is in no view from `epoch` on, and waits at entries as a newcomer does."""

    epoch: int


@dataclass(frozen=True, slots=True)
class ViewInstalled:
    """The installed view of this epoch is in force here."""

    epoch: int


@dataclass(frozen=True, slots=True)
class NativeEvicted:
    """The coordinator told the native control thread that this incarnation is out."""

    text: str


@dataclass(frozen=True, slots=True)
class NativeRefused:
    """The coordinator refused the native control connection; the engine dials again by itself."""

    code: int
    text: str


@dataclass(frozen=True, slots=True)
class EngineFailed:
    """The engine ended by itself; `code` is one of those of its errors."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class NativeLink:
    """The native control connection to the coordinator came up or went down."""

    connected: bool
    generation: int  # of that coordinator


@dataclass(frozen=True, slots=True)
class NativeFollows:
    """The control thread follows a coordinator from now on, and no older one any more."""

    generation: int


@dataclass(frozen=True, slots=True)
class StepDecided:
    """A step for which notice was asked is committed or has failed."""

    step: int


@dataclass(frozen=True, slots=True)
class LetterEnded:
    """A message for which notice was asked has arrived, or ended otherwise."""

    letter: int


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """A peer has opened a stream to this process; whoever takes the event owns the descriptor."""

    fd: int
    peer_id: bytes


@dataclass(frozen=True, slots=True)
class UcxChose:
    """UCX has begun to move lanes' bytes by these transports, as it names them; empty: a peer does
    without UCX, and lanes to it stay as they were."""

    transports: str
    rdma: bool  # all of them are faster than sockets


EngineEvent = (
    EntryReached
    | EntryLeft
    | LinksOpened
    | LinksUnreachable
    | ViewSwitched
    | ViewLeft
    | ViewInstalled
    | EngineExcluded
    | NativeEvicted
    | NativeRefused
    | NativeLink
    | NativeFollows
    | EngineFailed
    | StepDecided
    | LetterEnded
    | UcxChose
)


def parse_event(raw: Sequence[Any]) -> EngineEvent | StreamOpened:
    """Names one queued tuple.  Raises ValueError for one that no engine of this version queues."""
    match list(raw):
        case ["at_entry", str(name), int(next_step)]:
            return EntryReached(name, next_step)
        case ["left_entry"]:
            return EntryLeft()
        case ["links_up", int(epoch)]:
            return LinksOpened(epoch)
        case ["links_failed", int(epoch), peers]:
            return LinksUnreachable(epoch, tuple(bytes(peer) for peer in peers))
        case ["switched", int(epoch), int(step)]:
            return ViewSwitched(epoch, step)
        case ["left", int(epoch), int(step)]:
            return ViewLeft(epoch, step)
        case ["excluded", int(epoch)]:
            return EngineExcluded(epoch)
        case ["installed", int(epoch)]:
            return ViewInstalled(epoch)
        case ["evicted", str(text)]:
            return NativeEvicted(text)
        case ["refused", int(code), str(text)]:
            return NativeRefused(code, text)
        case ["coordinator", bool(connected), int(generation)]:
            return NativeLink(connected, generation)
        case ["followed", int(generation)]:
            return NativeFollows(generation)
        case ["failed", str(code), str(text)]:
            return EngineFailed(code, text)
        case ["decided", int(step)]:
            return StepDecided(step)
        case ["stream", int(fd), peer]:
            return StreamOpened(fd, bytes(peer))
        case ["letter", int(letter)]:
            return LetterEnded(letter)
        case ["wire", str(transports), bool(rdma)]:
            return UcxChose(transports, rdma)
        case _:
            raise ValueError(f"the native engine reported {tuple(raw)!r}")
