"""What goes into the coordinator machine and what comes out, as values.

The shell turns sockets into events and carries out effects in order.  It has two duties beyond
that.  *Input before timers*: after any pause it hands in all that has arrived before it lets time
pass, and reports the pause.  *Output commit*: after a Persist it performs no later effect, of this
or any other event, until that record is durable.  The machine counts on both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pccl.membership.messages import CoordinatorMessageBody, PeerMessageBody
from pccl.membership.record import Record
from pccl.transport.native_frames import Frame


@dataclass(frozen=True, slots=True)
class ConnUp:
    """A connection was accepted; `host` is the literal address it comes from."""

    conn: int
    host: str


@dataclass(frozen=True, slots=True)
class ConnDown:
    """A connection ended, whoever closed it.  Its number is never used again."""

    conn: int


@dataclass(frozen=True, slots=True)
class PeerMessage:
    conn: int
    msg: PeerMessageBody


@dataclass(frozen=True, slots=True)
class NativeFrame:
    conn: int
    frame: Frame


@dataclass(frozen=True, slots=True)
class Dialled:
    """Result of a ProbeListener.

    `alive` is False only if the dial proves the process dead: it was refused or reset.  A dial that
    times out, or finds no way, proves nothing, so it counts as alive.
    """

    peer_id: bytes
    incarnation: int
    alive: bool


@dataclass(frozen=True, slots=True)
class Synced:
    """The record of this token, and every one before it, is durable."""

    token: int


@dataclass(frozen=True, slots=True)
class Paused:
    """The coordinator itself did not run for this long: nobody is to blame for that silence."""

    duration_s: float


@dataclass(frozen=True, slots=True)
class Denied:
    """The keys of these peers were revoked: whoever of them is in the run is put out."""

    peer_ids: tuple[bytes, ...]


Event = ConnUp | ConnDown | PeerMessage | NativeFrame | Dialled | Synced | Paused | Denied


@dataclass(frozen=True, slots=True)
class Send:
    conn: int
    msg: CoordinatorMessageBody


@dataclass(frozen=True, slots=True)
class SendNative:
    conn: int
    frame: Frame


@dataclass(frozen=True, slots=True)
class Close:
    """Ends a connection after what was sent on it before has left."""

    conn: int


@dataclass(frozen=True, slots=True)
class ProbeListener:
    """Dial the peer's port once, for at most `timeout_s`, and report with Dialled."""

    peer_id: bytes
    incarnation: int
    host: str
    port: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Persist:
    token: int
    record: Record


@dataclass(frozen=True, slots=True)
class Log:
    level: Literal["debug", "info", "warning", "error"]
    text: str


Effect = Send | SendNative | Close | ProbeListener | Persist | Log
