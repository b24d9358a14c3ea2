"""One peer, perhaps behind a NAT: `nat_peer.py ADDRESS PROGRAM INDEX COUNT`, PROGRAM `public` or
`behind`; ADDRESS "" is the ticket's.  It trains a state with the others until PCCL_TEST_UNTIL
members take part, and then a few steps more; what the state and the sums hold can be found in any
bytes that hold them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from typing import Any

import numpy as np

import pccl

MARK = 0x01234567  # of int64: sums of a few are exact
SIZE = 100_000
STEPS_MORE = 5


def needles(members_max: int) -> list[bytes]:
    """What plain bytes hold: contributions, sums, and the state as it is at first."""
    found = [np.full(8, MARK * count, "<i8").tobytes() for count in range(1, members_max + 1)]
    return [*found, first_state()[1000:1008].tobytes()]


def first_state() -> np.ndarray:
    """The upper half never changes, so a newcomer's bytes are known."""
    return np.random.default_rng(3).integers(0, 1 << 62, SIZE)


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def main() -> None:
    address, program, index, count = sys.argv[1:5]
    founds = int(count) > 1
    weights = first_state() if founds else np.zeros(SIZE, np.int64)
    state = pccl.SharedState({"weights": weights})
    with pccl.connect(
        address or None,
        min_world=2,
        reachable=program == "public",
        advertise=os.environ.get("PCCL_TEST_ADVERTISE"),
        timeout_s=60,
        insecure="PCCL_TICKET" not in os.environ,
        state=state,
    ) as comm:
        tell(peer=str(comm.peer_id), index=int(index))
        if founds:
            comm.wait_for(int(count), timeout_s=60)
        more = STEPS_MORE
        while more:
            x = np.full(SIZE // 2, MARK, np.int64)
            with comm.step("train") as step:
                step.all_reduce(x)
            members = len(step.outcome.contributors)
            with state.update(step):
                weights[SIZE // 2 :] += x
            tell(members=members, exact=bool((x == MARK * members).all()))
            more -= members == int(os.environ["PCCL_TEST_UNTIL"])
        tell(weights=hashlib.sha256(weights.tobytes()).hexdigest(), revision=state.revision)
        comm.barrier()


if __name__ == "__main__":
    main()
