"""One churn run from its first process to its verdict."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.churn import timeline
from tests.churn.checker import AGREED, ENTRY, Violation, check
from tests.churn.hosts import Places
from tests.churn.lessons import SYNC, is_reduction
from tests.churn.namespaces import Links
from tests.churn.nemesis import Nemesis
from tests.churn.orders import ALL_REDUCE
from tests.churn.outer_checker import check_outer
from tests.churn.records import Life, lives_of
from tests.churn.world import START_S, Settings, Trouble, World

POLL_S = 0.02
CALM_S = 60.0  # after the last fault: all living peers are in one view again
END_S = 60.0  # for every process to end once it was told
DUMP_S = 1.0  # for processes to print their stacks
EVICTED_WITHIN_S = 30.0  # a fault explains an eviction for so long


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do."""

    minutes: float
    least: int
    most: int
    seed: int
    gap_bar_s: float = 10.0
    settings: Settings = field(default_factory=Settings)


@dataclass(slots=True)
class Result:
    """What came of a run; `violations` empty is the only good one."""

    seed: int
    seconds: float = 0.0
    processes: int = 0
    events: dict[str, int] = field(default_factory=dict)
    lineages: int = 0  # 1, and one more for each time that all members died
    steps: int = 0
    outer_steps: int = 0  # of a low-communication method
    retried_steps: int = 0
    failed_steps: int = 0
    evictions: int = 0
    gaps_s: list[float] = field(default_factory=list)  # between successive commits, all of them
    unexcused_gaps_s: list[float] = field(default_factory=list)
    recoveries_s: dict[str, list[float]] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    calm_s: float = 0.0  # from the end of all faults to one whole view
    violations: list[str] = field(default_factory=list)


Show = Callable[[World, Nemesis, float], None]


def churn(
    folder: Path,
    places: Places,
    links: Links | None,
    plan: Plan,
    show: Show = lambda world, nemesis, left_s: None,
) -> Result:
    """Runs a plan; whatever is wrong, a hang included, is a violation in the result."""
    world = World(folder, places, links, plan.settings)
    nemesis = Nemesis(world, plan.seed, least=plan.least, most=plan.most)
    result = Result(plan.seed)
    try:
        begin(world, plan)
        end_at = time.monotonic() + 60 * plan.minutes
        while (left_s := end_at - time.monotonic()) > 0 and not result.violations:
            nemesis.turn()
            result.violations += world.poll()
            show(world, nemesis, left_s)
            time.sleep(POLL_S)
        nemesis.calm()
        result.calm_s = _wait_whole(world)
        end(world)
    except Trouble as trouble:
        result.violations.append(str(trouble))
    except KeyboardInterrupt:
        result.violations.append("interrupted")
    finally:
        ended_at = time.monotonic()
        if result.violations:
            _dump(world)
        world.discard_all()
    judge(world, plan, result, ended_at)
    result.events = nemesis.counts
    return result


def begin(world: World, plan: Plan) -> None:
    world.start_coordinator()
    hosts = world.places.hosts
    for i in range(plan.least):
        world.prepare(hosts[i % len(hosts)])
    wait(world, world.coordinator_listens, START_S, "the coordinator listens")
    wait(world, lambda: len(world.ready_spares()) == plan.least, START_S, "the peers are ready")
    for peer in list(world.spares):
        world.start(peer)
    wait(world, lambda: len(world.healthy()) == plan.least, START_S, "the peers have a commit")


