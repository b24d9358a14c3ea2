"""`./dev sim`: runs seeds, replays one, makes a failing one small, and hunts mutants.

./dev sim --seeds 100000           many seeds, all processors; one in 50 with the asyncio drivers
./dev sim --seed 42 --trace        one seed again, and all that happened in it
./dev sim --shrink --seed 42       the smallest script that still fails
./dev sim --script '{...}'         a script from elsewhere (JSON, as --shrink prints it)
./dev sim --drivers ...            the same with the asyncio drivers on a virtual-time loop
./dev sim --mutants                every protocol mutant must be found
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.sim.batch import Summary, run_many, run_seed, through_drivers
from tests.sim.drivers.run import run_drivers
from tests.sim.mutants.hunt import hunt_all
from tests.sim.run import Result, run
from tests.sim.script import KINDS, Script
from tests.sim.shrink import shrink

TRACE_END = 40
SHRINK_S = 60.0


def main(arguments: list[str]) -> int:
    said = _parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    if said.mutants:
        return hunt_all(console, names=said.only, seeds=said.seeds or 0, jobs=said.jobs)
    if said.script:
        runner = run_drivers if said.drivers else run
        return _tell(console, runner(Script.from_json(said.script), traced=True), said.trace)
    if said.seed is not None:
        result = run_seed(
            said.seed, kind=said.kind, drivers=said.drivers, traced=said.trace and not said.shrink
        )
        code = _tell(console, result, said.trace)
        if said.shrink and code:
            drivers = said.drivers or through_drivers(said.seed, said.kind)
            _shrink(console, result.script, drivers=drivers)
        return code
    return _run_many(console, said)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev sim", description="Deterministic simulation.")
    parser.add_argument("--seeds", type=_positive, help="how many (2000; with --mutants: enough)")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=_positive, default=os.cpu_count() or 1, help="processes")
    kinds = sorted(set(KINDS))
    parser.add_argument("--kind", choices=kinds, default="", help="of faults; else drawn")
    parser.add_argument("--drivers", action="store_true", help="the real asyncio drivers")
    parser.add_argument("--seed", type=int, help="run this one")
    parser.add_argument("--script", default="", help="run this script (JSON)")
    parser.add_argument("--trace", action="store_true", help="show the whole trace")
    parser.add_argument("--shrink", action="store_true", help="make a failing seed small")
    parser.add_argument("--mutants", action="store_true", help="find all protocol mutants")
    parser.add_argument("--only", default="", help="of the mutants, those with this in the name")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def _tell(console: Console, result: Result, whole: bool) -> int:
    if result.failure or whole:
        trace = result.trace if whole else result.trace[-TRACE_END:]
        for line in trace:
            console.print(line if whole else line[:300], markup=False, soft_wrap=True)
        console.print(str(result.script), markup=False, soft_wrap=True)
    if result.failure:
        console.print(f"FAILED {result.failure}\n  at {result.where}", markup=False)
        return 1
    console.print(
        f"clean: {result.commits} commits, {result.events} events, {result.virtual_s:.1f} s "
        f"of virtual time in {result.wall_s:.2f} s"
    )
    return 0


def _shrink(console: Console, script: Script, *, drivers: bool) -> None:
    runner = run_drivers if drivers else run
    small = shrink(script, within_s=SHRINK_S, runner=runner)
    console.print("smallest script found:", markup=False)
    console.print(str(small.script), markup=False, soft_wrap=True)
    console.print(f"FAILED {small.failure}", markup=False)
    flag = " --drivers" if drivers else ""
    console.print(f"again: ./dev sim{flag} --script '{small.script.to_json()}'", soft_wrap=True)


def _run_many(console: Console, said: argparse.Namespace) -> int:
    count = said.seeds or 2000
    began_s = time.monotonic()
    with Progress(
        TextColumn("sim"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]:.0f} seeds/s, {task.fields[failures]} failed"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("sim", total=count, speed=0.0, failures=0)

        def show(total: Summary) -> None:
            speed = total.seeds / (time.monotonic() - began_s)
            failures = len(total.failures)
            progress.update(task, completed=total.seeds, speed=speed, failures=failures)

        total = run_many(
            said.first,
            count,
            jobs=said.jobs,
            kind=said.kind,
            drivers=said.drivers,
            on_progress=show,
        )
    wall_s = time.monotonic() - began_s
    flags = (" --drivers" if said.drivers else "") + (f" --kind {said.kind}" if said.kind else "")
    if total.failures:
        first, _ = total.failures[0]
        _tell(console, run_seed(first, kind=said.kind, drivers=said.drivers), whole=False)
        for seed, text in total.failures:
            console.print(f"seed {seed}: {text[:400]}", markup=False)
            console.print(f"  again: ./dev sim --seed {seed}{flags}", markup=False)
            console.print(f"  small: ./dev sim --shrink --seed {seed}{flags}", markup=False)
    faults = ", ".join(f"{kind} {n}" for kind, n in sorted(total.faults.items()))
    console.print(f"faults: {faults}", markup=False, soft_wrap=True)
    console.print(
        f"{total.seeds} seeds from {said.first}, {wall_s:.1f} s, "
        f"{total.seeds / wall_s:.1f} seeds/s ({total.seeds / max(total.cpu_s, 1e-9):.1f} per "
        f"second of one processor), {total.commits} commits, {total.events} events, "
        f"{total.virtual_s:.0f} s of virtual time, {len(total.failures)} failed",
        markup=False,
        soft_wrap=True,
    )
    return 1 if total.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
