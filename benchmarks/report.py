"""What the measurement means: bars, tables and the JSON document; pure but for what it is told.

A bar compares two figures of the same cell, because the machine's speed changes from minute to
minute while ratios stay.  Invariant: a bar whose figures were not measured is neither met nor
missed, and the report says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.table import Table

from benchmarks.measure import Cell, Vitals
from pccl.bench.arithmetic import aggregate_wire, show_bytes, show_seconds

SMALL, MIDDLE, LARGE = 4 << 10, 1 << 20, 64 << 20
FASTER_AT_LEAST: Final = {2: 2.0, 4: 1.5, 8: 1.15}
WIRE_AT_LEAST: Final = {2: 1.0, 4: 0.9, 8: 0.7}
WIRE_OUT_AT_LEAST: Final = {2: 1.1, 4: 1.0, 8: 0.8}
SMALL_OF_MPI_AT_MOST: Final = {2: 6.0, 4: 8.0, 8: 8.0}
MIDDLE_OF_MPI_AT_MOST: Final = 1.5
OF_GLOO_AT_MOST: Final = 0.5
MEMORY_OF_TENSOR: Final = 1.3
MEMORY_BESIDES: Final = 64 << 20
TITLES: Final = {
    "pccl": "pccl",
    "pccl-out": "pccl, out=",
    "gloo": "gloo",
    "openmpi": "Open MPI, TCP",
    "loopback": "loopback",
    "memcpy": "memcpy",
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One promise about speed or size, and how it came out."""

    what: str
    world: int
    found: float | None  # None: not measured
    limit: float
    at_least: bool

    @property
    def met(self) -> bool | None:
        if self.found is None:
            return None
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    @property
    def verdict(self) -> str:
        return {True: "met", False: "MISSED", None: "not measured"}[self.met]

    @property
    def row(self) -> tuple[str, str, str, str, str]:
        sign = "≥" if self.at_least else "≤"
        found = "–" if self.found is None else f"{self.found:.2f}"
        return self.what, str(self.world), found, f"{sign} {self.limit:g}", self.verdict


def ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def wire_over_loopback(cell: Cell, form: str) -> float | None:
    """Returns the rate of all ranks together over that of one connection."""
    seconds = cell.median_s(form)
    if seconds is None:
        return None
    return ratio(aggregate_wire(cell.size, seconds, cell.world), cell.rate("loopback"))


def judge(cells: Iterable[Cell], vitals: Iterable[Vitals]) -> list[Bar]:
    """Returns all bars that the measured cells have something to do with."""
    bars: list[Bar] = []
    for cell in cells:
        if cell.world in FASTER_AT_LEAST:
            bars += {SMALL: _small, MIDDLE: _middle, LARGE: _large}.get(cell.size, _none)(cell)
    for seen in vitals:
        bars += _bars_of(seen)
    return bars


def _none(cell: Cell) -> list[Bar]:
    return []


def _small(cell: Cell) -> list[Bar]:
    world, own = cell.world, cell.median_s("pccl")
    limit = SMALL_OF_MPI_AT_MOST[world]
    return [
        Bar("4 KiB: time / Open MPI's", world, ratio(own, cell.median_s("openmpi")), limit, False),
        Bar("4 KiB: time / gloo's", world, ratio(own, cell.median_s("gloo")), 0.5, False),
    ]


def _middle(cell: Cell) -> list[Bar]:
    world, own = cell.world, cell.median_s("pccl")
    of_mpi, of_gloo = ratio(own, cell.median_s("openmpi")), ratio(own, cell.median_s("gloo"))
    return [
        Bar("1 MiB: time / Open MPI's", world, of_mpi, MIDDLE_OF_MPI_AT_MOST, False),
        Bar("1 MiB: time / gloo's", world, of_gloo, OF_GLOO_AT_MOST, False),
    ]