def wait(world: World, condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Waits; returns the seconds it took.  Raises Trouble when it did not become so in time."""
    begin = time.monotonic()
    while not condition():
        found = world.poll()
        if found:
            raise Trouble("\n".join(found))
        if time.monotonic() - begin > timeout_s:
            raise Trouble(f"after {timeout_s:g} s it is still not so that {what}")
        time.sleep(POLL_S)
    return time.monotonic() - begin


def _wait_whole(world: World) -> float:
    """Waits until all that live commit together, and nobody else with them."""

    def whole() -> bool:
        lives = [peer.history.life for peer in world.peers if not peer.told]
        names = {life.peer for life in lives if life is not None}
        return len(names) == len(lives) >= world.settings.min_world and all(
            life is not None and life.commits and set(life.commits[-1].contributors) == names
            for life in lives
        )

    if len(world.peers) < world.settings.min_world:
        return 0.0
    return wait(world, whole, CALM_S, "after the faults all living peers commit together")


def end(world: World) -> None:
    """Tells all to end after the same step; all do, in time and in order."""
    world.lineages = world.lineages_now()  # the one that ends when all have left does not count
    for peer in world.peers:
        peer.told = True
        peer.child.order("end")
    try:
        wait(world, lambda: not world.peers, END_S, "all peers end")
    except Trouble as trouble:
        names = ", ".join(peer.name for peer in world.peers)
        raise Trouble(f"{trouble}: {names} hang") from trouble


def judge(world: World, plan: Plan, result: Result, ended_at: float) -> None:
    """Reads everything that was written, and fills in what it shows."""
    for peer in world.all_peers:
        peer.history.poll()
    histories = [peer.history for peer in world.all_peers]
    lives = lives_of(histories)
    commits = timeline.commit_times(lives)
    spans = world.spans(ended_at)
    settings = plan.settings
    begins = world.lineages or world.lineages_now()
    result.violations += [str(violation) for violation in contradictions(lives, settings, begins)]
    if not commits:
        result.violations.append("nothing was ever committed")
        return
    steps = timeline.done_steps(lives)
    gaps = timeline.gaps(
        commits, spans, world.faults, end=ended_at, min_world=settings.min_world, steps=steps
    )
    result.unexcused_gaps_s = sorted((gap.length_s for gap in gaps), reverse=True)
    for gap in gaps:
        if gap.length_s > plan.gap_bar_s:
            result.violations.append(_gap_story(world, gap))
    behind = timeline.left_behind(lives, spans, world.faults, bar_s=3 * plan.gap_bar_s)
    for life, gap in behind:
        story = _gap_story(world, gap)
        result.violations.append(f"{life.process} was left behind: {story}")
    host_of = {peer.name: peer.host.name for peer in world.all_peers}
    for life in timeline.unexplained(lives, host_of, world.faults, within_s=EVICTED_WITHIN_S):
        result.violations.append(
            f"{life.process} was evicted although nothing was done to it: {life.end_text}"
        )
    if not result.violations:  # otherwise they were asked for their stacks
        result.violations += world.printed()
    result.seconds = ended_at - world.began_at
    result.processes = len(world.all_peers)
    # An epoch and a step name a commit, also where a lineage began anew.
    told = {(c.epoch, c.step): c for life in lives for c in life.commits}
    result.lineages = begins
    result.steps = len(told)
    result.outer_steps = sum(is_reduction(commit.name) for commit in told.values())
    result.retried_steps = sum(commit.retries > 0 for commit in told.values())
    result.failed_steps = len(
        {f.step for life in lives for f in life.failures if f.error in AGREED}
    )
    result.evictions = sum(life.end == "Evicted" for life in lives)
    result.gaps_s = [b - a for a, b in pairwise(sorted(c.at for c in told.values()))]
    result.recoveries_s = timeline.recoveries(steps, world.faults)
    ends = Counter(str(life.end or "killed") for life in lives)
    result.ends = dict(ends) | {"refused": sum(len(h.refused) for h in histories)}
    _keep(world, result)


def contradictions(lives: list[Life], settings: Settings, begins: int) -> list[Violation]:
    """Holds the histories against each other, by the rules for what the peers did."""
    alone = settings.method == ALL_REDUCE
    found = check(
        lives,
        min_world=settings.min_world,
        count=settings.count if alone else 0,
        lineages_max=begins,
        entry=ENTRY if alone else SYNC,
    )
    return found if alone else [*found, *check_outer(lives, settings.method)]


def _gap_story(world: World, gap: timeline.Gap) -> str:
    begin = gap.begin - world.began_at
    near = [
        f"    {fault.at - world.began_at:.2f}..{fault.until - world.began_at:.2f} {fault.kind} "
        f"{' '.join((*fault.processes, *fault.hosts))} {fault.text}"
        for fault in world.faults
        if fault.until >= gap.begin - 5.0 and fault.at <= gap.begin + gap.length_s
    ]
    head = f"no commit for {gap.length_s:.1f} s from {begin:.2f} s on ({gap.pause_s:.1f} s in all)"
    return "\n".join([head, *near])


def _dump(world: World) -> None:
    """Lets every living process print its stacks, and the coordinator its status."""
    for peer in world.peers:
        if not peer.stopped:
            peer.child.signal(signal.SIGUSR1)
    time.sleep(DUMP_S)
    command = [world.places.coordinator.python, "-m", "pccl", "status", world.address, "--json"]
    try:
        text = world.places.coordinator.run(command)
    except OSError as error:
        text = str(error)
    (world.folder / "status.json").write_text(text)


def _keep(world: World, result: Result) -> None:
    document: dict[str, Any] = {
        "began_at": world.began_at,
        "faults": [asdict(fault) for fault in world.faults],
        "hosts": {peer.name: peer.host.name for peer in world.all_peers},
        "peers": {life.peer: p.name for p in world.all_peers for life in p.history.lives},
    }
    (world.folder / "faults.json").write_text(json.dumps(document, indent=1) + "\n")
    (world.folder / "violations.txt").write_text("\n\n".join(result.violations) + "\n")
