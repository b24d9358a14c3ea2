"""One peer, perhaps one that nobody can dial: `hidden_peer.py ADDRESS PROGRAM INDEX COUNT`.

Peers whose index is in PCCL_TEST_HIDDEN connect with reachable=False.  Tells what it saw as JSON
lines; every sum is of powers of two, so it shows who is in it.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np

import pccl

STEPS, SIZE = 30, 70_000


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def trains(address: str, index: int, count: int) -> None:
    """Adds up, step by step, until PCCL_TEST_UNTIL members take part, and then a few times more."""
    hidden = str(index) in os.environ["PCCL_TEST_HIDDEN"].split(",")
    with pccl.connect(address, min_world=2, reachable=not hidden, timeout_s=60) as comm:
        tell(peer=str(comm.peer_id))
        if count > 1:
            comm.wait_for(count)
        while True:
            x = np.full(SIZE, 1 << index, np.int64)
            with comm.step("sum") as step:
                step.all_reduce(x)
            assert (x == x[0]).all()
            tell(sum=int(x[0]))
            if len(step.outcome.contributors) == int(os.environ["PCCL_TEST_UNTIL"]):
                break
        for _ in range(STEPS):
            x = np.full(SIZE, 1 << index, np.int64)
            comm.all_reduce(x)
            tell(last=int(x[0]))


if __name__ == "__main__":
    trains(sys.argv[1], int(sys.argv[3]), int(sys.argv[4]))
