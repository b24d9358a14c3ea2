"""Members of a run that goes on, and newcomers whose script is another one.

`python newcomer_peer.py ADDRESS PROGRAM INDEX COUNT`.  Contributions follow from peer ids, so that
every member computes each sum anew from the contributors; a counter shows that no step is lost.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import pccl
from tests.integration.peer_program import tell

SIZE = 1000
STEP_TIMEOUT_S = 60.0
KINDS = ("dtype", "size", "op", "collective", "nothing", "shape")


def values_of(peer: bytes) -> Any:
    return np.arange(SIZE, dtype=np.int64) % 7 + int.from_bytes(bytes(peer)[:3], "little")


def post(step: pccl.Step, kind: str, x: Any, own: pccl.Peer) -> None:
    """What the members call is `fits`; all else is another script."""
    match kind:
        case "fits":
            step.all_reduce(x)
        case "dtype":  # of as many bytes
            step.all_reduce(x.view(np.float64))
        case "size":
            step.all_reduce(x[:-1])
        case "op":
            step.all_reduce(x, op="max")
        case "collective":
            step.broadcast(x, own)
        case "shape":
            step.all_reduce(x.reshape(10, SIZE // 10))
        case "nothing":
            pass
        case _:
            raise ValueError(kind)


def called(kind: str, since: int) -> str:
    """What a member calls that has taken part in so many steps."""
    if kind != "changes":
        return kind
    return "op" if since > 1 else "fits"


def await_line(asked: threading.Event) -> None:
    sys.stdin.readline()
    asked.set()


def member(comm: pccl.Communicator, index: int, count: int, kind: str = "fits") -> None:
    """Reduces until somebody is asked to end; an error is told, and is not expected."""
    since = 0
    asked = threading.Event()
    threading.Thread(target=await_line, args=[asked], daemon=True).start()
    tell(peer=comm.peer_id.hex())
    history, done, retries, told = hashlib.sha256(), 0, 0, 0
    try:
        while True:
            x, counter = values_of(comm.peer_id), np.array([done, asked.is_set()])
            with comm.step("train", STEP_TIMEOUT_S) as step:
                post(step, called(kind, since), x, comm.peer_id)
                if kind != "nothing":
                    step.all_reduce(counter, op="max")
            outcome = step.outcome
            wanted = sum(values_of(peer) for peer in outcome.contributors)
            assert (x == wanted).all(), (x[:3], wanted[:3], outcome)
            assert done in (0, counter[0]), (done, counter)  # a newcomer takes over the count
            done, since = int(counter[0]) + 1, since + 1
            retries += outcome.retries
            history.update(repr((done, sorted(outcome.contributors))).encode() + x.tobytes())
            if counter[1]:
                break
            if len(outcome.contributors) != told:
                told = len(outcome.contributors)
                tell(members=told)
            time.sleep(0.002)
    except pccl.PcclError as error:
        kept = bool((x == values_of(comm.peer_id)).all())
        tell(error=type(error).__name__, text=str(error), kept=kept)
        return
    tell(steps=done, history=history.hexdigest(), retries=retries)


def dies(comm: pccl.Communicator, index: int, count: int) -> None:
    """Posts what does not fit, and is gone at once."""
    tell(peer=comm.peer_id.hex())
    with comm.step("train", STEP_TIMEOUT_S) as step:
        post(step, "dtype", values_of(comm.peer_id), comm.peer_id)
        tell(gone=True)
        os.kill(os.getpid(), signal.SIGKILL)


def stops(comm: pccl.Communicator, index: int, count: int) -> None:
    """Posts what does not fit, and stands still: it reports to nobody."""
    tell(peer=comm.peer_id.hex())
    with comm.step("train", STEP_TIMEOUT_S) as step:
        post(step, "dtype", values_of(comm.peer_id), comm.peer_id)
        tell(gone=True)
        os.kill(os.getpid(), signal.SIGSTOP)


def main(argv: Sequence[str]) -> None:
    address, program, index, count = argv[0], argv[1], int(argv[2]), int(argv[3])
    logging.getLogger("pccl").setLevel(logging.ERROR)  # all that is printed is a fact
    with pccl.connect(address, min_world=count) as comm:
        if program == "member":
            member(comm, index, count)
        elif program in (*KINDS, "fits", "changes"):
            member(comm, index, count, program)
        else:
            {"dies": dies, "stops": stops}[program](comm, index, count)


if __name__ == "__main__":
    main(sys.argv[1:])
