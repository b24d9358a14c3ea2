"""Plays a script to its end and says what came of it."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.sim.coordinator_process import CoordinatorProcess
from tests.sim.faults import boot, calm_down, play
from tests.sim.links import Links
from tests.sim.peer_process import PeerProcess, start_peer
from tests.sim.script import FAULTS_S, Script
from tests.sim.verdict import check_after, check_limits, is_well, running
from tests.sim.world import World

# Within it all is well again, counted from the end of the longest drain: then newcomers wait 8 s
# before a view of which nobody is heard is given up, in a flush that looks every 2 s.
CALM_MAX_S = 28.0
STEPS_TAKEN_BACK = 64  # members decide fewer before a join is taken back whose name does not come
LOOK_EVERY_S = 0.25


@dataclass
class Result:
    script: Script
    failure: str = ""
    where: str = ""
    trace: list[str] = field(default_factory=list)
    commits: int = 0
    events: int = 0
    virtual_s: float = 0.0
    wall_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)


def make_world(script: Script, traced: bool = False) -> World:
    world = World(script, traced=traced)
    world.links = Links(world)
    world.make_coordinator, world.make_peer = CoordinatorProcess, PeerProcess
    return world


def play_script(world: World) -> None:
    """Runs the faults, then the calm.  Raises AssertionError where an invariant fails."""
    boot(world)
    script = world.script
    for fault in script.faults:
        world.at(fault.at_s, None, play, world, fault)
    last_s = max((f.at_s for f in script.faults), default=0.0)
    world.run_until(max(FAULTS_S, last_s) + 0.3)
    while world.now_s < world.faults_until_s:
        world.run_until(world.faults_until_s)
    calm_down(world)
    calm_max_s = CALM_MAX_S
    if script.misfit_s > 0:  # in a run that begins anew such a joiner may be among the first
        calm_max_s += STEPS_TAKEN_BACK * (script.think_s + 6 * script.delay_s)
    limit_s = max(world.now_s, world.drains_until_s) + calm_max_s
    goal: dict[int, int] | None = None
    while True:
        while len(running(world)) < max(1, script.min_world):
            start_peer(world)
        world.run_until(world.now_s + LOOK_EVERY_S)
        check_limits(world)
        goal, problem = is_well(world, goal)
        if not problem:
            break
        assert world.now_s < limit_s, f"not well {calm_max_s:g} s after the last fault: {problem}"
    check_after(world)


def run(
    script: Script,
    *,
    traced: bool = False,
    again: bool = True,
    make: Callable[[Script, bool], World] = make_world,
) -> Result:
    """Plays a script; a failure is played `again` with a trace."""
    began_s = time.perf_counter()
    world = make(script, traced)
    result = Result(script)
    try:
        play_script(world)
    except Exception as error:
        result.failure = f"{type(error).__name__}: {error}"
        frames = traceback.extract_tb(error.__traceback__)
        result.where = " < ".join(f"{f.name}:{f.lineno}" for f in reversed(frames[-4:]))
    world.dispose()
    result.trace = world.told()
    result.commits, result.events = world.history.commits, world.events
    result.virtual_s, result.wall_s = world.now_s, time.perf_counter() - began_s
    result.faults = world.played
    if result.failure and again and not traced:
        second = run(script, traced=True, make=make)
        result.trace = second.trace
        if second.failure != result.failure:
            result.failure += f" [another time: {second.failure or 'none'}]"
    return result
