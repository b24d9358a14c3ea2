"""One peer of the fault campaign: `python peer.py ADDRESS HISTORY MIN_WORLD COUNT TRANSPORT`.

Waits for a line on its standard input, connects, and reduces until it is told to stop: by a second
line all peers end after the same step, by SIGTERM this one leaves.  Every element of every result
is checked against the declared contributors.  What happens is appended to HISTORY as JSON lines,
unbuffered, so that the last words of a killed process survive it.  SIGUSR1 prints all stacks.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # behind an installed pccl

import numpy as np

import pccl
from tests.faults import values
from tests.faults.notes import Note

ENDED, FAILED, WRONG, ORPHANED = 0, 3, 4, 5  # exit codes
CONNECT_S = 30.0
STEP_S = 120.0


class Orders:
    """What the campaign wants of this process."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.leave = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: self.leave.set())
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        if not sys.stdin.readline():
            os._exit(ORPHANED)
        self.end.set()


def reduce(comm: pccl.Communicator, count: int, note: Note, orders: Orders) -> int:
    """Steps until told to stop; returns an exit code."""
    me = bytes(comm.peer_id)
    while not orders.leave.is_set():
        end = np.array(orders.end.is_set())
        with comm.step("train") as step:
            x = values.contribution(me, step.number, count)
            step.all_reduce(x, op="sum")
            step.all_reduce(end, op="max")
        at = time.monotonic()
        outcome = step.outcome
        wanted = values.expected_sum(outcome.contributors, step.number, count)
        wrong = int(np.count_nonzero(x != wanted))
        note(
            at=at,
            step=step.number,
            epoch=outcome.epoch,
            contributors=[peer.hex() for peer in outcome.contributors],
            digest=values.digest(x),
            retries=outcome.retries,
            wrong=wrong,
        )
        if wrong:
            return WRONG
        if end:
            break
    return ENDED


def main() -> int:
    address, history, min_world, count = sys.argv[1:5]
    over_ucx = sys.argv[5] == "ucx"
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    note = Note.into(history)
    values.contribution(bytes(16), 0, int(count))  # makes the table
    note(ready=True)
    if not sys.stdin.readline():
        return ENDED
    orders = Orders()
    note(connecting=True)
    try:
        with pccl.connect(
            address,
            min_world=int(min_world),
            timeout_s=CONNECT_S,
            step_timeout_s=STEP_S,
            transport="ucx" if over_ucx else "tcp",
            shared_memory=not over_ucx,  # all of it goes by UCX then
        ) as comm:
            note(admitted=True, peer=comm.peer_id.hex())
            code = reduce(comm, int(count), note, orders)
    except pccl.PcclError as error:
        note(end=type(error).__name__, text=str(error))
        return FAILED
    note(end="ended", text="")
    return code


if __name__ == "__main__":
    sys.exit(main())
