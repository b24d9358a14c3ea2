"""What a peer's member agent and the coordinator say to each other.  Bytes: docs/PROTOCOL.md.

Every message is a frozen dataclass marked with its wire tag; the codec turns it into the
MessagePack array [tag, field, ...] and back, and checks field types.  What a type hint cannot say
(lengths, ports, 32-bit epochs) is checked in `__post_init__`, which raises ValueError; while
decoding, the codec maps that to RemoteError, because then the peer who sent the bytes is at fault.

Compatibility: a tag is never used again for something else, fields are only appended, an appended
field has a default.  The fields that say which coordinator speaks (`generation`) and about which
view (`epoch`) are in every message that changes a peer's state, so that a late one of an older
coordinator or of an abandoned plan is recognised and dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, get_args

from pccl.base.config import LAN
from pccl.membership.message_parts import DECISIONS_MAX as DECISIONS_MAX
from pccl.membership.message_parts import (
    HOST_CHARACTERS_MAX,
    NAME_CHARACTERS_MAX,
    check_epoch,
    check_id,
    check_members,
    check_text,
    demand,
)
from pccl.membership.message_parts import ID_BYTES as ID_BYTES
from pccl.membership.message_parts import MEMBERS_MAX as MEMBERS_MAX
from pccl.membership.message_parts import STATUS_BYTES_MAX as STATUS_BYTES_MAX
from pccl.membership.message_parts import TEXT_CHARACTERS_MAX as TEXT_CHARACTERS_MAX
from pccl.membership.message_parts import MemberInfo as MemberInfo
from pccl.membership.message_parts import StepDecision as StepDecision
from pccl.membership.message_parts import StepOutcome as StepOutcome
from pccl.transport.codec import Codec, message

PROTOCOL_VERSION: Final = 1


@message(1)
@dataclass(frozen=True, slots=True)
class Hello:
    """First message of a member agent: asks for admission (incarnation 0) or re-attaches."""

    protocol: int
    run_id: bytes  # b"" accepts any run
    peer_id: bytes
    incarnation: int  # 0 = new
    generation: int  # highest ever seen
    epoch: int  # of the installed view; 0 = none
    data_host: str  # "" = the address this connection comes from
    data_port: int
    host_key: int
    min_world: int  # 0 = no opinion
    hostname: str  # for people
    pid: int  # for people
    secret: bytes = b""  # of the incarnation that re-attaches

    def __post_init__(self) -> None:
        demand(len(self.secret) in (0, ID_BYTES), f"secret has {len(self.secret)} bytes")
        demand(len(self.run_id) in (0, ID_BYTES), f"run_id has {len(self.run_id)} bytes")
        check_id(self.peer_id, "peer_id")
        check_epoch(self.epoch)
        check_text(self.data_host, "data_host", HOST_CHARACTERS_MAX)
        demand(1 <= self.data_port <= 65535, f"data_port {self.data_port}")
        demand(self.min_world <= MEMBERS_MAX, f"min_world {self.min_world} is above {MEMBERS_MAX}")
        check_text(self.hostname, "hostname", HOST_CHARACTERS_MAX)


@message(2)
@dataclass(frozen=True, slots=True)
class AtEntry:
    """The program waits at an entry; repeated every heartbeat while that is true."""

    name: str
    next_step: int  # 0 for a newcomer

    def __post_init__(self) -> None:
        check_text(self.name, "name", NAME_CHARACTERS_MAX)


@message(3)
@dataclass(frozen=True, slots=True)
class LinksUp:
    """All lanes to the planned view's other members are up."""

    epoch: int

    def __post_init__(self) -> None:
        check_epoch(self.epoch)


@message(4)
@dataclass(frozen=True, slots=True)
class LinksFailed:
    """No lane to these members of the planned view could be opened."""

    epoch: int
    peers: tuple[bytes, ...]

    def __post_init__(self) -> None:
        check_epoch(self.epoch)
        demand(len(self.peers) <= MEMBERS_MAX, f"{len(self.peers)} peers; at most {MEMBERS_MAX}")
        for peer in self.peers:
            check_id(peer, "peers")


