"""A secured run that trains, and publishes weights, while enemies of every kind come, by the
thousand, to all its ports.

Three kinds of turns alternate: calm, enemies at another run's ports (*elsewhere*), and enemies
*here*.  On one machine they take processor time from the members wherever they go, with this
program that plays them and with the handshakes that somebody has to refuse; what they cost more
here than elsewhere is what they do to the run.

    ./dev hostile [--connections 10000] [--turns 6] [--calm S] [--quick] [--json FILE]

Exits with 1 if somebody got in, a sum was wrong, a member was put out or a step was retried, a
quantile of the members' step time here is above RATIO_MAX times that elsewhere, or their median
above RATIO_MAX times that in calm, if weights that
were published came wrong, or not for PULLS_S_MAX, or if memory or descriptors of anybody grew and
did not shrink again.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parents[2]))  # behind an installed pccl

import itertools

import pccl
from pccl.membership.service_ca import CaFolder
from tests.faults import scenarios, weigher
from tests.faults.enemies import Mob, order_for
from tests.faults.history import check
from tests.faults.report import quantile
from tests.faults.world import Peer, Trouble, World, environment

PEERS, COUNT = 4, 1 << 16
CONNECTIONS, TURNS, CALM_S = 10_000, 6, 10.0
QUICK = {"connections": 360, "turns": 1, "calm_s": 3.0}
RATIO_MAX = 2.0
# Below it a quotient says nothing of the run.  A median of thousands of steps, some milliseconds
# each, is of the run alone; one step of a hundred waits for the scheduler, which gives 20 programs
# turns of several milliseconds on a few processors.
FLOORS_S = {0.5: 0.001, 0.99: 0.02}
BARS = ((0.5, "elsewhere"), (0.5, "calm"), (0.99, "elsewhere"))
JOIN_CONNECTIONS = 1000  # while one joins
QUIET_S = 8.0  # after the last enemy: everything half open has ended
WAIT_S = 60.0
TURN_S_MAX = 300.0
PULLS_S_MAX = 10.0  # from one pull of weights to the next
BYTES_GROWN_MAX = 64 << 20
DESCRIPTORS_GROWN_MAX = 8
KINDS_OF_TURNS = ("calm", "elsewhere", "here")


@dataclass(slots=True)
class Result:
    """Seconds of members' steps by the kind of turn, and what else came of it."""

    steps_s: dict[str, list[float]] = field(
        default_factory=lambda: {kind: [] for kind in KINDS_OF_TURNS}
    )
    turns_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS_OF_TURNS, 0.0))
    made: dict[str, int] = field(default_factory=dict)  # here
    from_members: int = 0  # of these, from the members' own address
    unconnected: int = 0
    join_s: dict[str, float] = field(default_factory=dict)  # of a newcomer with a ticket
    fetch_s: dict[str, float] = field(default_factory=dict)  # of a new receiver of weights
    pulls: dict[str, int] = field(default_factory=dict)  # of weights
    pause_s: dict[str, float] = field(default_factory=dict)  # the longest between two of these
    grown: dict[str, tuple[int, int]] = field(default_factory=dict)  # bytes, descriptors
    connections: dict[str, Any] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def ratio(self, q: float, without: str) -> float:
        here_s, without_s = (quantile(self.steps_s[kind], q) for kind in ("here", without))
        return max(here_s, FLOORS_S[q]) / max(without_s, FLOORS_S[q])

    def passed(self) -> bool:
        return (
            all(self.steps_s.values())
            and not self.violations
            and all(self.ratio(q, without) <= RATIO_MAX for q, without in BARS)
        )


@contextmanager
def bystander(folder: Path) -> Iterator[tuple[str, list[str], list[str], CaFolder]]:
    """Another secured run, with as many peers, who do nothing; gives its addresses and its CA."""
    world = World(folder, size=0, min_world=1, count=1, secured=True)
    with ExitStack() as stack:
        stack.enter_context(world)
        peers = [
            stack.enter_context(
                pccl.connect(world.address, ticket=world.ticket, min_world=PEERS, timeout_s=WAIT_S)
            )
            for _ in range(PEERS)
        ]
        assert world.ca is not None and peers
        pair = stack.enter_context(weigher.pair(world.address, environment(world.ticket)))
        yield world.address, addresses_of(world), pair.addresses, world.ca


def addresses_of(world: World) -> list[str]:
    """Where the peers of a run listen."""
    status = json.loads(world.status(30.0).stdout)
    rows = [*status["members"], *status["learners"]]
    return [row["address"] for row in rows]


# ---------------------------------------------------------------------- the turns


