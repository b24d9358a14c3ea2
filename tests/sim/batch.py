"""Many seeds on several processes, and the sum of what they did."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from tests.sim.drivers.run import draw_drivers, run_drivers
from tests.sim.run import Result, run
from tests.sim.script import draw

CHUNK: Final = 25
DRIVERS_EVERY: Final = 50
FAILURES_MAX: Final = 5  # more of them tell nothing more


@dataclass
class Summary:
    seeds: int = 0
    commits: int = 0
    events: int = 0
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)  # seed and what failed

    def add(self, other: Summary) -> None:
        self.seeds += other.seeds
        self.commits += other.commits
        self.events += other.events
        self.virtual_s += other.virtual_s
        self.cpu_s += other.cpu_s
        self.faults += other.faults
        self.failures += other.failures


def through_drivers(seed: int, kind: str = "") -> bool:
    """A small share of the seeds, unless one kind is asked for, runs through the real drivers."""
    return not kind and seed % DRIVERS_EVERY == DRIVERS_EVERY - 1


def run_seed(seed: int, *, kind: str = "", drivers: bool = False, traced: bool = False) -> Result:
    """Runs one seed, of the machines or of the asyncio drivers."""
    if drivers or through_drivers(seed, kind):
        return run_drivers(draw_drivers(seed, kind), traced=traced)
    return run(draw(seed, kind), traced=traced)


def run_range(bounds: tuple[int, int], *, kind: str = "", drivers: bool = False) -> Summary:
    summary = Summary()
    began_s = time.process_time()
    for seed in range(*bounds):
        result = run_seed(seed, kind=kind, drivers=drivers)
        summary.seeds += 1
        summary.commits += result.commits
        summary.events += result.events
        summary.virtual_s += result.virtual_s
        summary.faults += result.faults
        if result.failure:
            summary.failures.append((seed, f"{result.failure} ({result.where})"))
    summary.cpu_s = time.process_time() - began_s
    return summary


def run_many(
    first: int,
    count: int,
    *,
    jobs: int,
    kind: str = "",
    drivers: bool = False,
    on_progress: Callable[[Summary], None] = lambda _: None,
) -> Summary:
    """Runs seeds first to first + count - 1; stops early after some failures."""
    total = Summary()
    work = partial(run_range, kind=kind, drivers=drivers)
    end = first + count
    chunks = ((at, min(at + CHUNK, end)) for at in range(first, end, CHUNK))
    for part in _parts(work, chunks, jobs):
        total.add(part)
        on_progress(total)
        if len(total.failures) >= FAILURES_MAX:
            break
    total.failures.sort()
    return total


def _parts(
    work: Callable[[tuple[int, int]], Summary], chunks: Iterator[tuple[int, int]], jobs: int
) -> Iterator[Summary]:
    if jobs <= 1:
        yield from map(work, chunks)
        return
    # Spawned, not forked: a worker begins with nothing of ours.
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(work, chunks)
