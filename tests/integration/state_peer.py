"""One peer with shared state: `python state_peer.py ADDRESS PROGRAM INDEX COUNT`.

Tells what it saw as JSON lines.  Contents are integers, so that every sum is exact and a revision's
content is known: element i of revision r is the sum of what r steps have added.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import pccl

SIZE = 3 << 20  # of int32, in one tensor: 12 leaves
STEPS = 40


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def hashed(tensors: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        if isinstance(value, np.ndarray):
            digest.update(value.tobytes())
    return digest.hexdigest()


def content(revision: int, size: int = SIZE) -> Any:
    return (np.arange(size, dtype=np.int64) % 1009 + revision).astype(np.int32)


def fresh(seed: int, size: int = SIZE) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "model": rng.integers(0, 1000, size, dtype=np.int32),
        "moments": {"first": rng.integers(0, 9, 70_001).astype(np.float32), "count": seed},
    }


def flat(tensors: dict[str, Any]) -> dict[str, Any]:
    return {"model": tensors["model"], "first": tensors["moments"]["first"]}


def add(tensors: dict[str, Any], total: Any) -> None:
    tensors["model"][: total.size] += total.astype(np.int32)
    tensors["moments"]["count"] += 1


def train(
    comm: pccl.Communicator, state: pccl.SharedState, steps: int, pause_s: float = 0.0
) -> None:
    """Adds the number of contributors to all elements, step by step; says when a step took long."""
    while state.revision < steps:
        began_s = time.monotonic()
        delta = np.ones(SIZE, np.int32)
        with comm.step("outer") as step:
            step.all_reduce(delta)
        state.advance(step, delta)
        tell(
            revision=state.revision,
            contributors=len(step.outcome.contributors),
            took_s=time.monotonic() - began_s,
        )
        time.sleep(pause_s)


def ends_of(comm: pccl.Communicator, state: pccl.SharedState) -> None:
    tensors = state.tensors
    tell(
        end=hashed(flat(dict(tensors))),
        root=state.root().hex(),
        count=tensors["moments"]["count"],
        ended_at=state.revision,
    )


def trains(address: str, index: int, count: int, replays: bool = True, **more: Any) -> None:
    tensors = fresh(index)
    state = pccl.SharedState(tensors, apply=add, pace=1.0)
    with pccl.connect(address, state=state, min_world=count if count > 1 else None, **more) as comm:
        tell(peer=str(comm.peer_id))
        if count > 1:
            comm.wait_for(count)
        train(comm, state, STEPS, pause_s=0.05)
        ends_of(comm, state)


def founders(address: str, index: int, count: int) -> None:
    trains(address, index, count)


def newcomer(address: str, index: int, count: int) -> None:
    trains(address, 77, 1)


PROGRAMS: dict[str, Callable[[str, int, int], None]] = {
    "founders": founders,
    "newcomer": newcomer,
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[2]](sys.argv[1], int(sys.argv[3]), int(sys.argv[4]))
