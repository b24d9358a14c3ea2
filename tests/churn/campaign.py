"""Churn: real processes on network namespaces or hosts, killed, stopped and cut off all the time.

    ./dev churn [--minutes 5] [--peers 3-6] [--seed N] [--fabric both] [--profile lan] [--quick]
                [--keep DIR] [--hosts FILE] [--scenario NAME]
                [--transport ucx] [--method diloco|async-diloco|streaming|sparse-loco|all]

Exit code 0: nothing contradicts the promises.  1: something does, and the logs are kept.  2: it
cannot run here, and says why.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.live import Live

sys.path.append(str(Path(__file__).resolve().parents[2]))  # behind an installed pccl

from tests.churn import report
from tests.churn.hosts import Places, local_places, places_of
from tests.churn.lessons import METHODS
from tests.churn.namespaces import FilteredLinks, Laboratory, why_not
from tests.churn.nemesis import Nemesis
from tests.churn.orders import ALL_REDUCE
from tests.churn.rules import LinkQuality
from tests.churn.run import Plan, Result, churn
from tests.churn.scenarios import PEERS, SCENES, play
from tests.churn.world import Settings, World

FABRICS = {"both": ("veth", "emulator"), "veth": ("veth",), "emulator": ("emulator",)}
QUICK_MINUTES = 0.5  # of each fabric
QUICK_METHOD_MINUTES = 0.15  # of each low-communication method
GAP_BARS_S = {"lan": 10.0, "wan": 25.0}  # a lease of 3 s or 10 s, twice, and a recovery
STRAGGLER_S = {"lan": 3.0, "wan": 8.0}  # the others wait so long for a program that hangs
# Further arguments of pccl.connect; over UCX all of it goes by UCX.
OVER: Final[dict[str, tuple[tuple[str, object], ...]]] = {
    "tcp": (),
    "ucx": (("transport", "ucx"), ("shared_memory", False)),
}
LAN_QUALITY = LinkQuality(delay_ms=0.2, rate_mbit=1000.0)
WAN_QUALITY = LinkQuality(delay_ms=25.0, jitter_ms=2.0, loss=0.001, rate_mbit=500.0)
REFRESH_S = 0.25
LINE_EVERY_S = 15.0  # where nobody watches


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev churn", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="in all, over the fabrics (5)")
    parser.add_argument(
        "--peers", default="3-6", metavar="A-B", help="the world stays in there (3-6)"
    )
    seed = random.SystemRandom().randrange(1 << 32)
    parser.add_argument("--seed", type=int, default=seed, help="of what is drawn (any)")
    parser.add_argument(
        "--fabric",
        choices=[*FABRICS, "none"],
        default="both",
        help="veth: a bridge; emulator: links with delay, loss and rates; none: loopback, no root "
        "(both)",
    )
    parser.add_argument("--profile", choices=["lan", "wan"], default="lan", help="(lan)")
    parser.add_argument("--bytes", type=int, default=1 << 16, help="of the reduced tensor (65536)")
    parser.add_argument("--pace-ms", type=float, default=10.0, help="mean pause between steps (10)")
    parser.add_argument("--quick", action="store_true", help="half a minute on each fabric")
    parser.add_argument(
        "--method",
        choices=[ALL_REDUCE, *METHODS, "all"],
        default=ALL_REDUCE,
        help="what the peers do; all: each of the low-communication methods in turn (all-reduce)",
    )
    parser.add_argument(
        "--transport",
        choices=list(OVER),
        default="tcp",
        help="what lanes are made of; ucx: by its TCP, unless UCX_TLS says otherwise (tcp)",
    )
    parser.add_argument("--scenario", choices=list(SCENES), help="one kind of fault and its bar")
    parser.add_argument("--samples", type=int, help="how often a scenario strikes (as it says)")
    parser.add_argument("--hosts", type=Path, metavar="FILE", help="real hosts: docs/CHURN.md")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep all logs there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    chosen = parser.parse_args(arguments)
    least, _, most = chosen.peers.partition("-")
    try:
        chosen.least, chosen.most = int(least), int(most or least)
    except ValueError:
        parser.error("--peers wants two numbers, as in 3-6")
    if not 2 <= chosen.least <= chosen.most <= 16:
        parser.error("--peers must lie within 2-16")
    return chosen


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of a campaign."""

    fabric: str
    method: str
    minutes: float

    @property
    def name(self) -> str:
        return self.fabric if self.method == ALL_REDUCE else f"{self.fabric}-{self.method}"


def turns(chosen: argparse.Namespace) -> list[Turn]:
    """Returns the runs, in order.  A quick campaign has a short one of each method at its end."""
    fabrics = ("hosts",) if chosen.hosts else FABRICS.get(chosen.fabric, ("none",))
    methods = list(METHODS) if chosen.method == "all" else [chosen.method]
    pairs = [(fabric, method) for fabric in fabrics for method in methods]
    if not chosen.quick:
        return [Turn(*pair, chosen.minutes / len(pairs)) for pair in pairs]
    quick = [Turn(*pair, QUICK_MINUTES) for pair in pairs]
    if chosen.method == ALL_REDUCE:
        quick += [Turn(fabrics[0], method, QUICK_METHOD_MINUTES) for method in METHODS]
    return quick


