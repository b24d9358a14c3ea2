"""`pccl bench`: measures pccl on this machine, with a coordinator and peers of its own.

Exit codes: 0 measured, 1 a peer failed or a result was wrong, 2 asked for wrongly.
"""

from __future__ import annotations

import json
import signal
from types import FrameType

import click
from rich.console import Console
from rich.table import Table

from pccl.bench.all_reduce import Figures, Setting, measure
from pccl.bench.arithmetic import parse_bytes, show_bytes, show_seconds
from pccl.bench.contributions import WORLD_MAX
from pccl.bench.rank_program import DTYPES
from pccl.collectives.ops import ReduceOp


def _size(ctx: click.Context, param: click.Parameter, value: str) -> int:
    try:
        return parse_bytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


@click.group("bench")
def command() -> None:
    """Measures collectives on this machine, over loopback."""


@command.command("all-reduce")
@click.option(
    "--world", type=click.IntRange(1, WORLD_MAX), default=2, show_default=True, help="Peers."
)
@click.option(
    "--bytes",
    "byte_count",
    callback=_size,
    metavar="SIZE",
    default="64MiB",
    show_default=True,
    help="The tensor's size: 4096, 64KiB, 64MiB.",
)
@click.option("--dtype", type=click.Choice(DTYPES), default="f32", show_default=True)
@click.option(
    "--op",
    type=click.Choice([op.name.lower() for op in ReduceOp]),
    default="sum",
    show_default=True,
)
@click.option(
    "--lanes",
    type=click.IntRange(0, 64),
    default=0,
    help="Connections per pair of peers.  [default: chosen]",
)
@click.option("--out-of-place", is_flag=True, help="Into a second tensor; else in place.")
@click.option(
    "--iterations",
    type=click.IntRange(1, 1_000_000),
    help="How many to time.  [default: about two seconds of them]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def all_reduce(
    world: int,
    byte_count: int,
    dtype: str,
    op: str,
    lanes: int,
    out_of_place: bool,
    iterations: int | None,
    as_json: bool,
) -> int:
    """Times all-reduce over TCP on loopback, after checking a result.

    Starts a coordinator and WORLD peer processes, and ends them.
    """
    setting = Setting(
        world=world,
        byte_count=byte_count,
        dtype=dtype,
        op=op,
        lanes=lanes,
        in_place=not out_of_place,
        iterations=iterations,
    )
    signal.signal(signal.SIGTERM, _interrupt)
    if as_json:
        click.echo(json.dumps(measure(setting).as_document(setting)))
        return 0
    console = Console(highlight=False)
    with Console(stderr=True).status("starting") as status:
        found = measure(setting, status.update)
    show(setting, found, console)
    return 0


def show(setting: Setting, found: Figures, console: Console) -> None:
    """Prints the figures for people."""
    where = "in place" if setting.in_place else "out of place"
    table = Table(
        title=f"all-reduce {setting.op} of {show_bytes(setting.byte_count)} {setting.dtype}, "
        f"{where}, {setting.world} peers over loopback",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
        show_header=False,
    )
    overhead = found.wire_bytes / found.ideal_wire_bytes - 1 if found.ideal_wire_bytes else 0.0
    table.add_row("time, median", f"{show_seconds(found.median_s)} ms")
    table.add_row("time, p99", f"{show_seconds(found.p99_s)} ms")
    table.add_row("algbw", f"{found.algbw:.3f} GB/s")
    table.add_row("busbw", f"{found.busbw:.3f} GB/s")
    table.add_row(
        "wire bytes, all peers",
        f"{show_bytes(round(found.wire_bytes))} per operation ({overhead:+.1%} of the least)",
    )
    table.add_row("CPU", f"{found.cpu_s_per_gb:.3f} s per GB reduced, all peers")
    table.add_row("retries", str(found.retries))
    table.add_row("iterations", f"{found.iterations}, and one result checked on every peer")
    console.print(table)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
