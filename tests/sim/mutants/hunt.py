"""Hunts mutants: each must make some invariant fail within a bounded number of scripts."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from functools import partial
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.sim.mutants.catalogue import Patches, everyone
from tests.sim.run import run

SEEDS: Final = 600  # scripts per mutant; one that needs more needs better aimed scripts


@dataclass(frozen=True)
class Catch:
    name: str
    seed: int | None  # None: it survived
    failure: str
    wall_s: float


def hunt(name: str, *, seeds: int = SEEDS) -> Catch:
    """Runs a mutant until something fails."""
    mutant = everyone()[name]
    began_s = time.perf_counter()
    for seed in range(seeds):
        script = mutant.scripts(seed)
        with Patches() as patches:
            mutant.apply(patches)
            result = run(script, again=False)
        if result.failure:
            sound = run(script, again=False)
            if sound.failure:  # then nothing is shown by it
                return Catch(name, None, f"without it, too: {sound.failure}", 0.0)
            return Catch(name, seed, result.failure, time.perf_counter() - began_s)
    return Catch(name, None, "", time.perf_counter() - began_s)


def hunt_all(console: Console, *, names: str = "", seeds: int = 0, jobs: int = 1) -> int:
    """Hunts all mutants with `names` in their name; returns 1 if one survives."""
    mutants = [m for m in everyone().values() if names in m.name]
    catches: list[Catch] = []
    with Progress(
        TextColumn("mutants"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("mutants", total=len(mutants))
        with multiprocessing.get_context("spawn").Pool(jobs) as pool:
            work = partial(hunt, seeds=seeds or SEEDS)
            for catch in pool.imap_unordered(work, [m.name for m in mutants]):
                catches.append(catch)
                progress.advance(task)
    console.print(_table(catches, len(mutants)))
    survivors = sorted(c.name for c in catches if c.seed is None)
    console.print(f"{len(catches) - len(survivors)} of {len(catches)} mutants found")
    if survivors:
        console.print(f"SURVIVED: {', '.join(survivors)}")
    return 1 if survivors else 0


def _table(catches: list[Catch], count: int) -> Table:
    table = Table(title=f"{count} protocol mutants")
    table.add_column("mutant")
    table.add_column("what is wrong with it")
    table.add_column("seed", justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("what failed", max_width=60)
    mutants = everyone()
    for catch in sorted(catches, key=lambda c: list(mutants).index(c.name)):
        seed = "survived" if catch.seed is None else str(catch.seed)
        failure = catch.failure.removeprefix("AssertionError: ")[:120]
        table.add_row(catch.name, mutants[catch.name].says, seed, f"{catch.wall_s:.1f}", failure)
    return table
