"""The measurement: cells of (ranks, size), in each of which the contenders take turns.

    for each number of ranks:  start every contender's ranks; pccl's vitals, while it is fresh
        for each size:         check every contender once, see how long one operation takes
            round 1 .. R:      A B C ... each a few iterations, the others asleep

Noise of a shared machine comes and goes within seconds; turns spread it over all contenders alike.
Every answer is kept until the end of its cell; a cell's figure is the median over all iterations of
all rounds, an iteration's time that of the rank that took longest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.contenders import Form, start_groups
from benchmarks.rivals import TRANSFER_BYTES
from pccl.bench.arithmetic import cpu_s_per_gb, median, quantile, slowest
from pccl.bench.ranks import RankGroup

ORDER_S: Final = 120.0
CALIBRATION: Final = 3
ITERATIONS_MIN: Final = 3
ITERATIONS_MAX: Final = 1000
REFERENCE_ITERATIONS: Final = 6
VITALS_BYTES: Final = 64 << 20
VITALS_OPERATIONS: Final = 1000


@dataclass(frozen=True, slots=True)
class Timing:
    """One contender in one cell; seconds."""

    median_s: float
    p90_s: float
    best_s: float
    loop_s: float  # rank 0's loops divided by their iterations; the mean, as others report it
    iterations: int
    cpu_s_per_gb: float  # of all ranks together, for each GB of tensor
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of ranks and one size."""

    world: int
    size: int
    timings: Mapping[str, Timing]

    def median_s(self, form: str) -> float | None:
        timing = self.timings.get(form)
        return None if timing is None else timing.median_s

    def rate(self, reference: str) -> float | None:
        """GB/s of a reference."""
        seconds = self.median_s(reference)
        return None if seconds is None else TRANSFER_BYTES / seconds / 1e9


@dataclass(frozen=True, slots=True)
class Vitals:
    """What pccl needs besides time; the worst peer's."""

    world: int
    tensor_bytes: int
    extra_bytes: int  # peak beyond what the process had before it connected, and the tensor
    threads: tuple[int, int]  # before and after many operations
    sockets: tuple[int, int]
    operations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What to measure, and how long."""

    forms: tuple[Form, ...]
    worlds: tuple[int, ...]
    sizes: tuple[int, ...]
    rounds: int
    seconds_per_cell: float

    @property
    def turns(self) -> int:
        """How often `tell` hears of progress."""
        return len(self.worlds) * (1 + len(self.sizes) * (1 + self.rounds))


@dataclass(slots=True)
class Samples:
    """One contender's answers in one cell."""

    times: list[float] = field(default_factory=list)
    loop_s: float = 0.0
    cpu_s: float = 0.0
    retries: int = 0

    def add(self, answers: Sequence[Mapping[str, Any]]) -> None:
        self.times += slowest([answer["times"] for answer in answers])
        self.loop_s += answers[0]["loop_s"]
        self.cpu_s += sum(answer["cpu_s"] for answer in answers)
        self.retries += max(answer.get("retries", 0) for answer in answers)

    def timing(self, size: int) -> Timing:
        count = len(self.times)
        return Timing(
            median_s=median(self.times),
            p90_s=quantile(self.times, 0.9),
            best_s=min(self.times),
            loop_s=self.loop_s / count,
            iterations=count,
            cpu_s_per_gb=cpu_s_per_gb([self.cpu_s], size, count),
            retries=self.retries,
        )


Tell = Callable[[str], None]


@dataclass(slots=True)
class Found:
    """What has been measured so far; it is worth telling even if the rest fails."""

    cells: list[Cell] = field(default_factory=list)
    vitals: list[Vitals] = field(default_factory=list)


