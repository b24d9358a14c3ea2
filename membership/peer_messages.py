"""What a peer's member agent says to the coordinator; rules in `messages`."""

from __future__ import annotations

from dataclasses import dataclass

from pccl.membership.message_parts import (
    DRAIN_S_MAX,
    GROUP_MAX,
    HOST_CHARACTERS_MAX,
    ID_BYTES,
    MEMBERS_MAX,
    NAME_CHARACTERS_MAX,
    OLDER_VIEWS_MAX,
    SEAT_MAX,
    TEXT_CHARACTERS_MAX,
    MemberInfo,
    Underflow,
    ViewInfo,
    check_epoch,
    check_id,
    check_members,
    check_text,
    demand,
)
from pccl.transport.codec import message


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
    data_port: int  # 0: nobody can dial it
    host_key: int
    min_world: int  # 0 = no opinion
    hostname: str  # for people
    pid: int  # for people
    secret: bytes = b""  # of the incarnation that re-attaches
    group: int = 0  # of peers that reduce among themselves
    on_underflow: int = 0  # an Underflow; 0 = no opinion
    straggler_s: float = 0.0  # STRAGGLER_WAIT, or exclude after so long; 0 = no opinion
    seat: int = 0  # where in the rank order: before higher ones and those without (0)

    def __post_init__(self) -> None:
        demand(self.group <= GROUP_MAX, f"group {self.group} is above {GROUP_MAX}")
        demand(self.seat <= SEAT_MAX, f"seat {self.seat} is above {SEAT_MAX}")
        demand(self.on_underflow <= max(Underflow), f"on_underflow {self.on_underflow}")
        demand(len(self.secret) in (0, ID_BYTES), f"secret has {len(self.secret)} bytes")
        demand(len(self.run_id) in (0, ID_BYTES), f"run_id has {len(self.run_id)} bytes")
        check_id(self.peer_id, "peer_id")
        check_epoch(self.epoch)
        check_text(self.data_host, "data_host", HOST_CHARACTERS_MAX)
        demand(0 <= self.data_port <= 65535, f"data_port {self.data_port}")
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
        demand(self.name != "", "an entry without a name")


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
    """Promise: I start no step >= `step` before Activate or CancelPlan of `epoch`.

    The program here is expected to come to the name in Hold within so many steps; 0: not at all.
    """

    epoch: int
    step: int
    within: int = 1

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
    """The communicator closes: flush me out at once, unless that is not needed any more.

    It is not if no view counts on this peer from the step on that it has come to, and all steps
    below are decided here.
    """

    reason: str
    decided_below: int = 0  # this peer's watermark

    def __post_init__(self) -> None:
        check_text(self.reason, "reason", TEXT_CHARACTERS_MAX)


@message(10)
@dataclass(frozen=True, slots=True)
class StatusRequest:
    """Asks for a StatusReply; may be a connection's first message and admits nobody."""


@message(11)
@dataclass(frozen=True, slots=True)
class Drain:
    """Plan me out within `deadline_s`; I go on until a view without me begins.  Repeated."""

    deadline_s: float
    reason: str

    def __post_init__(self) -> None:
        demand(0 <= self.deadline_s <= DRAIN_S_MAX, f"deadline_s {self.deadline_s}")
        check_text(self.reason, "reason", TEXT_CHARACTERS_MAX)


@message(12)
@dataclass(frozen=True, slots=True)
class Testimony:
    """Answer to Recall: all that this peer knows of the run, for a coordinator without journal."""

    run_id: bytes
    lineage: int
    generation: int
    epoch: int  # of the view in force here
    incarnation: int
    secret: bytes
    peer_id: bytes
    min_world: int
    members: tuple[MemberInfo, ...]  # of that view
    data_host: str
    data_port: int
    hostname: str
    pid: int
    host_key: int = 0
    older: tuple[ViewInfo, ...] = ()  # views in which steps may still be open here, oldest first

    def __post_init__(self) -> None:
        check_id(self.run_id, "run_id")
        check_id(self.secret, "secret")
        check_id(self.peer_id, "peer_id")
        check_epoch(self.epoch)
        check_members(self.members)
        demand(len(self.older) <= OLDER_VIEWS_MAX, f"{len(self.older)} older views")
        demand(self.min_world <= MEMBERS_MAX, f"min_world {self.min_world} is above {MEMBERS_MAX}")
        check_text(self.data_host, "data_host", HOST_CHARACTERS_MAX)
        demand(0 <= self.data_port <= 65535, f"data_port {self.data_port}")
        check_text(self.hostname, "hostname", HOST_CHARACTERS_MAX)


@message(13)
@dataclass(frozen=True, slots=True)
class CarriedBy:
    """By which transports of UCX this peer's lanes' bytes move, or within which TLS; for people.
    Repeated."""

    transports: str

    def __post_init__(self) -> None:
        check_text(self.transports, "transports", TEXT_CHARACTERS_MAX)
