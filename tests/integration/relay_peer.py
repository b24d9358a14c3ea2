"""Peers that meet at a relay, which is about to die: `relay_peer.py ADDRESS PROGRAM INDEX COUNT`.

Peers whose index is in PCCL_TEST_HIDDEN connect with reachable=False.  Tells what it saw as JSON
lines, and with each step what this process carries for others.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np

import pccl
from tests.integration.state_kinds import Throttled, tell

STEP_ELEMENTS = 1 << 21  # 16 MiB of int64: a step is long enough to be hit in its middle
SMALL = 1000
STATE_ELEMENTS = 4 << 20  # 32 MiB of f64


def content() -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(1).integers(0, 1 << 30, STATE_ELEMENTS).astype(np.float64)


def one_step(comm: pccl.Communicator, index: int, size: int) -> None:
    """Every sum is of powers of two, so it shows who is in it."""
    x, began_s = np.full(size, 1 << index, np.int64), time.monotonic()
    with comm.step("train") as step:
        step.all_reduce(x)
    stats = comm.session.engine.stats()
    tell(
        sum=int(x[0]) if (x == x[0]).all() else -1,
        took_s=time.monotonic() - began_s,
        members=len(step.outcome.contributors),
        tunnels=stats["tunnels"],
        relayed=stats["relayed_bytes"],
    )


def reachable(index: int) -> bool:
    return str(index) not in os.environ["PCCL_TEST_HIDDEN"].split(",")


def trains(address: str, index: int, count: int) -> None:
    """Large steps, until it is killed."""
    with pccl.connect(
        address, min_world=2, reachable=reachable(index), shared_memory=False, timeout_s=60
    ) as comm:
        comm.wait_for(count)
        while True:
            one_step(comm, index, STEP_ELEMENTS)


def carries(address: str, index: int, count: int) -> None:
    """Small steps without a state."""
    with pccl.connect(address, reachable=reachable(index), timeout_s=60) as comm:
        while True:
            one_step(comm, index, SMALL)
            time.sleep(0.02)


def holds(address: str, index: int, count: int) -> None:
    """The same, and it has the state; it gives that slowly."""
    state = Throttled({"weights": content()}, pace=1.0)
    with pccl.connect(address, state=state, reachable=reachable(index), timeout_s=60) as comm:
        while True:
            one_step(comm, index, SMALL)
            time.sleep(0.02)


def comes(address: str, index: int, count: int) -> None:
    """A newcomer that wants the state, and then takes part."""
    weights = np.zeros(STATE_ELEMENTS)
    state = pccl.SharedState({"weights": weights})
    with pccl.connect(
        address, state=state, reachable=reachable(index), timeout_s=60, step_timeout_s=90
    ) as comm:
        one_step(comm, index, SMALL)
        tell(exact=bool((weights == content()).all()))
        while True:
            one_step(comm, index, SMALL)
            time.sleep(0.02)


if __name__ == "__main__":
    programs = {"trains": trains, "carries": carries, "holds": holds, "comes": comes}
    programs[sys.argv[2]](sys.argv[1], int(sys.argv[3]), int(sys.argv[4]))
