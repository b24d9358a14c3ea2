"""The fault campaign: kills, stops, joins and mass deaths, every result checked.

    ./dev faults [--kills 200] [--stops 5] [--joins 20] [--mass 3] [--storms 10] [--peers 4]
                 [--transport ucx] [--quick] [--json FILE] [--keep DIR]

Peer processes on loopback reduce 4 MiB of f32 without a pause, while this program does things to
them; with two peers the one that is left goes on alone.

Exit code 0: every bar met and every check passed.  1: not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

sys.path.append(str(Path(__file__).resolve().parents[2]))  # behind an installed pccl

from tests.faults import flood, report, scenarios, secured
from tests.faults.history import check
from tests.faults.scenarios import Figures
from tests.faults.world import Trouble, World

PEERS = 4
PEERS_MAX = 8
END_S = 30.0
QUICK = {"kills": 10, "stops": 1, "joins": 3, "mass": 1, "storms": 2}

Scenario = Callable[[World, random.Random, Figures], None]
SCENARIOS: dict[str, Scenario] = {
    "kills": scenarios.kill,
    "joins": scenarios.join,
    "stops": scenarios.stop,
    "mass": scenarios.mass,
    "storms": scenarios.storm,
}


def run_campaign(
    folder: Path,
    times: dict[str, int],
    *,
    count: int,
    seed: int,
    peers: int = PEERS,
    transport: str = "tcp",
    progress: Callable[[str], None] = lambda name: None,
) -> Figures:
    """Runs every scenario so many times in one world; returns what came of it.

    What is wrong, a hang included, is a violation in the figures; nothing is raised for it.
    """
    figures = Figures(transport)
    dice = random.Random(seed)
    min_world = min(2, peers - 1)
    world = World(folder, size=peers, min_world=min_world, count=count, transport=transport)
    try:
        with world:
            for name, scenario in SCENARIOS.items():
                for _ in range(times[name]):
                    scenario(world, dice, figures)
                    progress(name)
            world.end(END_S)
    except Trouble as trouble:
        figures.violations.append(str(trouble))
    except KeyboardInterrupt:
        figures.violations.append("interrupted")
    for peer in world.all_peers:
        peer.history.poll()
    histories = [peer.history for peer in world.all_peers]
    figures.violations += check(histories, world_min=min_world)
    if not figures.violations:  # after trouble they have printed their stacks
        figures.violations += world.printed()
    return figures


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev faults", description=__doc__.partition("\n")[0])
    short = ", ".join(f"{count} {name}" for name, count in QUICK.items())
    parser.add_argument("--peers", type=int, default=PEERS, help=f"2 to {PEERS_MAX} ({PEERS})")
    parser.add_argument("--kills", type=int, default=200, help="SIGKILL of one (200)")
    parser.add_argument("--stops", type=int, default=5, help="SIGSTOP, later SIGCONT (5)")
    parser.add_argument("--joins", type=int, default=20, help="one more peer comes and leaves (20)")
    parser.add_argument("--mass", type=int, default=3, help="all but one killed at once (3)")
    parser.add_argument("--storms", type=int, default=10, help="deaths during recoveries (10)")
    parser.add_argument("--bytes", type=int, default=4 << 20, help="of the reduced tensor (4 MiB)")
    parser.add_argument(
        "--transport",
        choices=["tcp", "ucx"],
        default="tcp",
        help="what lanes are made of; ucx: by its TCP, unless UCX_TLS says otherwise (tcp)",
    )
    seed = random.SystemRandom().randrange(1 << 32)
    parser.add_argument("--seed", type=int, default=seed, help="of what is drawn (any)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the histories there")
    parser.add_argument("--flood", action="store_true", help="first: kills amid a crowd instead")
    parser.add_argument("--secured", action="store_true", help="first: kills of a secured run, too")
    parser.add_argument("--quick", action="store_true", help=f"short: {short}")
    chosen = parser.parse_args(arguments)
    if not 2 <= chosen.peers <= PEERS_MAX:
        parser.error(f"--peers must be within 2 to {PEERS_MAX}")
    return chosen


def main() -> int:
    if sys.argv[1:2] == ["--flood"]:
        return flood.main(sys.argv[2:])
    if sys.argv[1:2] == ["--secured"]:
        return secured.main(sys.argv[2:])
    chosen = parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # also then: report and clean up
    console = Console()
    if chosen.transport == "ucx":
        os.environ.setdefault("UCX_TLS", "tcp,self")
    times: dict[str, int] = {name: getattr(chosen, name) for name in SCENARIOS}
    if chosen.quick:
        times = QUICK
    counts = ", ".join(f"{count} {name}" for name, count in times.items())
    console.print(
        f"seed {chosen.seed}, {chosen.peers} peers, {chosen.bytes} bytes over "
        f"{chosen.transport}; {counts}"
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        tempfile.TemporaryDirectory() as temporary,
        Progress(*columns, TimeElapsedColumn(), console=console) as bars,
    ):
        folder = chosen.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        tasks = {name: bars.add_task(name, total=count) for name, count in times.items() if count}
        figures = run_campaign(
            folder,
            times,
            count=chosen.bytes // 4,
            seed=chosen.seed,
            peers=chosen.peers,
            transport=chosen.transport,
            progress=lambda name: bars.advance(tasks[name]),
        )
    report.show(console, figures)
    if chosen.json:
        document: dict[str, Any] = {"seed": chosen.seed, "times": times, **asdict(figures)}
        document["rows"] = report.rows(figures)
        chosen.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if report.passed(figures) else 1


if __name__ == "__main__":
    sys.exit(main())
