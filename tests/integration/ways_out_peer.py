"""One peer that leaves, belongs to a group, is too slow, or is left with too few others.

`python ways_out_peer.py ADDRESS HOW INDEX COUNT`; HOW is a comma-separated list of the words
sigterm, group=N, slow (as it is told on its standard input), min_world=N, underflow=POLICY and
straggler=SECONDS.  It steps until it is told to end, checks every sum exactly and tells, line by
line, what its steps came to.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

import numpy as np

import pccl


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


class Orders:
    """What the story says on the standard input: end, leave, or how long to sleep in a step."""

    def __init__(self) -> None:
        self.ends = False
        self.leaves = False
        self.sleep_s = 0.0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            match line.split():
                case ["end"]:
                    self.ends = True
                case ["leave"]:
                    self.leaves = True
                case ["sleep", seconds]:
                    self.sleep_s = float(seconds)


def one_step(comm: pccl.Communicator, orders: Orders, group: int) -> bool:
    """Runs a step, tells of it, and says whether everybody ends."""
    x = np.full(1 << 14, group + 1.0, np.float32)
    end = np.array(orders.ends)
    with comm.step() as step:
        if orders.sleep_s:
            seconds, orders.sleep_s = orders.sleep_s, 0.0
            time.sleep(seconds)
        step.all_reduce(x, op="sum")
        step.all_reduce(end, op="max")
    outcome, view = step.outcome, comm.view
    assert (x == (group + 1) * len(outcome.contributors)).all(), (x[:4], outcome)
    tell(
        step=step.number,
        contributors=[peer.hex() for peer in outcome.contributors],
        world=len(view.members) if view.epoch == outcome.epoch else 0,  # 0: it has changed since
        epoch=outcome.epoch,
        retries=outcome.retries,
    )
    return bool(end)


def loop(comm: pccl.Communicator, group: int) -> None:
    orders = Orders()
    while True:
        if orders.leaves and not comm.leaving:
            comm.leave(deadline_s=30.0, reason="the story says so")
            tell(asked=True)
        try:
            if one_step(comm, orders, group):
                return
        except (pccl.Excluded, pccl.WorldTooSmall) as error:
            tell(error=type(error).__name__, text=str(error))
            time.sleep(0.05)
        except pccl.Left:
            tell(left=True)
            raise


def main() -> int:
    address, how, index, count = sys.argv[1:5]
    words = dict(word.partition("=")[::2] for word in how.split(","))
    group = int(words.get("group", 0))
    options: dict[str, Any] = {
        "min_world": int(words["min_world"]) if "min_world" in words else None,
        "on_underflow": words.get("underflow"),
        "straggler": float(words["straggler"]) if "straggler" in words else None,
        "drain_on_sigterm_s": 30.0 if "sigterm" in words else None,
        "peer_group": group,
    }
    try:
        with pccl.connect(address, timeout_s=20, step_timeout_s=60, **options) as comm:
            tell(peer=comm.peer_id.hex(), pid=os.getpid())
            if int(index) < int(count):  # a later index is a newcomer
                comm.wait_for(int(count), timeout_s=30)
            loop(comm, group)
    except pccl.PcclError as error:
        tell(failure=type(error).__name__, text=str(error))
        return 1
    tell(closed=comm.closed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
