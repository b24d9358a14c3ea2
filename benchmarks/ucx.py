"""Measures lanes through UCX against our own: `python benchmarks/ucx.py`.

All-reduce of float32, in place, between engines on loopback, over TCP lanes and over lanes through
UCX, whose transport is TCP, too, unless UCX_TLS says otherwise; no payload goes through memory in
either.  The processes of both kinds are started and stay, and take turns; the figure is the median
over all turns, as in `secure`.  Its version is printed.

Exit codes: 0 measured, at or above the bar; 1 below it, or a peer failed; 2 asked for wrongly, or
there is no libucp.
"""

from __future__ import annotations

import ctypes
import os
import sys

import click

from benchmarks.machine import describe, load
from benchmarks.secure import Who, measure, plain_peers
from pccl.bench.arithmetic import parse_bytes, show_bytes
from pccl.transport.ucx import MISSING, libraries

BAR = 0.5  # the least speed over UCX's TCP, as a share of that over our own


def ucx_peers(world: int) -> list[Who]:
    return [Who(bytes([rank + 101]) * 16, None, ucx=True) for rank in range(world)]


def ucx_version() -> str:
    """Returns the version of the libucp that peers will load; exits with 2 if there is none."""
    for name in libraries(os.environ, sys.prefix, sys.base_prefix):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.ucp_get_version_string.restype = ctypes.c_char_p
        return f"{library.ucp_get_version_string().decode()} ({name})"
    print(MISSING, file=sys.stderr)
    raise SystemExit(2)


@click.command()
@click.option("--ranks", default="2,4", show_default=True, help="Numbers of peers, with commas.")
@click.option("--bytes", "size", default="64MiB", show_default=True, help="Of the all-reduce.")
@click.option("--turns", type=click.IntRange(1, 1000), default=8, show_default=True)
@click.option("--iterations", type=click.IntRange(1, 1000), default=4, show_default=True)
def main(ranks: str, size: str, turns: int, iterations: int) -> None:
    """Prints medians over TCP and over UCX and their ratio; fails below the bar."""
    try:
        worlds = [int(world) for world in ranks.split(",")]
        count = parse_bytes(size) // 4
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    os.environ.setdefault("UCX_TLS", "tcp,self")
    version = ucx_version()
    about = describe()
    machine = about["machine"]
    print(about["command"])
    print(
        f"{machine['cpus']} x {machine['cpu']}, kernel {machine['kernel']}, commit "
        f"{about['commit']}, load {load():.1f} before"
    )
    print(
        f"UCX {version}, UCX_TLS={os.environ['UCX_TLS']}, all-reduce of {show_bytes(4 * count)}, "
        "float32, exact everywhere"
    )
    missed = False
    for world in worlds:
        own_s, ucx_s = measure(plain_peers(world), ucx_peers(world), count, turns, iterations)
        ratio = own_s / ucx_s
        missed = missed or ratio < BAR
        print(
            f"{world} ranks: our TCP {1e3 * own_s:.1f} ms, UCX {1e3 * ucx_s:.1f} ms, "
            f"{ratio:.2f} of our TCP (bar: {BAR:g}), load {load():.1f} after",
            flush=True,
        )
    if missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
