"""What several messages share: nested values, limits, and the checks a type hint cannot say.

Every check raises ValueError; the codec makes it a RemoteError when the bytes came from a peer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from pccl.transport.codec import struct

ID_BYTES: Final = 16  # run ids, peer ids and secrets are 128-bit
MEMBERS_MAX: Final = 1024  # admission is bounded by it too, so every view fits into one message
DECISIONS_MAX: Final = 1024  # a peer has a handful of open steps; the engine allows 64
NAME_CHARACTERS_MAX: Final = 256  # of an entry's name: long enough for a descriptor
HOST_CHARACTERS_MAX: Final = 255  # the longest DNS name
TEXT_CHARACTERS_MAX: Final = 2048  # of a reason for people
STATUS_BYTES_MAX: Final = 200_000  # of one status document; the codec's limit is 262,144
GROUP_MAX: Final = MEMBERS_MAX - 1
SEAT_MAX: Final = MEMBERS_MAX
DRAIN_S_MAX: Final = 86_400.0  # longer than any notice a machine gives before it goes
STRAGGLER_WAIT: Final = -1.0  # as an opinion: whoever is slow is waited for
OLDER_VIEWS_MAX: Final = 16  # as many as a coordinator remembers
EPOCH_MAX: Final = (1 << 32) - 1  # epochs are 32 bits wide in the native frames


class StepOutcome(IntEnum):
    """What became of one step after a flush."""

    COMMIT = 1
    RETRY = 2
    FAIL = 3


class Underflow(IntEnum):
    """What becomes of steps while a view has fewer members than `min_world`."""

    WAIT = 1  # they wait for more
    ALONE = 2  # they run, once the first view was large enough
    RAISE = 3  # they fail on all members


def demand(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def check_id(value: bytes, name: str) -> None:
    demand(len(value) == ID_BYTES, f"{name} has {len(value)} bytes, not {ID_BYTES}")


def check_epoch(epoch: int) -> None:
    demand(0 <= epoch <= EPOCH_MAX, f"epoch {epoch} does not fit into 32 bits")


def check_text(text: str, name: str, limit: int) -> None:
    demand(len(text) <= limit, f"{name} has {len(text)} characters; at most {limit}")


@struct
@dataclass(frozen=True, slots=True)
class MemberInfo:
    """One member of a view, with all that another member needs to open links to it."""

    peer_id: bytes
    incarnation: int
    secret: bytes  # whoever dials this member shows it; only members of the view learn it
    host: str  # literal address that peers dial
    port: int  # 0: nobody can dial it; it dials
    host_key: int  # equal for peers on the same machine
    first_step: int  # first step this member takes part in
    group: int = 0  # members of one group reduce among themselves
    seat: int = 0  # where in the rank order: before higher ones and those without (0)

    def __post_init__(self) -> None:
        check_id(self.peer_id, "peer_id")
        check_id(self.secret, "secret")
        check_text(self.host, "host", HOST_CHARACTERS_MAX)
        demand(0 <= self.port <= 65535, f"port {self.port}")
        demand(self.group <= GROUP_MAX, f"group {self.group} is above {GROUP_MAX}")
        demand(self.seat <= SEAT_MAX, f"seat {self.seat} is above {SEAT_MAX}")


@struct
@dataclass(frozen=True, slots=True)
class ViewInfo:
    """A view as it is told to a coordinator."""

    epoch: int
    members: tuple[MemberInfo, ...]

    def __post_init__(self) -> None:
        check_epoch(self.epoch)
        check_members(self.members)


def check_members(members: tuple[MemberInfo, ...]) -> None:
    demand(len(members) <= MEMBERS_MAX, f"{len(members)} members; at most {MEMBERS_MAX}")
    demand(len({m.peer_id for m in members}) == len(members), "a peer is listed twice")


@struct
@dataclass(frozen=True, slots=True)
class StepDecision:
    """The decided outcome of one step; `code` is the SUSPECT code behind a failure, else 0."""

    step: int
    outcome: int
    code: int
    text: str

    def __post_init__(self) -> None:
        demand(1 <= self.outcome <= 3, f"outcome {self.outcome}")
        demand(0 <= self.code <= 255, f"code {self.code}")
        check_text(self.text, "text", TEXT_CHARACTERS_MAX)
