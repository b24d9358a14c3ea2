"""Members' step time while a newcomer fetches their state at its pace; a part of `state_sync.py`.

Two members train; a third process fetches the whole state beside the run, again and again, in turns
with times in which it does nothing.  It never comes in: what is measured is what it costs the
others that it fetches.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

import pccl
from pccl.base.clock import Deadline
from pccl.bench.arithmetic import median, quantile
from pccl.membership.service import CoordinatorThread
from pccl.state.joining import Joining

WAIT_S = 120.0
TURN_S = 2.0
COUNT = 1 << 18  # of float32 in each step: 1 MiB
COMPUTE_S = 0.02


def run_member(address: str, size: int, steps: int, pipe: Connection) -> None:
    """Trains; tells when each step began and how long it took."""
    state = pccl.SharedState({"state": np.arange(size // 8, dtype=np.uint64)})
    with pccl.connect(address, min_world=2, state=state, step_timeout_s=WAIT_S) as comm:
        comm.wait_for(2)
        times = []
        gradient = np.ones(COUNT, np.float32)
        for _ in range(steps):
            began_s = time.monotonic()
            time.sleep(COMPUTE_S)
            with comm.step("train") as step:
                step.all_reduce(gradient, op="avg")
            times.append((began_s, time.monotonic() - began_s))
        pipe.send(times)


def run_newcomer(address: str, size: int, pipe: Connection) -> None:
    """Fetches in turns until told to end; tells when it did."""
    content = np.zeros(size // 8, np.uint64)
    state = pccl.SharedState({"state": content})
    spans, byte_count = [], 0
    with pccl.connect(address, step_timeout_s=WAIT_S) as comm:
        while not pipe.poll(TURN_S):
            began_s = time.monotonic()
            try:
                while time.monotonic() < began_s + TURN_S:
                    content.fill(0)
                    Joining(comm.session, state).fetch(Deadline(10 * TURN_S))
                    byte_count += size
            except pccl.DeadlineExceeded:
                break  # the members have trained to their end
            spans.append((began_s, time.monotonic()))
    pipe.send((spans, byte_count))


def paced(size: int, steps: int) -> dict[str, float]:
    """Returns the median and p99 of a step while somebody fetches, against while nobody does."""
    context = multiprocessing.get_context("spawn")
    coordinator = CoordinatorThread()
    coordinator.start()
    pipes: list[Connection] = []
    processes: list[Any] = []
    try:
        for index in range(3):
            ours, theirs = context.Pipe()
            member = (coordinator.address, size, steps, theirs)
            newcomer = (coordinator.address, size, theirs)
            process = (
                context.Process(target=run_newcomer, args=newcomer)
                if index == 2
                else context.Process(target=run_member, args=member)
            )
            process.start()
            pipes.append(ours)
            processes.append(process)
            if index == 1:
                time.sleep(3.0)  # the members are in
        times = pipes[0].recv()
        pipes[2].send("end")
        spans, byte_count = pipes[2].recv()
    finally:
        for process in processes:
            process.join(20)
            if process.is_alive():
                process.kill()
        coordinator.stop()
    fetched_s = sum(b - a for a, b in spans)
    found = figures(times[20:], spans)
    found["fetched_gb_s"] = byte_count / fetched_s / 1e9 if fetched_s else 0.0
    return found


def figures(
    times: Sequence[tuple[float, float]], spans: Sequence[tuple[float, float]]
) -> dict[str, float]:
    """Compares steps (begin, seconds) that begin within one of the spans with those that do not.

    The control compares the latter among themselves, those of every other pause with the rest: what
    it finds is the machine's own unrest, of which the comparison has as much.
    """
    busy: list[float] = []
    pauses: dict[int, list[float]] = {}
    for at, took_s in times:
        if any(a <= at <= b for a, b in spans):
            busy.append(took_s)
        else:
            pauses.setdefault(sum(b < at for _, b in spans), []).append(took_s)
    idle = [took_s for pause in pauses.values() for took_s in pause]
    halves = [[s for n, pause in pauses.items() if n % 2 == half for s in pause] for half in (0, 1)]
    return {
        "steps": len(times),
        "idle_ms": 1e3 * median(idle),
        "busy_ms": 1e3 * median(busy),
        "median_percent": _more(median(busy), median(idle)),
        "p99_percent": _more(quantile(busy, 0.99), quantile(idle, 0.99)),
        "control_median_percent": abs(_more(median(halves[0]), median(halves[1]))),
        "control_p99_percent": abs(_more(quantile(halves[0], 0.99), quantile(halves[1], 0.99))),
    }


def _more(one: float, other: float) -> float:
    return 100 * (one / other - 1)