def run_on(
    turn: Turn,
    chosen: argparse.Namespace,
    folder: Path,
    console: Console,
    places: Places | None = None,
) -> Result:
    """One run on one fabric, or on the hosts of a file."""
    fabric, minutes = turn.fabric, turn.minutes
    settings = Settings(
        count=chosen.bytes // 4,
        pace_s=chosen.pace_ms / 1000,
        method=turn.method,
        profile=chosen.profile,
        connect=(("straggler", STRAGGLER_S[chosen.profile]), *OVER[chosen.transport]),
    )
    plan = Plan(
        minutes=minutes,
        least=chosen.least,
        most=chosen.most,
        seed=chosen.seed,
        gap_bar_s=GAP_BARS_S[chosen.profile],
        settings=settings,
    )
    console.print(
        f"seed {chosen.seed}, {fabric}, {turn.method}, profile {chosen.profile}, "
        f"{chosen.peers} peers, {chosen.bytes} bytes, {minutes:g} min; logs in {folder}"
    )
    with Screen(console) as screen:
        if places is not None:
            return churn(folder, places, FilteredLinks(places), plan, screen.show)
        if fabric == "none":
            return churn(folder, local_places(chosen.most, free_port()), None, plan, screen.show)
        lan = chosen.profile == "lan"
        quality = (LAN_QUALITY if lan else WAN_QUALITY) if fabric == "emulator" else LinkQuality()
        with Laboratory(
            fabric, chosen.most, folder, quality=quality, seed=chosen.seed
        ) as laboratory:
            return churn(folder, laboratory.places, laboratory.links, plan, screen.show)


def run_scenario(chosen: argparse.Namespace, folder: Path, console: Console) -> int:
    """Plays one scenario; returns the exit code."""
    scene = SCENES[chosen.scenario]
    samples = chosen.samples or scene.samples
    console.print(f"seed {chosen.seed}, scenario {chosen.scenario}; logs in {folder}")
    with Laboratory(
        scene.fabric, PEERS, folder, quality=scene.quality, seed=chosen.seed
    ) as laboratory:
        world = World(folder, laboratory.places, laboratory.links, scene.settings)
        bars, result = play(
            scene,
            world,
            seed=chosen.seed,
            samples=samples,
            minutes=chosen.minutes,
            tell=lambda text: console.print(f"  {text}"),
        )
    report.show_bars(console, bars, result)
    if chosen.json:
        document = {"bars": [asdict(bar) for bar in bars], **asdict(result)}
        chosen.json.write_text(json.dumps(document, indent=1, default=str) + "\n")
    return 0 if bars and all(bar.passed for bar in bars) and not result.violations else 1


class Screen:
    """Shows how it goes: in place on a terminal, now and then a line elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._next_at = 0.0

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, world: World, nemesis: Nemesis, left_s: float) -> None:
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + (REFRESH_S if self._live is not None else LINE_EVERY_S)
        line = report.now_line(world, nemesis, left_s)
        if self._live is not None:
            self._live.update(line, refresh=True)
        else:
            self._console.print(line)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main(arguments: list[str] | None = None) -> int:
    chosen = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # also then: report and clean up
    console = Console()
    if chosen.transport == "ucx":
        os.environ.setdefault("UCX_TLS", "tcp,self")
    fabrics = ("hosts",) if chosen.hosts else FABRICS.get(chosen.fabric, ("none",))
    if fabrics[0] in ("veth", "emulator") and (reason := why_not()) is not None:
        console.print(f"churn: {reason}")
        return 2
    try:
        places = places_of(chosen.hosts) if chosen.hosts else None
    except ValueError as error:
        console.print(f"churn: {error}; docs/CHURN.md has the format", markup=False, soft_wrap=True)
        return 2
    base = chosen.keep or Path(tempfile.mkdtemp(prefix="pccl-churn-"))
    if chosen.scenario:
        base.mkdir(parents=True, exist_ok=True)
        return run_scenario(chosen, base, console)
    results: dict[str, Result] = {}
    for turn in turns(chosen):
        folder = base / turn.name
        folder.mkdir(parents=True, exist_ok=True)
        result = results[turn.name] = run_on(turn, chosen, folder, console, places)
        report.show(console, result)
    bad = any(result.violations for result in results.values())
    if chosen.json:
        document = {"arguments": vars(chosen), **{f: asdict(r) for f, r in results.items()}}
        chosen.json.write_text(json.dumps(document, indent=1, default=str) + "\n")
    if bad:
        console.print(f"[red]failed[/]: seed {chosen.seed}; the logs stay in {base}")
    elif not chosen.keep:
        shutil.rmtree(base, ignore_errors=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
