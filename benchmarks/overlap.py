"""How much of the communication time delayed DiLoCo hides on a slow link, by the time of a step.

    ./dev run python -m benchmarks.overlap [--json FILE]      as root: namespaces, tc

Four hosts, each with an uplink of 50 Mbit/s (a token bucket), train a model of 1 Mi parameters: in
an inner step a batch goes through it forward and back, and then the program sleeps, as one that
waits for its accelerator does.  In turns they

    none      take inner steps and exchange nothing
    sync      take an outer step every 10 inner steps, `DiLoCo`: everybody waits for it
    async     the same with `AsyncDiLoCo`: the reduction travels during the next 10 inner steps

An interval is 10 inner steps and what comes with them; its time is that of the slowest host, a
turn's figure the mean of its intervals but the first, in which there is nothing to wait for yet,
and what counts is the median of the turns.  Communication time is sync − none, so it has the
arithmetic of the outer step in it; what is hidden of it is

    1 − (async − none) / (sync − none)

All hosts' final states are compared, bit for bit, in every turn of the two that communicate.
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
from benchmarks.slow_links import WAIT_S, Hosts, slow_links

BAR = 0.9
CASES = ("none", "sync", "async")
WIDTH = 1024  # the model is one matrix of this side
ROWS = 8
INNER_STEPS = 10


def peer(address: str, world: int) -> None:
    """One host's process: reads a JSON job a line, answers with a JSON line."""
    import torch

    torch.set_num_threads(1)
    with pccl.connect(address, min_world=world, step_timeout_s=WAIT_S, insecure=True) as comm:
        comm.wait_for(world, timeout_s=WAIT_S)
        for line in sys.stdin:
            print(json.dumps(train(comm, json.loads(line))), flush=True)


def train(comm: pccl.Communicator, job: dict[str, Any]) -> dict[str, Any]:
    import torch

    torch.manual_seed(job["turn"])
    model = torch.nn.Linear(WIDTH, WIDTH, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    batches = torch.randn(INNER_STEPS, ROWS, WIDTH) + comm.rank
    outer = make_outer(job["case"], comm, model)
    wire_bytes, times, waits = 0, [], []
    comm.all_reduce(np.zeros(1))  # all begin together
    for _ in range(job["intervals"]):
        began_s = time.perf_counter()
        for batch in batches:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
            time.sleep(job["sleep_s"])
            ended_s = time.perf_counter()
            report = outer.step() if outer is not None else None
            wire_bytes += report.wire_bytes if report is not None else 0
        times.append(time.perf_counter() - began_s)
        waits.append(time.perf_counter() - ended_s)
    if outer is None:
        return {"s": times, "boundary_s": waits, "wire_bytes": 0, "outer_steps": 0, "digest": ""}
    last = outer.finish()
    outer.verify()
    wire_bytes += last.wire_bytes if last is not None else 0
    return {
        "s": times,
        "boundary_s": waits,
        "wire_bytes": wire_bytes,
        "outer_steps": outer.outer_step,
        "digest": f"{outer.digest():016x}",
    }


def make_outer(case: str, comm: pccl.Communicator, model: Any) -> Any:
    from pccl import diloco

    if case == "none":
        return None
    method = diloco.DiLoCo if case == "sync" else diloco.AsyncDiLoCo
    return method(comm, model, inner_steps=INNER_STEPS)


def measure(hosts: Hosts, world: int, turns: int, intervals: int, sleep_s: float) -> dict[str, Any]:
    peers = hosts.start("benchmarks.overlap", range(world))
    times: dict[str, list[float]] = {case: [] for case in CASES}
    boundaries: dict[str, list[float]] = {case: [] for case in CASES}
    wire: dict[str, float] = {}
    for turn in range(turns):
        for case in CASES:
            job = {"case": case, "turn": turn, "intervals": intervals, "sleep_s": sleep_s}
            answers = peers.run(job)
            assert len({answer["digest"] for answer in answers}) == 1, f"{case}: states differ"
            outer_steps = answers[0]["outer_steps"]
            assert outer_steps == (0 if case == "none" else intervals), f"{case}: {outer_steps}"
            slowest = [max(each) for each in zip(*(a["s"] for a in answers), strict=True)]
            times[case].append(statistics.fmean(slowest[1:]))
            boundaries[case] += [s for answer in answers for s in answer["boundary_s"][1:]]
            wire[case] = max(a["wire_bytes"] for a in answers) / max(1, outer_steps)
    none, sync, delayed = (statistics.median(times[case]) for case in CASES)
    return {
        "seconds of an interval": {"none": none, "sync": sync, "async": delayed},
        "all seconds": times,
        "seconds in the call at an interval's end": {
            case: statistics.median(boundaries[case]) for case in CASES
        },
        "communication s": sync - none,
        "hidden": hidden(none, sync, delayed),
        "hidden in each turn": [hidden(*each) for each in zip(*times.values(), strict=True)],
        "wire bytes of the busiest, an outer step": wire,
    }


def hidden(none_s: float, sync_s: float, async_s: float) -> float:
    """Returns the share of the communication time that costs no time."""
    return 1.0 - (async_s - none_s) / (sync_s - none_s)


def main() -> int:
    if sys.argv[1:2] == ["--peer"]:
        address, _, world = sys.argv[2:]
        peer(address, int(world))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--world", type=int, default=4)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--intervals", type=int, default=5, help="of each turn, from 2 on")
    parser.add_argument("--sleep-s", type=float, default=0.15, help="in each inner step")
    parser.add_argument("--rate-mbit", type=float, default=50.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--strict", action="store_true", help="exit 1 if the bar is missed")
    options = parser.parse_args()
    report: dict[str, Any] = {**machine.describe(), "load before": machine.load()}
    print(f"commit {report['commit']}, load {report['load before']:.1f}, {report['command']}")
    with slow_links(options.world, options.rate_mbit) as hosts:
        found = measure(hosts, options.world, options.turns, options.intervals, options.sleep_s)
    report["overlap"] = found
    report["load after"] = machine.load()
    print("| | an interval, s | of it at its end, in `outer.step` | MB sent by a host |")
    print("|---|---|---|---|")
    for case, seconds in found["seconds of an interval"].items():
        sent = found["wire bytes of the busiest, an outer step"][case] / 1e6
        waited = found["seconds in the call at an interval's end"][case]
        print(f"| {case} | {seconds:.3f} | {waited:.3f} | {sent:.2f} |")
    met = found["hidden"] >= BAR
    each = ", ".join(f"{100 * part:.1f}" for part in found["hidden in each turn"])
    print(
        f"\nhidden: {100 * found['hidden']:.1f} % of {found['communication s']:.3f} s (turns: "
        f"{each}); bar {100 * BAR:g} %: {'met' if met else 'MISSED'}"
    )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if met or not options.strict else 1


if __name__ == "__main__":
    sys.exit(main())
