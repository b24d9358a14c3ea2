"""One peer that misuses the library: `python bad_input_peer.py ADDRESS PROGRAM INDEX COUNT`.

Tells what it saw as JSON lines on its standard output; the last line is {"done": true}, so that an
end by anybody else's hand shows.  Nothing else may appear there or on the standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import pccl

MISMATCHES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "size": ({"size": 4}, {"size": 5}),
    "large size": ({"size": 1 << 18}, {"size": 1 << 20}),
    "dtype": ({"dtype": "int64"}, {"dtype": "float32"}),
    "same bytes": ({"dtype": "int32"}, {"dtype": "float32"}),
    "large dtype": ({"dtype": "float32", "size": 1 << 20}, {"dtype": "int32", "size": 1 << 20}),
    "op": ({"op": "max"}, {"op": "sum"}),
    "tag": ({"tag": 7}, {"tag": 8}),
    "algorithm": ({"algorithm": "direct"}, {"algorithm": "ring"}),
}
"""What the first peer posts, and what the others do; the rest is as in `post_mismatch`."""


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def connected(address: str) -> pccl.Communicator:
    return pccl.connect(address, timeout_s=20, step_timeout_s=60)


def together(comm: pccl.Communicator, count: int) -> None:
    """Tells who this is when all are in."""
    tell(peer=comm.peer_id.hex(), pid=os.getpid())
    comm.wait_for(count, timeout_s=30)
    assert len(comm.all_reduce(np.ones(1)).contributors) == count


def works(comm: pccl.Communicator, count: int) -> None:
    """The communicator is as good as new."""
    x = np.arange(70_000.0)
    assert len(comm.all_reduce(x).contributors) == count
    assert (x == np.arange(70_000.0) * count).all()


def post_mismatch(comm: pccl.Communicator, kind: str, index: int, alone: bool) -> None:
    chosen: dict[str, Any] = {"size": 4, "dtype": "float32", "op": "sum"}
    chosen |= MISMATCHES[kind][min(index, 1)]
    size, dtype = chosen.pop("size"), chosen.pop("dtype")
    x = np.full(size, 3, dtype)
    agreed = np.full(1000, 3.0)
    try:
        if alone:
            comm.all_reduce(x, **chosen)
        else:
            with comm.step() as step:
                step.all_reduce(agreed, tag=100)
                step.all_reduce(x, **chosen)
    except pccl.DescriptorMismatch as error:
        kept = bool((x == 3).all() and (agreed == 3).all())
        tell(kind=kind, error=type(error).__name__, text=str(error), kept=kept)
    else:
        tell(kind=kind, error=None)


def mismatch(address: str, index: int, count: int) -> None:
    """The first peer posts something else, in every way; after each, a step that works."""
    with connected(address) as comm:
        together(comm, count)
        for kind in MISMATCHES:
            post_mismatch(comm, kind, index, alone=False)
            works(comm, count)


def lonely_mismatch(address: str, index: int, count: int) -> None:
    """As `mismatch`, by stand-alone operations; these have no tags."""
    with connected(address) as comm:
        together(comm, count)
        for kind in MISMATCHES:
            if kind != "tag":
                post_mismatch(comm, kind, index, alone=True)
                works(comm, count)


def missing(address: str, index: int, count: int) -> None:
    """The first peer posts one operation fewer than the others."""
    with connected(address) as comm:
        together(comm, count)
        x = np.full(4, 3.0)
        try:
            with comm.step() as step:
                if index:
                    step.all_reduce(x)
        except pccl.DescriptorMismatch as error:
            tell(kind="missing", error="DescriptorMismatch", text=str(error), kept=bool(x[0] == 3))
        works(comm, count)


def train(address: str, index: int, count: int) -> None:
    """Steps until somebody is asked to end, and tells what is counted."""
    asked = threading.Event()

    def read() -> None:
        sys.stdin.readline()
        asked.set()

    threading.Thread(target=read, daemon=True).start()
    with connected(address) as comm:
        admitted = comm._session.agent.standing.admitted
        assert admitted is not None
        tell(
            peer=comm.peer_id.hex(),
            port=comm._session.engine.port,
            run_id=admitted.run_id.hex(),
            secret=admitted.secret.hex(),
            incarnation=admitted.incarnation,
        )
        if index < count:
            comm.wait_for(count, timeout_s=30)
        steps, retries = 0, 0
        while True:
            x, end = np.ones(1 << 14, np.float32), np.array(asked.is_set())
            with comm.step() as step:
                step.all_reduce(x)
                step.all_reduce(end, op="max")
            assert (x == len(step.outcome.contributors)).all()
            steps, retries = steps + 1, retries + step.outcome.retries
            if steps % 20 == 1 or end:
                stats = comm._session.engine.stats()
                tell(
                    steps=steps,
                    retries=retries,
                    contributors=len(step.outcome.contributors),
                    dropped=stats["connections_dropped"] + stats["lanes_refused"],
                )
            if end:
                return
            time.sleep(0.005)  # leaves the processors to those that attack


def fork(address: str, index: int, count: int) -> None:
    """Every peer forks; the child may use nothing, end as it likes, and harms nobody."""
    with connected(address) as comm:
        together(comm, count)
        for ending in ("exit", "_exit", "close"):
            child = os.fork()
            if child == 0:
                in_child(comm, ending)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0, (ending, status)
            works(comm, count)


def in_child(comm: pccl.Communicator, ending: str) -> None:
    refused = 0
    for use in (
        lambda: comm.all_reduce(np.ones(4)),
        lambda: comm.step().__enter__(),
        lambda: comm.wait_for(2, timeout_s=1),
        lambda: comm.rank,
        lambda: comm.view,
    ):
        try:
            use()
        except pccl.Forked:
            refused += 1
    code = 0 if refused == 5 else 1
    if ending == "_exit":
        os._exit(code)
    if ending == "close":
        comm.close()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 # the parent's words are the parent's
    sys.exit(code)  # with all that the interpreter does at its end


def wait_and_be_interrupted(address: str, index: int, count: int) -> None:
    """The first peer waits in a way of its own for what never comes, until Ctrl-C."""
    form = os.environ["PCCL_TEST_WAIT"]
    comm = connected(address)
    together(comm, count)
    if index:
        tell(ready=True)
        sys.stdin.readline()
        assert len(comm.all_reduce(np.ones(4), op="max").contributors) == count - 1
        comm.close()
        return
    tell(ready=True)
    try:
        WAITS[form](comm)
    except KeyboardInterrupt:
        # Asyncio and wait_for leave the communicator to the program; it closes without delay.
        comm.close()
        tell(error="KeyboardInterrupt", closed=comm.closed)


def wait_in_step(comm: pccl.Communicator) -> None:
    with comm.step() as step:
        step.all_reduce(np.ones(4))


def wait_on_work(comm: pccl.Communicator) -> None:
    comm.all_reduce(np.ones(1 << 20), async_op=True).wait()


def wait_in_loop(comm: pccl.Communicator) -> None:
    async def wait() -> None:
        await comm.all_reduce(np.ones(4), async_op=True)

    asyncio.run(wait())


def wait_for_world(comm: pccl.Communicator) -> None:
    comm.wait_for(9, timeout_s=60)


WAITS: dict[str, Callable[[pccl.Communicator], None]] = {
    "step": wait_in_step,
    "work": wait_on_work,
    "await": wait_in_loop,
    "wait_for": wait_for_world,
}


def gate(address: str, index: int, count: int) -> None:
    """Waits at the gate for a second member, until Ctrl-C."""
    comm = pccl.connect(address, min_world=2, timeout_s=20)
    tell(ready=True)
    with contextlib.suppress(KeyboardInterrupt):
        comm.all_reduce(np.ones(4))
    tell(closed=comm.closed)
    comm.close()


def connecting(address: str, index: int, count: int) -> None:
    """Waits for an answer from what is no coordinator, until Ctrl-C."""
    tell(ready=True)
    try:
        pccl.connect(address, timeout_s=60)
    except KeyboardInterrupt:
        threads = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
        tell(error="KeyboardInterrupt", threads=threads)


PROGRAMS: dict[str, Callable[[str, int, int], None]] = {
    "mismatch": mismatch,
    "lonely mismatch": lonely_mismatch,
    "missing": missing,
    "train": train,
    "fork": fork,
    "interrupt": wait_and_be_interrupted,
    "gate": gate,
    "connecting": connecting,
}


def main() -> int:
    address, program, index, count = sys.argv[1:5]
    PROGRAMS[program](address, int(index), int(count))
    tell(done=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
