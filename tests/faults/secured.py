"""Recovery of a secured run beside that of a plain one: kills in turns of both, in one campaign.

    ./dev faults --secured [--kills 50] [--turns 5] [--bytes 4194304] [--json FILE]

Plain and secured worlds take turns, P S P S ..., so that a machine's good and bad minutes fall on
both alike; each turn starts its processes anew.  Peers of a secured world have nothing but a
ticket, and everything they say is TLS.  Exits with 1 if a quantile of the secured recovery is more
than RATIO_MAX times the plain one's, or if anything is wrong with a result.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parents[2]))  # behind an installed pccl

from tests.faults import scenarios
from tests.faults.history import check
from tests.faults.report import quantile
from tests.faults.scenarios import Figures
from tests.faults.world import Trouble, World

PEERS, MIN_WORLD = 4, 2
RATIO_MAX = 1.2
QUANTILES = (0.5, 0.99)
KINDS = ("plain", "secured")
END_S = 30.0


@dataclass(slots=True)
class Result:
    """Seconds from a kill to a survivor's next commit without the victim, and of joins."""

    kills_s: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    joins_s: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    violations: list[str] = field(default_factory=list)

    def ratio(self, q: float) -> float:
        return quantile(self.kills_s["secured"], q) / quantile(self.kills_s["plain"], q)

    def passed(self) -> bool:
        measured = all(self.kills_s.values())
        return (
            measured and not self.violations and all(self.ratio(q) <= RATIO_MAX for q in QUANTILES)
        )


def measure(folder: Path, *, kills: int, turns: int, count: int, seed: int) -> Result:
    """Kills so many of each kind in so many turns; what is wrong is a violation in the result."""
    result = Result()
    dice = random.Random(seed)
    for turn in range(turns):
        share = kills * (turn + 1) // turns - kills * turn // turns
        for kind in KINDS:
            _turn(folder / f"{kind}{turn}", kind, share, count, dice, result)
    return result


def _turn(
    folder: Path, kind: str, kills: int, count: int, dice: random.Random, result: Result
) -> None:
    figures = Figures()
    secured = kind == "secured"
    world = World(folder, size=PEERS, min_world=MIN_WORLD, count=count, secured=secured)
    try:
        with world:
            for _ in range(kills):
                scenarios.kill(world, dice, figures)
            scenarios.join(world, dice, figures)
            world.end(END_S)
    except Trouble as trouble:
        result.violations.append(f"{kind}: {trouble}")
    for peer in world.all_peers:
        peer.history.poll()
    found = check([peer.history for peer in world.all_peers], world_min=MIN_WORLD)
    result.violations += [f"{kind}: {text}" for text in (*figures.violations, *found)]
    result.kills_s[kind] += figures.kill_gaps_s
    result.joins_s[kind] += figures.join_s


def show(console: Console, result: Result) -> None:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("kill to next commit", *KINDS, "secured / plain", "bar"):
        table.add_column(name, justify="right")
    for q in QUANTILES if all(result.kills_s.values()) else ():
        table.add_row(
            f"p{q * 100:g}",
            *(f"{quantile(result.kills_s[kind], q):.3f} s" for kind in KINDS),
            f"{result.ratio(q):.2f}",
            f"≤ {RATIO_MAX:g}",
        )
    console.print(table)
    samples = {kind: len(found) for kind, found in result.kills_s.items()}
    joins = {kind: f"{quantile(s, 0.5):.2f} s" for kind, s in result.joins_s.items() if s}
    console.print(f"samples {samples}; median of connect() to first commit {joins}")
    for violation in result.violations[:20]:
        console.print(f"[red]violation[/] {violation}", highlight=False, soft_wrap=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="./dev faults --secured", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--kills", type=int, default=50, help="of each kind")
    parser.add_argument("--turns", type=int, default=5, help="that each kind's are spread over")
    parser.add_argument("--bytes", type=int, default=4 << 20, help="of the reduced tensor")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(
            Path(folder),
            kills=chosen.kills,
            turns=chosen.turns,
            count=chosen.bytes // 4,
            seed=chosen.seed,
        )
    show(Console(), result)
    if chosen.json:
        chosen.json.write_text(json.dumps(asdict(result), indent=1) + "\n")
    return 0 if result.passed() else 1
