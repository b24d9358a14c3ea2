"""The figures of a churn run for people: while it goes on, and at the end."""

from __future__ import annotations

import time

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.churn.nemesis import Nemesis
from tests.churn.run import Result
from tests.churn.scenarios import Bar
from tests.churn.world import World
from tests.faults.report import quantile

VIOLATIONS_SHOWN = 10
QUANTILES = ((0.5, "p50"), (0.99, "p99"), (1.0, "max"))


def now_line(world: World, nemesis: Nemesis, left_s: float) -> Text:
    """One line that says how it goes."""
    lives = [peer.history.life for peer in world.peers]
    last = max((life.commits[-1] for life in lives if life and life.commits),
               key=lambda commit: commit.at, default=None)  # fmt: skip
    step = "none yet" if last is None else f"{last.step} ({time.monotonic() - last.at:.1f} s ago)"
    events = "  ".join(f"{kind} {count}" for kind, count in nemesis.counts.items() if count)
    coordinator = "down" if world.coordinator is None else "up"
    if world.coordinator_stopped:
        coordinator = "stopped"
    return Text(
        f"{left_s:5.0f} s left   {len(world.healthy())} of {len(world.peers)} peers healthy   "
        f"coordinator {coordinator}   step {step}\n{sum(nemesis.counts.values())} events: {events}"
    )


def show(console: Console, result: Result) -> None:
    """Prints the final tables and every violation."""
    events = Table(title="events", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("kind", "times", "recoveries", "p50 s", "p99 s", "max s"):
        events.add_column(name, justify="left" if name == "kind" else "right")
    kinds = dict.fromkeys((*result.recoveries_s, *(k for k, n in result.events.items() if n)))
    for kind in sorted(kinds):
        times = result.recoveries_s.get(kind, [])
        cells = [f"{quantile(times, q):.2f}" if times else "" for q, _ in QUANTILES]
        events.add_row(kind, str(result.events.get(kind, "")), str(len(times)), *cells)
    console.print(events)
    if result.gaps_s:
        gaps = ", ".join(f"{name} {quantile(result.gaps_s, q):.3f}" for q, name in QUANTILES)
        console.print(f"seconds between commits: {gaps}")
    longest = max(result.unexcused_gaps_s, default=0.0)
    console.print(
        f"{sum(result.events.values())} events in {result.seconds:.0f} s on {result.processes} "
        f"processes; {result.steps} steps committed, {result.retried_steps} of them retried, "
        f"{f'{result.outer_steps} of them reductions of a method, ' if result.outer_steps else ''}"
        f"{result.failed_steps} failed, in {result.lineages} lineages; longest gap that nothing "
        f"excuses {longest:.1f} s; "
        f"whole again {result.calm_s:.1f} s after the last fault"
    )
    console.print("ends: " + ", ".join(f"{name} {n}" for name, n in sorted(result.ends.items())))
    show_verdict(console, result)


def show_bars(console: Console, bars: list[Bar], result: Result) -> None:
    """Prints what a scenario measured, and every violation."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("measured", "value", "bar", ""):
        table.add_column(name, justify="right" if name in ("value", "bar") else "left")
    for bar in bars:
        limit = "" if bar.limit is None else f"≤ {bar.limit:g}"
        verdict = "" if bar.limit is None else "[green]pass[/]" if bar.passed else "[red]FAIL[/]"
        table.add_row(bar.name, f"{bar.value:.3g}", limit, verdict)
    console.print(table)
    show_verdict(console, result)


def show_verdict(console: Console, result: Result) -> None:
    if not result.violations:
        console.print(
            "[green]wrong sums 0, divergences 0, hangs 0[/]: all histories agree, every sum is "
            "exact, every input was given back"
        )
    for violation in result.violations[:VIOLATIONS_SHOWN]:
        console.print(f"[red]violation[/] {violation}", highlight=False, soft_wrap=True)
    more = len(result.violations) - VIOLATIONS_SHOWN
    if more > 0:
        console.print(f"[red]and {more} more[/]")
