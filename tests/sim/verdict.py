"""What must be true when the faults are over: everybody is in, and all make progress together.

I15  `check_limits`: tables and queues have bounds
I16  `is_well`: every living process becomes a member and commits with the others
I17  `check_after`: nobody is evicted without faults of processes or links: some lost connections
     are none, nor are some seconds in which the coordinator does not hear most members
I18  `check_after`: where only peers join, nothing is undone
I19  `check_after`: faults of the coordinator alone undo nothing and change no view
I20  `is_well`: no step stays open for good, for each peer decides further ones
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tests.sim.peer_process import PeerProcess
from tests.sim.script import BLAMELESS, CONNECTION_FAULTS, COORDINATOR_FAULTS, MASS_LOSS
from tests.sim.world import World

STEPS_MORE: Final = 3
DENSE_S: Final = 0.8  # the shortest lease
REDIAL_HOPS: Final = 8  # of at most 1.5 times the delay
LAG_MAX: Final = 8  # steps between the first and the last, with several open


def running(world: World) -> list[PeerProcess]:
    """Returns who is expected to be a member: neither going, nor stopped, nor at an entry of its
    own."""
    return [
        p
        for p in world.living()
        if not p.leaving
        and world.now_s >= p.stopped_until_s
        and (p.engine.is_member() or not p.program.misfit)
    ]


def is_well(world: World, goal: dict[int, int] | None) -> tuple[dict[int, int] | None, str]:
    """Says what is still wrong; the goal is by peer how far it must come."""
    living = running(world)
    if world.listening is None:
        return None, "there is no coordinator"
    if not living:
        return None, "nobody is there"
    for peer in living:
        if not peer.engine.is_member():
            return None, f"{peer} is no member ({peer.phase})"
        if peer.engine.frozen or peer.engine.paused:
            return None, f"{peer} stands still"
        if peer.draining:
            return None, f"{peer} has not left"
    epochs = {p.engine.epoch for p in living}
    if len(epochs) > 1:
        return None, f"they are in epochs {sorted(epochs)}"
    if goal is None or set(goal) != {p.index for p in living}:
        return {p.index: p.engine.watermark + STEPS_MORE for p in living}, "they have just met"
    for peer in living:
        if peer.engine.watermark < goal[peer.index]:
            return goal, f"{peer} has decided {peer.engine.watermark}, not {goal[peer.index]}"
    marks = [p.engine.watermark for p in living]
    if max(marks) - min(marks) > LAG_MAX:
        return goal, f"some lag behind: {marks}"
    return goal, ""


def check_after(world: World) -> None:
    history, script = world.history, world.script
    for peer in world.peers:
        if not peer.doomed:  # else its last effects were cut short
            history.check_end(peer, peer.engine.watermark)
    assert world.innocent_count == 0, f"{world.innocent_count} evicted whom no fault had touched"
    kinds = set(world.played)
    blameless = not kinds - BLAMELESS and script.step_deadline_s > 1e6
    if blameless:
        assert world.told_count == 0, f"{world.told_count} evicted without any fault"
    # A join at an entry of the past may be agreed, and is then taken back by a flush.
    taken_back = script.misfit_first and script.misfit_s > 0
    if blameless and not taken_back and (kinds <= {"start"} or script.kind == "drains"):
        assert history.undos == 0, f"joins and leaves undid {history.undos} steps"
    lost_only = kinds <= BLAMELESS | CONNECTION_FAULTS and script.step_deadline_s > 1e6
    if lost_only and not any(map(_without_a_pause, world.resets.values())) and _in_time(world):
        assert world.told_count == 0, f"{world.told_count} evicted for lost connections"
    if kinds <= MASS_LOSS:
        assert world.told_count == 0, f"{world.told_count} evicted, and most were not heard"
    # While two coordinators live, peers that hear the older one do not come back to the newer.
    if kinds <= {"start", *COORDINATOR_FAULTS} - {"c_depose"} and script.step_deadline_s > 1e6:
        late = [f.at_s for f in script.faults if f.kind == "start" and f.at_s > 0.7]
        assert (history.undos == 0 or taken_back) and history.fails == 0, (
            f"faults of the coordinator alone undid {history.undos} steps"
        )
        assert world.told_count == 0, f"they evicted {world.told_count}"
        assert late or taken_back or len(history.views) <= len(world.peers), (
            f"views {history.views}"
        )


def _in_time(world: World) -> bool:
    """Says whether a member whose connection is lost in a flush can still answer it: it dials and
    greets anew, is asked again, and reports."""
    return REDIAL_HOPS * 1.5 * world.script.delay_s < world.profile.flush_timeout_s


def _without_a_pause(losses_s: Sequence[float]) -> bool:
    """Says whether one peer lost one connection so often that it could not beat for a lease: each
    time it dials and greets anew, and that is cut short again."""
    return any(
        later - first < DENSE_S for first, later in zip(losses_s, losses_s[2:], strict=False)
    )


def check_limits(world: World) -> None:
    """Asserts bounds on what is kept; each far above what such small runs need."""
    for peer in world.living():
        data = peer.engine.data
        assert len(data.early) < 200, f"{peer} keeps early frames of {len(data.early)} attempts"
        assert len(data.dones) < 400, f"{peer} keeps the DONEs of {len(data.dones)} attempts"
        assert len(data.open) <= world.script.open_steps + 1, f"{peer} has {len(data.open)} open"
    coordinator = world.listening
    if coordinator is not None:
        core = coordinator.machine._core
        assert len(core.conns) <= 4 * len(world.peers) + 4, f"{len(core.conns)} connections"
        unsaid = coordinator.ended_unsaid()
        assert not unsaid, f"the machine keeps connections that are over: {sorted(unsaid)}"
        assert len(core.peers) <= 2 * len(world.peers), f"{len(core.peers)} peers"
        assert len(core.history) <= 16 and len(core.carried) <= 64
        assert coordinator.held < 500, f"{coordinator.held} sends are held"
