"""Quantised all-reduce: how far results are from the truth, and how fast they come on slow links.

    ./dev run python -m benchmarks.quantised errors [--json FILE]
    ./dev run python -m benchmarks.quantised speed [--json FILE]      as root: namespaces, tc

*errors*: relative L2 error of the average of N contributions, by this library's codecs through a
real all-reduce of N processes, beside the same average by PCCL 1.0's min-max rule, derived again
from its definition: q = trunc((x - min) / (max - min) * (2^b - 1)), the range that of a whole
chunk, around a ring in which every hop quantises its partial sum anew.

*speed*: 64 MiB of f32 among four hosts, each a network namespace with a link of 200 Mbit/s (a
token bucket); the plain and the quantised all-reduce take turns, and the median over all turns of
the slowest rank's time counts.  Every result is checked: the average of equal contributions that
lie on the codec's grid is that contribution, to the bit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import pccl
from benchmarks import machine
from benchmarks.slow_links import WAIT_S, Peers, slow_links
from pccl.membership.service import CoordinatorThread

MODULE = "benchmarks.quantised"
KINDS = ("int8", "int4", "fp8")
BARS = {"int8": 3.5, "int4": 6.5}
DATA = ("normal", "heavy-tailed", "all-negative")
COUNT = 1 << 20


def contribution(shape: str, rank: int) -> Any:
    """Returns f32[COUNT]; heavy tails are Student's t with two degrees of freedom."""
    rng = np.random.default_rng(1000 * DATA.index(shape) + rank)
    match shape:
        case "normal":
            array = rng.standard_normal(COUNT)
        case "heavy-tailed":
            array = rng.standard_t(2, COUNT)
        case _:
            array = -5 - rng.standard_normal(COUNT)
    return array.astype(np.float32)


def min_max(array: Any, bits: int) -> Any:
    """What an array is after PCCL 1.0's quantisation and back."""
    low, high = array.min(), array.max()
    levels = np.float32(2**bits - 1)
    if high == low:
        return array.copy()
    return np.trunc((array - low) / (high - low) * levels) / levels * (high - low) + low


def min_max_ring(inputs: list[Any], bits: int) -> Any:
    """Their average around a ring: chunk c starts at rank c + 1 and is quantised at every hop."""
    world = len(inputs)
    parts = [np.array_split(array, world) for array in inputs]
    results = []
    for chunk in range(world):
        partial = parts[(chunk + 1) % world][chunk]
        for hop in range(2, world + 1):
            partial = min_max(partial, bits) + parts[(chunk + hop) % world][chunk]
        results.append(min_max(partial, bits))
    return np.concatenate(results) / world


def relative(result: Any, exact: Any) -> float:
    return float(np.linalg.norm(result - exact) / np.linalg.norm(exact))


def peer(address: str, program: str, rank: int, world: int) -> None:
    """One process of a measurement: reads a JSON job a line, answers with a JSON line."""
    options: dict[str, Any] = {"step_timeout_s": WAIT_S, "insecure": program == "speed"}
    with pccl.connect(address, timeout_s=WAIT_S, min_world=world, **options) as comm:
        comm.wait_for(world, timeout_s=WAIT_S)
        for line in sys.stdin:
            job = json.loads(line)
            answer = (one_error if program == "errors" else one_time)(comm, job, rank, world)
            print(json.dumps(answer), flush=True)


def one_error(comm: pccl.Communicator, job: dict[str, Any], rank: int, world: int) -> Any:
    array = contribution(job["data"], rank)
    codec = pccl.Codec(job["codec"], stochastic=job["stochastic"])
    comm.all_reduce(array, "avg", codec=codec)
    if rank:
        return None
    exact = np.mean([contribution(job["data"], r) for r in range(world)], axis=0, dtype="f8")
    return relative(array, exact)


def one_time(comm: pccl.Communicator, job: dict[str, Any], rank: int, world: int) -> Any:
    limit = 7 if job["codec"] == "int4" else 127
    grid = ((np.arange(job["count"]) * 7) % (2 * limit + 1) - limit).astype(np.float32)
    grid[::256] = limit
    array = grid.copy()
    comm.all_reduce(np.zeros(1))  # all begin together
    begun_s = time.perf_counter()
    outcome = comm.all_reduce(array, "avg", codec=job["codec"], algorithm="direct")
    taken_s = time.perf_counter() - begun_s
    if job["codec"] != "fp8":
        assert (array == grid).all(), "a wrong result"
    return {"s": taken_s, "wire_bytes": outcome.wire_bytes}