def measure(
    folder: Path, *, connections: int, turns: int, calm_s: float, joins: bool = True
) -> Result:
    """Attacks a run of its own; what is wrong is a violation in the result.

    Args:
        joins: a newcomer comes in and leaves again, too, in each kind of turn.
    """
    result = Result()
    world = World(folder / "run", size=PEERS, min_world=2, count=COUNT, secured=True)
    try:
        with ExitStack() as stack:
            stack.enter_context(world)
            assert world.ca is not None
            pair = stack.enter_context(weigher.pair(world.address, environment(world.ticket)))
            here = Mob(order_for(world.address, addresses_of(world), pair.addresses, world.ca))
            stack.callback(here.close)
            elsewhere = Mob(order_for(*stack.enter_context(bystander(folder / "other"))))
            stack.callback(elsewhere.close)
            founders = list(world.peers)
            before = _sizes(world, pair)
            share = -(-connections // turns)
            for _ in range(turns):
                for kind, mob in (("calm", None), ("elsewhere", elsewhere), ("here", here)):
                    _turn(world, pair, kind, mob, share if mob else 0, calm_s, result)
            turns_ended_s = time.monotonic()
            for kind, mob in (("calm", None), ("elsewhere", elsewhere), ("here", here)) * joins:
                _join(world, kind, mob, min(share, JOIN_CONNECTIONS), result)
            time.sleep(QUIET_S)
            result.grown = _grown(before, _sizes(world, pair), result)
            result.violations += pair.wrong()
            result.connections = json.loads(world.status(30.0).stdout)["connections"]
            _check_membership(world, pair, founders, turns_ended_s, result)
            world.end(WAIT_S)
    except (Trouble, ValueError, KeyError, subprocess.TimeoutExpired) as trouble:
        result.violations.append(f"{type(trouble).__name__}: {trouble}")
    for peer in world.all_peers:
        peer.history.poll()
    result.violations += check([peer.history for peer in world.all_peers], world_min=2)
    if not result.violations:
        result.violations += world.printed()
    return result


def _turn(
    world: World,
    pair: weigher.Pair,
    kind: str,
    mob: Mob | None,
    count: int,
    calm_s: float,
    result: Result,
) -> None:
    began_s = time.monotonic()
    if mob is not None:
        mob.begin(count)
    took_s = pair.fetch_once(world.ticket)
    result.fetch_s[kind] = max(took_s, result.fetch_s.get(kind, 0.0))
    if mob is None:
        time.sleep(calm_s)
    else:
        _note(kind, mob.end(), result)
    ended_s = time.monotonic()
    result.turns_s[kind] += ended_s - began_s
    if ended_s - began_s > TURN_S_MAX:
        result.violations.append(f"a turn took {ended_s - began_s:.0f} s")
    pauses_s = pair.pauses_s(began_s, ended_s)
    result.pulls[kind] = result.pulls.get(kind, 0) + len(pauses_s) - 1
    result.pause_s[kind] = max(result.pause_s.get(kind, 0.0), *pauses_s)
    if max(pauses_s) > PULLS_S_MAX:
        result.violations.append(f"no weights came for {max(pauses_s):.1f} s, enemies {kind}")
    world.wait_whole()
    for peer in world.peers:
        times = [c.at for c in peer.history.commits if began_s <= c.at <= ended_s]
        result.steps_s[kind] += [b - a for a, b in itertools.pairwise(times)]


def _join(world: World, kind: str, mob: Mob | None, count: int, result: Result) -> None:
    """One more peer with a good ticket comes in, and leaves again."""
    world.prepare()
    world.wait_until("a spare is ready", lambda: world.spares[0].history.ready, WAIT_S)
    if mob is not None:
        mob.begin(count)
    figures = scenarios.Figures()
    scenarios.join(world, random.Random(1), figures)
    result.join_s[kind] = figures.join_s[0]
    result.violations += figures.violations
    if mob is not None:
        _note(kind, mob.end(), result)


def _note(kind: str, told: dict[str, Any], result: Result) -> None:
    if kind == "here":
        for name, count in told["made"].items():
            result.made[name] = result.made.get(name, 0) + count
        result.from_members += told["from_members"]
        result.unconnected += told["unconnected"]
        result.violations += [f"somebody got in: {text}" for text in told["breaches"]]


# ---------------------------------------------------------------------- what must not have happened


def _sizes(world: World, pair: weigher.Pair) -> dict[str, tuple[int, int]]:
    """Resident bytes and open descriptors of everybody."""
    pids = {"coordinator": world.coordinator_pid, **pair.pids()}
    pids |= {peer.name: peer.process.pid for peer in world.peers}
    sizes = {}
    for name, pid in pids.items():
        status = Path(f"/proc/{pid}/status").read_text()
        kib = int(status.partition("VmRSS:")[2].split()[0])
        sizes[name] = (kib << 10, len(list(Path(f"/proc/{pid}/fd").iterdir())))
    return sizes


def _grown(
    before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]], result: Result
) -> dict[str, tuple[int, int]]:
    grown = {}
    for name, (resident, descriptors) in before.items():
        more = (after[name][0] - resident, after[name][1] - descriptors)
        grown[name] = more
        if more[0] > BYTES_GROWN_MAX or more[1] > DESCRIPTORS_GROWN_MAX:
            result.violations.append(
                f"{name} has {more[0] >> 20} MiB and {more[1]} descriptors more than before"
            )
    return grown


