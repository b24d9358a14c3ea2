"""Kill recovery without and with a crowd of strangers at the coordinator's port, in one run.

Strangers come from other machines; here they are processes on this one, and take processor time
from the peers.  So the crowd is also let loose on a coordinator of its own, a *bystander*: what it
costs then is this machine's share, and what it costs more at the members' coordinator is that
coordinator's.

    ./dev faults --flood [--kills N] [--silent N] [--garbage N] [--hellos N]

Exits with 1 if a quantile with the crowd is more than RATIO_MAX times that with the crowd at the
bystander, or if anything is wrong with a result.  The quotient to no crowd at all is shown, too.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parents[2]))  # behind an installed pccl

from tests.faults import scenarios
from tests.faults.history import check
from tests.faults.report import quantile
from tests.faults.scenarios import Figures
from tests.faults.world import Trouble, World

CROWD = Path(__file__).with_name("crowd.py")
RATIO_MAX = 2.0
FLOOR_S = 0.05  # below it a quotient says more about the scheduler than about the coordinator
QUANTILES = (0.5, 0.99)
PEERS, MIN_WORLD, COUNT = 4, 2, 1 << 16
FILL_S = 60.0
END_S = 30.0


@dataclass(slots=True)
class Result:
    """Seconds from a kill to the next commit without the victim."""

    calm_s: list[float] = field(default_factory=list)
    elsewhere_s: list[float] = field(default_factory=list)  # the crowd is at the bystander
    crowded_s: list[float] = field(default_factory=list)
    crowd: str = ""
    violations: list[str] = field(default_factory=list)
    connections: dict[str, object] = field(default_factory=dict)

    def measured(self) -> bool:
        return bool(self.calm_s and self.elsewhere_s and self.crowded_s)

    def ratio(self, q: float, without_s: list[float]) -> float:
        return quantile(self.crowded_s, q) / max(quantile(without_s, q), FLOOR_S)

    def passed(self) -> bool:
        return (
            self.measured()
            and not self.violations
            and all(self.ratio(q, self.elsewhere_s) <= RATIO_MAX for q in QUANTILES)
        )


@contextmanager
def bystander() -> Iterator[str]:
    """A coordinator without members; gives its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pccl", "coordinator", "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split("listening on ")[1].split(";")[0]
    finally:
        process.kill()
        process.wait(FILL_S)
        process.stdout.close()


@contextmanager
def crowd(
    address: str, silent: int, garbage_per_s: int, hellos_per_s: int, result: Result
) -> Iterator[None]:
    host, _, port = address.rpartition(":")
    numbers = (str(silent), str(garbage_per_s), str(hellos_per_s))
    process = subprocess.Popen(
        [sys.executable, str(CROWD), host, port, *numbers],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        if process.stdout.readline().strip() != "full":
            result.violations.append("the crowd ended before it was full")
        yield
        process.stdin.close()
        result.crowd = process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait(FILL_S)
        process.stdout.close()


def measure(
    folder: Path, *, kills: int, silent: int, garbage_per_s: int, hellos_per_s: int, seed: int
) -> Result:
    result = Result()
    dice = random.Random(seed)
    world = World(folder, size=PEERS, min_world=MIN_WORLD, count=COUNT)
    try:
        with world:
            result.calm_s = _kill(world, dice, kills)
            numbers = (silent, garbage_per_s, hellos_per_s)
            with bystander() as address, crowd(address, *numbers, result):
                result.elsewhere_s = _kill(world, dice, kills)
            with crowd(world.address, *numbers, result):
                result.crowded_s = _kill(world, dice, kills)
                result.connections = _connections(world.address)
                if not result.connections:
                    result.violations.append("amid the crowd `pccl status` had no answer in 30 s")
            world.end(END_S)
    except Trouble as trouble:
        result.violations.append(str(trouble))
    for peer in world.all_peers:
        peer.history.poll()
    result.violations += check([peer.history for peer in world.all_peers], world_min=MIN_WORLD)
    return result


def _kill(world: World, dice: random.Random, kills: int) -> list[float]:
    figures = Figures()
    for _ in range(kills):
        scenarios.kill(world, dice, figures)
    return figures.kill_gaps_s


def _connections(address: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "pccl", "status", address, "--json", "--timeout", "30"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    found: dict[str, object] = json.loads(done.stdout)["connections"] if done.stdout else {}
    return found


def show(console: Console, result: Result) -> None:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("kill to next commit", "calm", "crowd elsewhere", "crowd here"):
        table.add_column(name, justify="right")
    for name in ("here / elsewhere", "bar", "here / calm"):
        table.add_column(name, justify="right")
    for q in QUANTILES if result.measured() else ():
        every = (result.calm_s, result.elsewhere_s, result.crowded_s)
        table.add_row(
            f"p{q * 100:g}",
            *(f"{quantile(gaps_s, q):.3f} s" for gaps_s in every),
            f"{result.ratio(q, result.elsewhere_s):.2f}",
            f"≤ {RATIO_MAX:g}",
            f"{result.ratio(q, result.calm_s):.2f}",
        )
    console.print(table)
    console.print(f"crowd: {result.crowd}; coordinator: {result.connections}", highlight=False)
    for violation in result.violations[:20]:
        console.print(f"[red]violation[/] {violation}", highlight=False, soft_wrap=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="./dev faults --flood", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--kills", type=int, default=50, help="each time")
    parser.add_argument("--silent", type=int, default=10_000, help="connections that say nothing")
    parser.add_argument("--garbage", type=int, default=2000, help="connections per second")
    parser.add_argument("--hellos", type=int, default=100, help="valid ones, per second")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(
            Path(folder),
            kills=chosen.kills,
            silent=chosen.silent,
            garbage_per_s=chosen.garbage,
            hellos_per_s=chosen.hellos,
            seed=chosen.seed,
        )
    show(Console(), result)
    return 0 if result.passed() else 1
