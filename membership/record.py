"""What the coordinator must not forget: one record, written whole whenever it changes.

A coordinator that starts from the newest record goes on as if it had only been slow.  Everything
else (heartbeats, plans without a promise, reports, connections) is told again by the peers.

Invariant: whatever a peer may have been told about views, incarnations and outcomes is in a record
that was durable before; that is what `events.Persist` and output commit are for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pccl.membership.messages import StepDecision
from pccl.membership.view import View
from pccl.transport.codec import Codec, message, struct

VIEWS_MAX: Final = 16
"""Views remembered at a time: the one in force, the next, and earlier ones with open steps.

A step runs in the view in which it began, and is judged by that view's participants after a
failure.  So a view is remembered until every member has decided all steps that can run in it, and
no other view is planned when this many are remembered.  It bounds the size of a record, not what
is right: joiners wait for members whose oldest steps stay open through 15 joins.
"""


@struct
@dataclass(frozen=True, slots=True)
class AdmittedPeer:
    """A peer with a valid incarnation, member or learner."""

    peer_id: bytes
    incarnation: int
    secret: bytes
    host: str
    port: int
    host_key: int
    hostname: str
    pid: int
    group: int = 0
    excluded_epoch: int = 0
    was_native: bool = False  # its engine has been here; anybody can say hello
    min_world: int = 0  # asked for, as are the two below; 0: no opinion
    on_underflow: int = 0
    straggler_s: float = 0.0
    seat: int = 0


ANY_NAME: Final = ""
"""Name of an activation at whose step members switch whatever entry it is; no entry has it."""


@struct
@dataclass(frozen=True, slots=True)
class Activation:
    """A planned view that members enter at the first step >= `step` with this name.

    With an empty name, at `step`: it has no joiners, and is never `resolved` but completed.
    """

    view: View
    step: int
    name: str
    resolved: bool  # a member has entered it, so the joiners' first step is known
    first_step: int  # meaningful if resolved
    expected_below: int = 0  # by this step a member has come to the name, if any ever does


@struct
@dataclass(frozen=True, slots=True)
class InstallNote:
    """What an Install says besides the view, kept so that it can be said again."""

    paused: bool
    committed_below: int
    decisions: tuple[StepDecision, ...]
    lost: tuple[bytes, ...]
    raises: bool = False


@struct
@dataclass(frozen=True, slots=True)
class CarriedDecision:
    """A final decision of the flush that made `epoch`, for members that have not installed it."""

    epoch: int
    decision: StepDecision


NO_NOTE: Final = InstallNote(paused=False, committed_below=0, decisions=(), lost=())


@message(1)
@dataclass(frozen=True, slots=True)
class Record:
    """The durable state of a run."""

    run_id: bytes
    lineage: int
    generation: int
    min_world: int  # 0 = nobody had an opinion yet
    incarnations: int  # the highest ever given
    epochs_reserved: int  # no epoch above it was ever named to a peer
    flushing: bool  # members may be frozen by a flush that was not decided
    view: View | None
    history: tuple[View, ...]  # older views that may have open steps, oldest first
    activation: Activation | None
    note: InstallNote
    carried: tuple[CarriedDecision, ...]
    peers: tuple[AdmittedPeer, ...]
    on_underflow: int = 0  # an Underflow; 0 = nobody had an opinion yet
    straggler_s: float = 0.0  # likewise
    adopted: bool = False  # made of testimony, and its first flush is not over: lacks views perhaps


record_codec: Codec[Record] = Codec(Record)
