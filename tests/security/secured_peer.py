"""One peer of a secured run as a process: `python secured_peer.py ADDRESS PROGRAM INDEX COUNT`.

Its ticket is in PCCL_TICKET, if there is one.  It listens on a port of its own and has the others
come through a relaying listener, which hears all that is said: PCCL_TEST_PORTS holds a pair
"listen:advertise" for each index.  What it reduces and what it calls its steps can be found again
in any bytes that hold them.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

import numpy as np

import pccl

MARK = 0x01234567  # of int32; sums of a few are exact, and as easy to find
STEP_NAME = "a step by a name that nobody else has heard"
SIZE = 1 << 16


def needles(peers_max: int) -> list[bytes]:
    """What plain bytes of a run would hold: tensors, sums of them, and the step's name."""
    tensors = [np.full(8, MARK * count, "<i4").tobytes() for count in range(1, peers_max + 1)]
    return [*tensors, STEP_NAME.encode()]


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def main() -> int:
    address, _, index, count = sys.argv[1:5]
    own, advertised = os.environ["PCCL_TEST_PORTS"].split(",")[int(index)].split(":")
    asked = threading.Event()

    def read() -> None:
        sys.stdin.readline()
        asked.set()

    threading.Thread(target=read, daemon=True).start()
    with pccl.connect(
        address,
        listen=f"127.0.0.1:{own}",
        advertise=f"127.0.0.1:{advertised}",
        shared_memory=False,
    ) as comm:
        tell(peer=str(comm.peer_id))
        if int(index) < int(count):
            comm.wait_for(int(count), timeout_s=60)
        while True:
            value, end = np.full(SIZE, MARK, np.int32), np.array(asked.is_set())
            with comm.step(STEP_NAME) as step:
                step.all_reduce(value)
                step.all_reduce(end, op="max")
            contributors = len(step.outcome.contributors)
            tell(contributors=contributors, exact=bool((value == MARK * contributors).all()))
            if end:
                break
    return 0


if __name__ == "__main__":
    sys.exit(main())
