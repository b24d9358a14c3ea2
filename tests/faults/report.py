"""The figures of a campaign against their bars.

A gap is the time from the blow to the first commit, on one survivor, without the victims.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.faults.scenarios import Figures


@dataclass(frozen=True, slots=True)
class Bar:
    """A quantile of a list of seconds, and what it may be at most; None: for information."""

    scenario: str
    key: str
    quantile: float
    limit_s: float | None = None


BARS = (
    Bar("kill: gap", "kill_gaps_s", 0.5, 0.1),
    Bar("kill: gap", "kill_gaps_s", 0.99, 0.5),
    Bar("kill: gap", "kill_gaps_s", 1.0),
    Bar("kill: next commit of any kind", "kill_next_s", 0.5),
    Bar("kill: next commit of any kind", "kill_next_s", 0.99),
    Bar("stop: gap", "stop_gaps_s", 1.0, 4.0),
    Bar("stop: resumed to Evicted", "evicted_s", 1.0),
    Bar("join: connect() to first commit", "join_s", 0.5),
    Bar("join: connect() to first commit", "join_s", 1.0, 1.0),
    Bar("leave: gap", "leave_gaps_s", 0.5),
    Bar("leave: gap", "leave_gaps_s", 1.0),
    Bar("mass: newcomers to first commit", "mass_s", 1.0),
    Bar("storm: first kill to all in", "storm_s", 1.0),
)


# A newcomer begins later: UCX's start takes 0.1 s of processor time (p50 1.8 times that over TCP,
# on an overloaded machine); no bar was set for that.
UCX_BARS = (
    Bar("kill: gap", "kill_gaps_s", 0.5),
    Bar("kill: gap", "kill_gaps_s", 0.99, 1.0),
    *(bar for bar in BARS if bar.key not in ("kill_gaps_s", "join_s")),
    Bar("join: connect() to first commit", "join_s", 0.5),
    Bar("join: connect() to first commit", "join_s", 1.0),
)


def quantile(values: list[float], q: float) -> float:
    """The smallest value that at least the share `q` of the values does not exceed."""
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]


def rows(figures: Figures) -> list[dict[str, Any]]:
    """One row per bar that was measured."""
    found = []
    for bar in UCX_BARS if figures.transport == "ucx" else BARS:
        values: list[float] = getattr(figures, bar.key)
        if values:
            value_s = quantile(values, bar.quantile)
            passed = None if bar.limit_s is None else value_s <= bar.limit_s
            found.append({**asdict(bar), "n": len(values), "value_s": value_s, "passed": passed})
    return found


def passed(figures: Figures) -> bool:
    return not figures.violations and all(row["passed"] is not False for row in rows(figures))


def show(console: Console, figures: Figures) -> None:
    """Prints the table and every violation."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("scenario", "samples", "quantile", "seconds", "bar", ""):
        table.add_column(name, justify="left" if name in ("scenario", "") else "right")
    verdicts = {None: "", True: "[green]pass[/]", False: "[red]FAIL[/]"}
    for row in rows(figures):
        limit = "" if row["limit_s"] is None else f"≤ {row['limit_s']:g}"
        name = "max" if row["quantile"] == 1.0 else f"p{row['quantile'] * 100:g}"
        verdict = verdicts[row["passed"]]
        table.add_row(row["scenario"], str(row["n"]), name, f"{row['value_s']:.3f}", limit, verdict)
    console.print(table)
    if figures.join_s:
        console.print(f"steps retried because of a joiner: {figures.retries_by_joins}")
    if not figures.violations:
        console.print("every result exact, all histories agree, nothing printed, nothing hung")
    for violation in figures.violations[:20]:
        console.print(f"[red]violation[/] {violation}", highlight=False, soft_wrap=True)