def _large(cell: Cell) -> list[Bar]:
    world = cell.world
    rivals = [cell.median_s("gloo"), cell.median_s("openmpi")]
    known = [seconds for seconds in rivals if seconds is not None]
    # A missing rival could be the faster one.
    best = min(known) if len(known) == len(rivals) else None
    cpu = {name: timing.cpu_s_per_gb for name, timing in cell.timings.items()}
    return [
        Bar(
            "64 MiB: best rival's time / pccl's",
            world,
            ratio(best, cell.median_s("pccl")),
            FASTER_AT_LEAST[world],
            True,
        ),
        Bar(
            "64 MiB: wire rate / loopback",
            world,
            wire_over_loopback(cell, "pccl"),
            WIRE_AT_LEAST[world],
            True,
        ),
        Bar(
            "64 MiB out=: wire rate / loopback",
            world,
            wire_over_loopback(cell, "pccl-out"),
            WIRE_OUT_AT_LEAST[world],
            True,
        ),
        Bar(
            "64 MiB: CPU s per GB / gloo's",
            world,
            ratio(cpu.get("pccl"), cpu.get("gloo")),
            1.0,
            False,
        ),
    ]


def _bars_of(seen: Vitals) -> list[Bar]:
    allowed = MEMORY_OF_TENSOR * seen.tensor_bytes + MEMORY_BESIDES
    many = f"after {seen.operations} operations"
    return [
        Bar(
            "peak memory beyond the tensor, MiB",
            seen.world,
            seen.extra_bytes / (1 << 20),
            round(allowed / (1 << 20), 1),
            False,
        ),
        Bar(f"threads more {many}", seen.world, seen.threads[1] - seen.threads[0], 0, False),
        Bar(f"sockets more {many}", seen.world, seen.sockets[1] - seen.sockets[0], 0, False),
    ]


TIME_HEADER: Final = ("ranks", "size")
BAR_HEADER: Final = ("bar", "ranks", "found", "limit", "")


def time_rows(cells: Sequence[Cell], forms: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the table of times, in ms; references in GB/s."""
    header = [*TIME_HEADER, *(title_of(form) for form in forms)]
    rows = []
    for cell in cells:
        row = [str(cell.world), show_bytes(cell.size)]
        for form in forms:
            seconds, rate = cell.median_s(form), cell.rate(form)
            if seconds is None or rate is None:
                row.append("–")
            else:
                row.append(f"{rate:.1f}" if is_reference(form) else show_seconds(seconds))
        rows.append(row)
    return header, rows


def is_reference(form: str) -> bool:
    return form in ("loopback", "memcpy")


def title_of(form: str) -> str:
    return f"{TITLES[form]} {'GB/s' if is_reference(form) else 'ms'}"


def large_rows(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the table about CPU time and wire rates at the largest size."""
    header = ["ranks", "contender", "CPU s/GB", "wire GB/s", "wire / loopback"]
    rows = []
    for cell in (cell for cell in cells if cell.size == LARGE):
        for form, timing in cell.timings.items():
            if is_reference(form):
                continue
            wire = aggregate_wire(cell.size, timing.median_s, cell.world)
            relation = wire_over_loopback(cell, form)
            shown = "–" if relation is None else f"{relation:.2f}"
            rows.append(
                [str(cell.world), TITLES[form], f"{timing.cpu_s_per_gb:.2f}", f"{wire:.2f}", shown]
            )
    return header, rows


def rich_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number < 1 else "right")
    for row in rows:
        missed = "MISSED" in row
        table.add_row(*row, style="red" if missed else None)
    return table


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def as_document(
    about: Mapping[str, Any], cells: Sequence[Cell], vitals: Sequence[Vitals], bars: Sequence[Bar]
) -> dict[str, Any]:
    """Returns everything that was found, for machines."""
    return {
        **about,
        "time": "median over all iterations, each that of the slowest rank",
        "cells": [
            {
                "world": cell.world,
                "size": cell.size,
                "timings": {name: asdict(timing) for name, timing in cell.timings.items()},
                "loopback_gb_per_s": cell.rate("loopback"),
                "memcpy_gb_per_s": cell.rate("memcpy"),
                "wire_over_loopback": {
                    form: wire_over_loopback(cell, form)
                    for form in cell.timings
                    if not is_reference(form)
                },
            }
            for cell in cells
        ],
        "vitals": [asdict(seen) for seen in vitals],
        "bars": [{**asdict(bar), "met": bar.met} for bar in bars],
    }
