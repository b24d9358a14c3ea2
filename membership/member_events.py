"""What happens to a peer's member machine, and what it asks for: events and effects as values.

Invariant: an effect is carried out completely, in order, before the next event is handled; only
Dial and HoldEngine are answered, each by an event of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pccl.membership import messages as m
from pccl.transport.engine_events import EngineEvent


class Phase(Enum):
    WAITING = "waiting"
    DIALLING = "dialling"
    GREETING = "greeting"
    ATTACHED = "attached"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Ended:
    """Why it is over.  Codes: closed, left, evicted, refused, foreign, unreachable,
    coordinator_lost."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Identity:
    """What this process is and where its peers reach it; fixed for the machine's life."""

    peer_id: bytes
    data_host: str  # "" = the address the coordinator sees
    data_port: int
    host_key: int
    min_world: int = 0  # 0 = no opinion
    group: int = 0
    seat: int = 0  # 0: none; else 1 for the one who sits first
    on_underflow: int = 0
    straggler_s: float = 0.0
    run_id: bytes = b""  # b"" = whatever run the coordinator has
    hostname: str = ""
    pid: int = 0
    carried_by: str = ""  # what moves its lanes' bytes, in words for people; "": nothing special

    def hello(self, admitted: m.Admitted | None, generation: int, epoch: int) -> m.Hello:
        """Returns what opens a connection: the greeting of a newcomer or of one that comes back."""
        return m.Hello(
            protocol=m.PROTOCOL_VERSION,
            run_id=self.run_id if admitted is None else admitted.run_id,
            peer_id=self.peer_id,
            incarnation=0 if admitted is None else admitted.incarnation,
            generation=generation,
            epoch=epoch,
            data_host=self.data_host,
            data_port=self.data_port,
            host_key=self.host_key,
            min_world=self.min_world,
            hostname=self.hostname,
            pid=self.pid,
            secret=b"" if admitted is None else admitted.secret,
            group=self.group,
            seat=self.seat,
            on_underflow=self.on_underflow,
            straggler_s=self.straggler_s,
        )


@dataclass(frozen=True, slots=True)
class Connected:
    """The control connection is up; the literal address is where the engine dials too."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The control connection ended, or could not be made.  `foreign`: what answered does not speak
    this protocol."""

    reason: str
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    message: m.CoordinatorMessageBody


@dataclass(frozen=True, slots=True)
class Held:
    """The engine's answer to HoldEngine."""

    generation: int
    epoch: int
    step: int
    within: int = 1  # steps within which an entry of that name is expected; 0: not at all


@dataclass(frozen=True, slots=True)
class WantWorld:
    """The program began (or, with 0, stopped) waiting for a world of this size."""

    world_size: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How many steps have been decided here so far."""

    steps: int


@dataclass(frozen=True, slots=True)
class Drain:
    """The program wants this peer planned out within `deadline_s`, and goes on until then."""

    deadline_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Leave:
    """The program closes; all its steps below `decided_below` are decided."""

    reason: str
    decided_below: int = 0


Event = (
    Connected | Disconnected | Received | Held | WantWorld | Progress | Drain | Leave | EngineEvent
)


@dataclass(frozen=True, slots=True)
class Dial:
    """Try to reach a coordinator once; answer with Connected or Disconnected."""


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the control connection, if there is one; no answer."""


@dataclass(frozen=True, slots=True)
class Send:
    message: m.PeerMessageBody


@dataclass(frozen=True, slots=True)
class AdmitEngine:
    admitted: m.Admitted
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class PrepareView:
    plan: m.ViewPlan


@dataclass(frozen=True, slots=True)
class HoldEngine:
    """Answer with Held."""

    generation: int
    epoch: int
    name: str = ""  # at which the joiners wait; empty is any


@dataclass(frozen=True, slots=True)
class ActivateView:
    activate: m.Activate


@dataclass(frozen=True, slots=True)
class CancelView:
    generation: int
    epoch: int


@dataclass(frozen=True, slots=True)
class InstallView:
    install: m.Install


@dataclass(frozen=True, slots=True)
class ExcludeEngine:
    excluded: m.Excluded


@dataclass(frozen=True, slots=True)
class FailEngine:
    """Every present and later wait ends with this."""

    code: str
    text: str


Effect = (
    Dial
    | HangUp
    | Send
    | AdmitEngine
    | PrepareView
    | HoldEngine
    | ActivateView
    | CancelView
    | InstallView
    | ExcludeEngine
    | FailEngine
)
