"""Measures all-reduce against gloo and Open MPI on this machine: `python benchmarks/all_reduce.py`.

See README.md beside it for what is measured and how to read it.  Exit codes: 0 measured, also if a
bar was missed (1 with --strict); 1 a contender failed; 2 asked for wrongly.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.contenders import NAMES, choose_forms
from benchmarks.machine import describe, load
from benchmarks.measure import Cell, Course, Found, run_course
from benchmarks.report import (
    BAR_HEADER,
    TITLES,
    as_document,
    is_reference,
    judge,
    large_rows,
    markdown_table,
    rich_table,
    time_rows,
)
from pccl.base.errors import PcclError, UsageError
from pccl.bench.arithmetic import parse_bytes, show_bytes, show_seconds

LOG_COLUMNS = 140


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """Parses `2,4,8`."""
    if value is None:
        return None
    try:
        worlds = tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r}: write 2,4,8", ctx, param) from None
    if not all(2 <= world <= 64 for world in worlds):
        raise click.BadParameter("ranks must be within 2 to 64", ctx, param)
    return worlds


def _sizes(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """Parses `4KiB,1MiB`."""
    if value is None:
        return None
    try:
        sizes = tuple(parse_bytes(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None
    if any(size % 4 for size in sizes):
        raise click.BadParameter("sizes must be whole numbers of f32", ctx, param)
    return sizes


@click.command()
@click.option("--ranks", callback=_numbers, help="Numbers of ranks.  [default: 2,4,8; quick: 2,4]")
@click.option(
    "--sizes",
    callback=_sizes,
    help="[default: 4KiB,64KiB,1MiB,8MiB,64MiB; quick: 4KiB,1MiB,64MiB]",
)
@click.option("--rounds", type=click.IntRange(1, 100), help="Turns in a cell.  [default: 7; 3]")
@click.option(
    "--seconds-per-cell",
    type=click.FloatRange(0.1, 600),
    help="What the turns of a cell take together, about.  [default: 16; quick: 4]",
)
@click.option("--quick", is_flag=True, help="Under two minutes, and noisier.")
@click.option("--contenders", default=",".join(NAMES), show_default=True, help="Whom to measure.")
@click.option("--skip-mpi", is_flag=True, help="Leave Open MPI out.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("build/all_reduce.json"),
    show_default=True,
)
@click.option(
    "--png",
    "png_path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("build/all_reduce.png"),
    show_default=True,
)
@click.option("--markdown", is_flag=True, help="Print the tables as Markdown too.")
@click.option("--strict", is_flag=True, help="Exit with 1 if a bar is missed.")
def command(
    ranks: tuple[int, ...] | None,
    sizes: tuple[int, ...] | None,
    rounds: int | None,
    seconds_per_cell: float | None,
    quick: bool,
    contenders: str,
    skip_mpi: bool,
    json_path: Path | None,
    png_path: Path | None,
    markdown: bool,
    strict: bool,
) -> int:
    """Measures all-reduce of pccl, gloo and Open MPI over TCP on loopback, taking turns."""
    names = [name.strip() for name in contenders.split(",") if name.strip()]
    course = Course(
        forms=choose_forms([name for name in names if not (skip_mpi and name == "openmpi")]),
        worlds=ranks or ((2, 4) if quick else (2, 4, 8)),
        sizes=sizes or tuple(size << 10 for size in ((4, 1024, 65536) if quick else _ALL_KIB)),
        rounds=rounds or (3 if quick else 7),
        seconds_per_cell=seconds_per_cell or (4.0 if quick else 16.0),
    )
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=LOG_COLUMNS, highlight=False)
    signal.signal(signal.SIGTERM, _interrupt)
    bars_missed = _measure(course, console, json_path, png_path, markdown)
    return 1 if strict and bars_missed else 0


_ALL_KIB = (4, 64, 1024, 8192, 65536)


def _measure(
    course: Course,
    console: Console,
    json_path: Path | None,
    png_path: Path | None,
    markdown: bool,
) -> int:
    """Measures, tells and writes; returns how many bars were missed."""
    about, load_before, begin_s = describe(), load(), time.monotonic()
    names = [form.name for form in course.forms]
    columns = (TextColumn("{task.description:<40}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=course.turns)

        def tell(text: str) -> None:
            progress.update(task, description=text, advance=1)

        def on_cell(cell: Cell) -> None:
            progress.console.print(_one_line(cell), markup=False, soft_wrap=True)

        found, failure = Found(), None
        try:
            run_course(course, found, tell, on_cell)
        except (PcclError, KeyboardInterrupt) as error:
            if not found.cells:
                raise
            failure = error  # told when the cells that there are have been
    cells, vitals = found.cells, found.vitals
    about["complete"] = failure is None
    about["seconds"] = round(time.monotonic() - begin_s, 1)
    about["load"] = {"before": load_before, "after": load()}
    bars = judge(cells, vitals)
    tables = [
        ("median time of the slowest rank", *time_rows(cells, names)),
        ("at 64 MiB", *large_rows(cells)),
        ("bars", list(BAR_HEADER), [list(bar.row) for bar in bars]),
    ]
    for title, header, rows in tables:
        if rows:
            console.print(rich_table(title, header, rows))
    if markdown:
        for title, header, rows in tables:
            click.echo(f"\n**{title}**\n\n{markdown_table(header, rows)}")
    _write(about, tables, json_path, as_document(about, cells, vitals, bars))
    if png_path is not None:
        from benchmarks.picture import draw  # matplotlib takes a second, so only now

        draw(cells, _caption(about), png_path)
    console.print(_caption(about), soft_wrap=True, style="dim")
    if failure is not None:
        raise failure
    return sum(bar.met is False for bar in bars)


def _write(
    about: dict[str, Any],
    tables: Sequence[tuple[str, list[str], list[list[str]]]],
    json_path: Path | None,
    document: dict[str, Any],
) -> None:
    """Writes the JSON, and the tables as Markdown beside it."""
    if json_path is None:
        return
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(document, indent=1) + "\n")
    parts = [f"**{title}**\n\n{markdown_table(header, rows)}\n" for title, header, rows in tables]
    text = f"`{about['command']}`\n\n" + "\n".join(parts) + f"\n{_caption(about)}\n"
    json_path.with_suffix(".md").write_text(text)


def _one_line(cell: Cell) -> str:
    times = [
        f"{TITLES[name]} {show_seconds(timing.median_s)}"
        for name, timing in cell.timings.items()
        if not is_reference(name)
    ]
    return f"{cell.world} ranks, {show_bytes(cell.size)}, ms: {', '.join(times)}"


def _caption(about: dict[str, Any]) -> str:
    machine, pace = about["machine"], about["load"]
    return (
        f"{machine['cpus']} x {machine['cpu']}, kernel {machine['kernel']}, commit "
        f"{about['commit']}, {about['when'][:16]}, load {pace['before']:.1f} before and "
        f"{pace['after']:.1f} after, {about['seconds']:.0f} s"
        + ("" if about["complete"] else ", not complete")
    )


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    try:
        result = command.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except UsageError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    except PcclError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        return 1
    except (KeyboardInterrupt, click.Abort):
        return 130
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