def measure_errors(world: int) -> list[dict[str, Any]]:
    coordinator = CoordinatorThread()
    coordinator.start()
    peers = Peers(MODULE, ["errors", coordinator.address], [[]] * world)
    rows = []
    try:
        for data in DATA:
            row: dict[str, Any] = {"data": data, "world": world}
            inputs = [contribution(data, rank) for rank in range(world)]
            exact = np.mean(inputs, axis=0, dtype="f8")
            for kind in KINDS:
                for stochastic in (False, True):
                    job = {"data": data, "codec": kind, "stochastic": stochastic}
                    row[kind + (" stochastic" if stochastic else "")] = peers.run(job)[0]
            for bits in (8, 4):
                row[f"min-max {bits}"] = relative(min_max_ring(inputs, bits), exact)
            rows.append(row)
    finally:
        peers.end()
        coordinator.stop()
    return rows


def measure_speed(world: int, turns: int, rate_mbit: float, count: int) -> dict[str, Any]:
    with slow_links(world, rate_mbit) as hosts:
        return _turns(hosts.start(MODULE, range(world), "speed"), turns, count)


def _turns(peers: Peers, turns: int, count: int) -> dict[str, Any]:
    names: list[str | None] = [None, *KINDS]
    times: dict[str, list[float]] = {str(name): [] for name in names}
    wire: dict[str, int] = {}
    for turn in range(turns + 1):
        for name in names:
            answers = peers.run({"codec": name, "count": count})
            wire[str(name)] = max(answer["wire_bytes"] for answer in answers)
            if turn:  # the first opens windows and touches memory
                times[str(name)].append(max(answer["s"] for answer in answers))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "seconds": medians,
        "all seconds": times,
        "wire bytes of the busiest": wire,
        "faster": {kind: medians["None"] / medians[kind] for kind in KINDS},
        "fewer bytes": {kind: wire["None"] / wire[kind] for kind in KINDS},
    }


def show_errors(rows: list[dict[str, Any]]) -> None:
    columns = [name for name in rows[0] if name not in ("data", "world")]
    print("| data | N | " + " | ".join(columns) + " |")
    print("|---|---|" + "---|" * len(columns))
    for row in rows:
        cells = " | ".join(f"{row[name]:.2e}" for name in columns)
        print(f"| {row['data']} | {row['world']} | {cells} |")


def show_speed(found: dict[str, Any]) -> bool:
    print("| codec | s | times as fast | times fewer bytes | bar |\n|---|---|---|---|---|")
    met = True
    for name, seconds in found["seconds"].items():
        if name == "None":
            print(f"| none | {seconds:.3f} | 1 | 1 | |")
            continue
        faster, bar = found["faster"][name], BARS.get(name, 0.0)
        met = met and faster >= bar
        verdict = "" if not bar else f"{bar:g}: {'met' if faster >= bar else 'MISSED'}"
        print(f"| {name} | {seconds:.3f} | {faster:.2f} | {found['fewer bytes'][name]:.2f} "
              f"| {verdict} |")  # fmt: skip
    return met


def main() -> int:
    if sys.argv[1:2] == ["--peer"]:
        program, address, rank, world = sys.argv[2:6]
        peer(address, program, int(rank), int(world))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("errors", "speed"))
    parser.add_argument("--world", type=int, nargs="+", default=None, help="peers (2 4 8; 4)")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rate-mbit", type=float, default=200.0)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--strict", action="store_true", help="exit 1 if a bar is missed")
    options = parser.parse_args()
    report: dict[str, Any] = {**machine.describe(), "load before": machine.load()}
    print(f"commit {report['commit']}, load {report['load before']:.1f}, {report['command']}")
    met = True
    if options.what == "errors":
        rows = [row for world in options.world or (2, 4, 8) for row in measure_errors(world)]
        report["errors"] = rows
        show_errors(rows)
    else:
        world = (options.world or [4])[0]
        found = measure_speed(world, options.turns, options.rate_mbit, options.mib << 18)
        report["speed"] = found
        met = show_speed(found)
    report["load after"] = machine.load()
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if met or not options.strict else 1


if __name__ == "__main__":
    sys.exit(main())
