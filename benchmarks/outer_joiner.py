"""Measures what a joiner costs the members: `python -m benchmarks.outer_joiner`.

    fetched   it fetches parameters and outer momentum beside the run, as `pccl.diloco` does
    sent      members send it all in one step, as where it cannot be fetched (here: a program with a
              state of its own)

Two members train with DiLoCo on loopback, a third comes in.  What is shown is the members' longest
call of `outer.step` while it does, beside that of the outer steps before.  Medians of the rounds,
in which both take turns.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import click
import numpy as np
import torch

import pccl
from benchmarks.machine import describe
from pccl.bench.arithmetic import median, parse_bytes, show_bytes
from pccl.diloco import DiLoCo
from pccl.membership.service import CoordinatorThread

WAIT_S = 120.0
INNER_STEPS = 4
INNER_S = 0.05
AFTER = 3  # outer steps that members still take when the joiner is in
FIRST = 2  # outer steps that are not measured


def run_peer(address: str, size: int, way: str, founders: int, pipe: Connection) -> None:
    """Tells of each call of `step` that ended with a reduction: seconds, and contributors."""
    torch.set_num_threads(1)
    own = pccl.SharedState({"none": np.zeros(1)}) if way == "sent" else None
    model = {"weight": torch.zeros(size // 8)}  # and as much outer momentum
    with pccl.connect(address, state=own, step_timeout_s=WAIT_S) as comm:
        if founders:
            comm.wait_for(founders)
        outer = DiLoCo(comm, model, inner_steps=INNER_STEPS)
        more = AFTER
        while more:
            time.sleep(INNER_S)
            model["weight"].sub_(1.0)
            began_s = time.perf_counter()
            report = outer.step(tokens=1)
            if report is not None:
                count = len(report.contributors)
                pipe.send((time.perf_counter() - began_s, count))
                more -= count == 3
        outer.verify()


def measure(size: int, way: str) -> tuple[float, float]:
    """Returns the members' longest step before the joiner, and while it comes in."""
    context = multiprocessing.get_context("spawn")
    coordinator = CoordinatorThread()
    coordinator.start()
    peers = []
    try:

        def start(founders: int) -> Connection:
            ours, theirs = context.Pipe()
            arguments = (coordinator.address, size, way, founders, theirs)
            process = context.Process(target=run_peer, args=arguments)
            process.start()
            theirs.close()
            peers.append(process)
            return ours

        members = [start(2), start(2)]
        before = [_hear(member) for _ in range(FIRST + 8) for member in members]
        joiner = start(0)
        during = [step for member in members for step in _rest(member)]
        assert any(count == 3 for _, count in during)
        _rest(joiner)
        return max(s for s, _ in before[2 * FIRST :]), max(s for s, _ in during)
    finally:
        for process in peers:
            process.join(WAIT_S)
            process.kill()
        coordinator.stop()


def _hear(pipe: Connection) -> Any:
    if not pipe.poll(WAIT_S):
        raise TimeoutError("a peer says nothing")
    return pipe.recv()


def _rest(pipe: Connection) -> list[Any]:
    told = []
    while True:
        try:
            told.append(_hear(pipe))
        except EOFError:
            return told


@click.command(help=__doc__, context_settings={"max_content_width": 100})
@click.option("--bytes", "size_text", default="128MiB", show_default=True, help="of the state")
@click.option("--rounds", default=3, show_default=True)
def main(size_text: str, rounds: int) -> None:
    size = parse_bytes(size_text)
    click.echo(json.dumps(describe()))
    found: dict[str, list[tuple[float, float]]] = {"fetched": [], "sent": []}
    for _ in range(rounds):
        for way, figures in found.items():
            figures.append(measure(size, way))
    for way, figures in found.items():
        before, during = (median([figure[i] for figure in figures]) for i in (0, 1))
        click.echo(
            f"{show_bytes(size)} {way}: longest step {before * 1e3:.0f} ms before, "
            f"{during * 1e3:.0f} ms while a joiner comes in (+ {(during - before) * 1e3:.0f} ms)"
        )


if __name__ == "__main__":
    sys.exit(main())