@message(5)
@dataclass(frozen=True, slots=True)
class HoldFrom:
    """Promise: I start no step >= `step` before Activate or CancelPlan of `epoch`."""

    epoch: int
    step: int

    def __post_init__(self) -> None:
        check_epoch(self.epoch)


@message(6)
@dataclass(frozen=True, slots=True)
class Switched:
    """I run `step` as the first step of the planned epoch."""

    epoch: int
    step: int

    def __post_init__(self) -> None:
        check_epoch(self.epoch)


@message(7)
@dataclass(frozen=True, slots=True)
class Installed:
    """The view of this epoch is in force here."""

    epoch: int

    def __post_init__(self) -> None:
        check_epoch(self.epoch)


@message(8)
@dataclass(frozen=True, slots=True)
class WaitFor:
    """The program waits until the world has this size; 0 = it stopped waiting."""

    world_size: int


@message(9)
@dataclass(frozen=True, slots=True)
class Leaving:
    """The communicator closes: flush me out at once."""

    reason: str

    def __post_init__(self) -> None:
        check_text(self.reason, "reason", TEXT_CHARACTERS_MAX)


@message(10)
@dataclass(frozen=True, slots=True)
class StatusRequest:
    """Asks for a StatusReply; may be a connection's first message and admits nobody."""


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

    def __post_init__(self) -> None:
        demand(0 < self.coordinator_grace_s < math.inf, "coordinator_grace_s is no duration")
        check_id(self.run_id, "run_id")
        check_id(self.secret, "secret")
        check_epoch(self.epoch)
        demand(0 < self.heartbeat_s <= self.lease_s <= 3600, "heartbeat and lease do not fit")


@message(33)
@dataclass(frozen=True, slots=True)
class Refused:
    """No admission; the connection closes.  Codes: protocol, run, min_world, limit,
    secret."""

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

    def __post_init__(self) -> None:
        check_epoch(self.epoch)


@message(36)
@dataclass(frozen=True, slots=True)
class Activate:
    """To members: the first step >= `step` with this name runs in the planned epoch."""

    generation: int
    epoch: int
    members: tuple[MemberInfo, ...]
    step: int
    name: str

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
    paused: bool  # fewer members than min_world: no step starts
    committed_below: int  # all steps below are committed
    decisions: tuple[StepDecision, ...]
    lost: tuple[bytes, ...]  # peers that left since the previous view

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
    """Sent whenever it changes, for `wait_for`."""

    admitted: int
    members: int
    epoch: int

    def __post_init__(self) -> None:
        check_epoch(self.epoch)


@message(41)
@dataclass(frozen=True, slots=True)
class StatusReply:
    """One JSON document, UTF-8.  Bytes, because the codec's limit for text is too small for it."""

    json: bytes

    def __post_init__(self) -> None:
        demand(len(self.json) <= STATUS_BYTES_MAX, f"status of {len(self.json)} bytes")


PeerMessageBody = (
    Hello
    | AtEntry
    | LinksUp
    | LinksFailed
    | HoldFrom
    | Switched
    | Installed
    | WaitFor
    | Leaving
    | StatusRequest
)
CoordinatorMessageBody = (
    Admitted
    | Refused
    | ViewPlan
    | Hold
    | Activate
    | CancelPlan
    | Install
    | Evicted
    | World
    | StatusReply
)

peer_codec: Codec[PeerMessageBody] = Codec(*get_args(PeerMessageBody))
"""What the coordinator decodes and a peer encodes."""

coordinator_codec: Codec[CoordinatorMessageBody] = Codec(*get_args(CoordinatorMessageBody))
"""What a peer decodes and the coordinator encodes."""
