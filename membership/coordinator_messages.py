"""What the coordinator says to a peer's member agent; rules in `messages`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from pccl.base.config import LAN
from pccl.membership.message_parts import (
    DECISIONS_MAX,
    MEMBERS_MAX,
    NAME_CHARACTERS_MAX,
    STATUS_BYTES_MAX,
    TEXT_CHARACTERS_MAX,
    MemberInfo,
    StepDecision,
    check_epoch,
    check_id,
    check_members,
    check_text,
    demand,
)
from pccl.transport.codec import message
from pccl.transport.native_frames import SuspectCode


@message(32)
@dataclass(frozen=True, slots=True)
class Admitted:
    """You are in the run, as this incarnation; here is what you need to heartbeat."""

    run_id: bytes
    lineage: int
    generation: int
    incarnation: int
    secret: bytes
    min_world: int
    heartbeat_s: float
    lease_s: float
    epoch: int  # of the durable view; 0 = no view yet
    members: int  # admitted peers
    coordinator_grace_s: float = LAN.coordinator_grace_s  # a peer's patience without a coordinator
    decision_s: float = LAN.decision_s  # a peer's patience with a step after its deadline

    def __post_init__(self) -> None:
        demand(0 < self.coordinator_grace_s < math.inf, "coordinator_grace_s is no duration")
        demand(0 < self.decision_s < math.inf, "decision_s is no duration")
        check_id(self.run_id, "run_id")
        check_id(self.secret, "secret")
        check_epoch(self.epoch)
        demand(0 < self.heartbeat_s <= self.lease_s <= 3600, "heartbeat and lease do not fit")


REFUSED_FOR_AN_OLD_COPY: Final = "generation"
REFUSALS_FOR_NOW: Final = frozenset({"adopt", REFUSED_FOR_AN_OLD_COPY, "crowded", "namesake"})
"""The coordinator must be put right, for it lost the journal of this run or has an old one; or it
waits for others first: newcomers to prove themselves, an older process of this identity to die."""


@message(33)
@dataclass(frozen=True, slots=True)
class Refused:
    """No admission; the connection closes.  Codes: protocol, run, min_world, on_underflow,
    straggler, limit, secret, message; and REFUSALS_FOR_NOW, after which a peer tries again."""

    code: str
    text: str

    def __post_init__(self) -> None:
        check_text(self.code, "code", 32)
        check_text(self.text, "text", TEXT_CHARACTERS_MAX)


@message(34)
@dataclass(frozen=True, slots=True)
class ViewPlan:
    """To members and joiners: open links for this view in the background; nothing is promised."""

    generation: int
    epoch: int
    members: tuple[MemberInfo, ...]

    def __post_init__(self) -> None:
        check_epoch(self.epoch)
        check_members(self.members)


@message(35)
@dataclass(frozen=True, slots=True)
class Hold:
    """To members only: answer with HoldFrom."""

    generation: int
    epoch: int
    name: str = ""  # of the entry at which the joiners wait; empty is any

    def __post_init__(self) -> None:
        check_epoch(self.epoch)
        check_text(self.name, "name", NAME_CHARACTERS_MAX)


@message(36)
@dataclass(frozen=True, slots=True)
class Activate:
    """To members: the first step >= `step` with this name runs in the planned epoch.

    An empty name is any name.  Who is told this and is not in `members` leaves: it runs all steps
    below `step` and no other.
    """

    generation: int
    epoch: int
    members: tuple[MemberInfo, ...]
    step: int
    name: str
    paused: bool = False  # as in Install, for the view that begins
    raises: bool = False

    def __post_init__(self) -> None:
        check_epoch(self.epoch)
        check_members(self.members)
        check_text(self.name, "name", NAME_CHARACTERS_MAX)


@message(37)
@dataclass(frozen=True, slots=True)
class CancelPlan:
    """The plan of this epoch is dropped, and a Hold of it released."""

    generation: int
    epoch: int

    def __post_init__(self) -> None:
        check_epoch(self.epoch)


@message(38)
@dataclass(frozen=True, slots=True)
class Install:
    """This durable view is in force; `decisions` says what became of the steps that were open."""

    generation: int
    epoch: int
    members: tuple[MemberInfo, ...]
    paused: bool  # fewer members than min_world: no step runs
    committed_below: int  # all steps below are committed
    decisions: tuple[StepDecision, ...]
    lost: tuple[bytes, ...]  # peers that left since the previous view
    raises: bool = False  # paused, and steps that begin meanwhile fail instead of waiting

    def __post_init__(self) -> None:
        check_epoch(self.epoch)
        check_members(self.members)
        demand(len(self.decisions) <= DECISIONS_MAX, f"{len(self.decisions)} decisions")
        demand(len(self.lost) <= MEMBERS_MAX, f"{len(self.lost)} lost peers")
        for peer in self.lost:
            check_id(peer, "lost")


@message(39)
@dataclass(frozen=True, slots=True)
class Evicted:
    """This incarnation is not admitted any more; the coordinator closes the connection."""

    generation: int
    text: str

    def __post_init__(self) -> None:
        check_text(self.text, "text", TEXT_CHARACTERS_MAX)


@message(40)
@dataclass(frozen=True, slots=True)
class World:
    """Sent whenever it changes, for `wait_for`, to those who are counted in `admitted`: all whose
    native connection has been here.  Else anybody's hello would be a message to everybody."""

    admitted: int
    members: int
    epoch: int
    waits: str = ""  # why the receiver is not let in, if it is not for members to come to its entry
    min_world: int = 0  # of the run, as far as it has been decided

    def __post_init__(self) -> None:
        check_epoch(self.epoch)
        demand(self.min_world <= MEMBERS_MAX, f"min_world {self.min_world} is above {MEMBERS_MAX}")
        check_text(self.waits, "waits", TEXT_CHARACTERS_MAX)


@message(41)
@dataclass(frozen=True, slots=True)
class StatusReply:
    """One JSON document, UTF-8.  Bytes, because the codec's limit for text is too small for it."""

    json: bytes

    def __post_init__(self) -> None:
        demand(len(self.json) <= STATUS_BYTES_MAX, f"status of {len(self.json)} bytes")


@message(42)
@dataclass(frozen=True, slots=True)
class Recall:
    """Answer with your Testimony; from a coordinator that has lost its journal."""


@message(43)
@dataclass(frozen=True, slots=True)
class Excluded:
    """You are in no view from `epoch` on, but stay admitted, as a learner; open steps fail by
    `code`: the others did not wait, or what was called here did not fit in."""

    generation: int
    epoch: int
    text: str
    code: int = int(SuspectCode.EXCLUDED)

    def __post_init__(self) -> None:
        check_epoch(self.epoch)
        known = (SuspectCode.EXCLUDED, SuspectCode.DESCRIPTOR)
        demand(self.code in known, f"code {self.code} excludes nobody")
        check_text(self.text, "text", TEXT_CHARACTERS_MAX)
