"""What a peer's program may know of its member machine, also what a newcomer waits for.

Why it is not let in though it is at an entry, the coordinator says (`World.waits`); the rest the
peer knows itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from pccl.membership import messages as m
from pccl.membership.member import Ended, Member, Phase


@dataclass(frozen=True, slots=True)
class Standing:
    """What the program's threads may know of the machine; replaced as a whole."""

    admitted: m.Admitted | None = None
    world: m.World | None = None
    ended: Ended | None = None
    failure: BaseException | None = None  # the agent itself could not go on
    met: tuple[m.MemberInfo, ...] = ()  # whom it can reach, as it was told last
    waits: str = ""  # what a peer waits for that is in no view
    attached: bool = False  # the coordinator has this peer, and its connection is up


def standing_of(member: Member) -> Standing:
    return Standing(
        member.admitted,
        member.world,
        member.ended,
        met=member.views.met,
        waits=why_it_waits(member),
        attached=member.phase is Phase.ATTACHED,
    )


def why_it_waits(member: Member) -> str:
    admitted, world = member.admitted, member.world
    if admitted is None:
        return f"no coordinator has admitted this process yet (last: {member.last_reason})"
    if member.phase is not Phase.ATTACHED:
        return f"the coordinator cannot be reached (last: {member.last_reason})"
    if world is None:
        return "the coordinator has not said yet how many peers there are"
    if world.waits:
        return f"this process {world.waits}" if world.waits.startswith("waits") else world.waits
    if world.members == 0:
        return (
            f"no view has begun yet: {world.admitted} peers are admitted, of which at least "
            f"{world.min_world or admitted.min_world} must be at the same entry (min_world); "
            "`pccl status` shows at which each waits; a call of another shape, dtype or op is "
            "another entry"
        )
    return f"the {world.members} members have not come to an entry of that name since"