def run_course(course: Course, found: Found, tell: Tell, on_cell: Callable[[Cell], None]) -> None:
    """Measures everything, into `found`.

    Raises:
        RankFailed: a contender failed, or gave a wrong result; everything has been ended.
    """
    for world in course.worlds:
        with tempfile.TemporaryDirectory(prefix="pccl-bench-") as folder:
            tell(f"{world} ranks: starting")
            with start_groups(course.forms, world, Path(folder)) as groups:
                if "pccl" in groups:
                    found.vitals.append(_vitals(groups["pccl"]))
                for size in course.sizes:
                    found.cells.append(_measure_cell(course, groups, world, size, tell))
                    on_cell(found.cells[-1])


def _measure_cell(
    course: Course, groups: Mapping[str, RankGroup], world: int, size: int, tell: Tell
) -> Cell:
    tell(f"{world} ranks, {size >> 10} KiB: checking")
    for name, group in groups.items():
        forms = [form.in_place for form in course.forms if form.group == name]
        _prepare(group, size, forms)
    budget_s = (
        course.seconds_per_cell
        / course.rounds
        / max(1, sum(not form.reference for form in course.forms))
    )
    plans = {form.name: _plan(groups[form.group], form, budget_s) for form in course.forms}
    samples = {form.name: Samples() for form in course.forms}
    for number in range(course.rounds):
        tell(f"{world} ranks, {size >> 10} KiB: round {number + 1} of {course.rounds}")
        for form in course.forms:
            samples[form.name].add(_run(groups[form.group], form, plans[form.name]))
    timings = {
        form.name: samples[form.name].timing(TRANSFER_BYTES if form.reference else size)
        for form in course.forms
    }
    return Cell(world, size, timings)


def _prepare(group: RankGroup, size: int, forms: Sequence[bool]) -> None:
    group.ask(
        "prepare",
        timeout_s=ORDER_S,
        dtype="f32",
        count=size // 4,
        op="sum",
        in_place=list(forms),
    )


def _plan(group: RankGroup, form: Form, budget_s: float) -> int:
    """Returns the iterations that fit into one turn."""
    if form.reference:
        return REFERENCE_ITERATIONS
    times = slowest([answer["times"] for answer in _run(group, form, CALIBRATION)])
    return max(ITERATIONS_MIN, min(ITERATIONS_MAX, int(budget_s / median(times))))


def _run(group: RankGroup, form: Form, iterations: int) -> list[Any]:
    # Two warm-ups: the first also wakes the ranks and their caches after the others' turns.
    return group.ask(
        "run",
        timeout_s=ORDER_S,
        in_place=form.in_place,
        warmups=2,
        iterations=iterations,
    )


def _vitals(group: RankGroup) -> Vitals:
    """Looks at peers that have done nothing yet, so that a peak is theirs alone."""
    form = Form("pccl", "pccl")
    _prepare(group, VITALS_BYTES, [True])
    before = [answer["rss_before_bytes"] for answer in _run(group, form, CALIBRATION)]
    peaks = [vitals["peak_bytes"] for vitals in group.ask("vitals", timeout_s=ORDER_S)]
    _prepare(group, 4096, [True])
    first = group.ask("vitals", timeout_s=ORDER_S)
    _run(group, form, VITALS_OPERATIONS)
    last = group.ask("vitals", timeout_s=ORDER_S)
    return Vitals(
        world=group.world,
        tensor_bytes=VITALS_BYTES,
        extra_bytes=max(
            peak - base - VITALS_BYTES for peak, base in zip(peaks, before, strict=True)
        ),
        threads=_worst(first, last, "threads"),
        sockets=_worst(first, last, "sockets"),
        operations=VITALS_OPERATIONS,
    )


def _worst(
    first: Sequence[Mapping[str, int]], last: Sequence[Mapping[str, int]], key: str
) -> tuple[int, int]:
    """Returns before and after of the rank where the number grew most."""
    pairs = [(before[key], after[key]) for before, after in zip(first, last, strict=True)]
    return max(pairs, key=lambda pair: pair[1] - pair[0])