def _check_membership(
    world: World, pair: weigher.Pair, founders: list[Peer], turns_ended_s: float, result: Result
) -> None:
    assert world.ca is not None
    ours = {peer.history.peer for peer in world.all_peers} | set(pair.peers)
    members = {peer.history.peer for peer in founders}
    log = (world.ca.path / "audit.log").read_text().splitlines()
    for entry in map(json.loads, log):
        if entry["event"] in ("evicted", "left", "lost") and entry["peer"] in members:
            result.violations.append(f"a member was put out: {entry}")
        if entry["event"] in ("admitted", "enrolled") and entry["peer"] not in ours:
            result.violations.append(f"a stranger was let in: {entry}")
    for peer in founders:
        turns = [commit for commit in peer.history.commits if commit.at <= turns_ended_s]
        retried = [commit.step for commit in turns if commit.retries]  # later ones somebody leaves
        if retried:
            result.violations.append(f"{peer.name}: steps {retried[:9]} were retried")


# ---------------------------------------------------------------------- showing it


def show(console: Console, result: Result) -> None:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("members' step", *KINDS_OF_TURNS, "here / elsewhere", "bar", "here / calm"):
        table.add_column(name, justify="right")
    for q in FLOORS_S if all(result.steps_s.values()) else ():
        table.add_row(
            f"p{q * 100:g}",
            *(f"{1e3 * quantile(result.steps_s[kind], q):.2f} ms" for kind in KINDS_OF_TURNS),
            f"{result.ratio(q, 'elsewhere'):.2f}",
            f"≤ {RATIO_MAX:g}",
            f"{result.ratio(q, 'calm'):.2f}",
        )
    console.print(table)
    joins = {kind: f"{took_s:.2f} s" for kind, took_s in result.join_s.items()}
    steps = {kind: len(found) for kind, found in result.steps_s.items()}
    console.print(f"steps {steps} in {result.turns_s} s; joins {joins}")
    fetched = {kind: f"{took_s:.2f} s" for kind, took_s in result.fetch_s.items()}
    pauses = {kind: f"{took_s:.2f} s" for kind, took_s in result.pause_s.items()}
    console.print(f"pulls {dict(result.pulls)}; longest pauses {pauses}; new receivers {fetched}")
    made = ", ".join(f"{count} {kind}" for kind, count in sorted(result.made.items()))
    console.print(
        f"{sum(result.made.values())} hostile connections here, {result.from_members} of them from "
        f"the members' own address: {made}",
        soft_wrap=True,
    )
    console.print(f"{result.unconnected} more came to no connection", highlight=False)
    grown = {name: f"{more[0] >> 10} KiB, {more[1]} fd" for name, more in result.grown.items()}
    console.print(f"grown by: {grown}; coordinator: {result.connections}", highlight=False)
    if not result.violations:
        console.print(
            "nobody got in, nobody was put out, every sum and weight exact, no step retried"
        )
    for violation in result.violations[:20]:
        console.print(f"[red]violation[/] {violation}", highlight=False, soft_wrap=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="./dev hostile", description=__doc__.partition("\n")[0])
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help="here, and elsewhere")
    parser.add_argument("--turns", type=int, default=TURNS, help="of each kind")
    parser.add_argument("--calm", type=float, default=CALM_S, help="seconds of a calm turn")
    parser.add_argument("--quick", action="store_true", help="a few hundred, one turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    chosen = parser.parse_args(arguments)
    sizes: dict[str, Any] = {
        "connections": chosen.connections,
        "turns": chosen.turns,
        "calm_s": chosen.calm,
    }
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), **(QUICK if chosen.quick else sizes))
    show(Console(), result)
    if chosen.json:
        chosen.json.write_text(json.dumps(asdict(result), indent=1) + "\n")
    return 0 if result.passed() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
