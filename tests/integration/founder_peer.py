"""One founder of a shared state: `python founder_peer.py ADDRESS PROGRAM INDEX COUNT`.

The last one comes with the highest revision, so it is elected; it says so once somebody asks it for
its state, and then takes its time.  Tells what it saw as JSON lines.
"""

from __future__ import annotations

import sys
import time

import numpy as np

import pccl
from pccl.state.kept import Pin
from tests.integration.state_kinds import tell
from tests.integration.state_peer import fresh, hashed


class Asked(pccl.SharedState):
    """Says that it was asked, and is slow to answer."""

    def pin(self, *, precious: bool = False) -> Pin:
        tell(asked=True)
        time.sleep(0.5)
        return super().pin(precious=precious)


def founds(address: str, index: int, count: int) -> None:
    last = index == count - 1
    state = (Asked if last else pccl.SharedState)(fresh(index))
    if last:
        state.restored(7, 1)
    with pccl.connect(address, min_world=2, timeout_s=60) as comm:
        comm.wait_for(count)
        comm.sync(state, timeout_s=60)
        found = comm.all_reduce(np.ones(3))
        tell(end=hashed(state.tensors), members=len(found.contributors))


if __name__ == "__main__":
    {"founds": founds}[sys.argv[2]](sys.argv[1], int(sys.argv[3]), int(sys.argv[4]))
