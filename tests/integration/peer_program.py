"""One peer of an integration story: `python peer_program.py ADDRESS PROGRAM INDEX COUNT`.

Speaks JSON lines on its standard output; a line on its standard input asks a looping program to
end.  Every program checks its results exactly: inputs are small integers.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

import pccl
from tests.integration.peer_wire import wire

OPS = ("sum", "avg", "prod", "min", "max")
SIZES = (0, 1, 7, 1000, 70_001)  # none, fewer than peers, odd, and more than one slice
CODES = "f8 f4 f2 i1 u1 i2 u2 i4 u4 i8 u8 ?".split()


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def contribution(op: str, size: int, index: int, count: int, boolean: bool) -> tuple[Any, float]:
    """Returns integer values and a weight whose results are exact in every type."""
    k = np.arange(size)
    if boolean:
        return (k + index) % 3 != 0, 1.0
    match op:
        case "avg":  # weights 1, ..., 1, count + 1 and an average of k % 5 + count + 1
            last = index == count - 1
            return k % 5 + (2 * count if last else 0), (count + 1.0 if last else 1.0)
        case "prod":
            return 1 + (k + index) % 2, 1.0
        case _:
            return k % 5 + index + 1, 1.0


def expectation(op: str, size: int, count: int, boolean: bool) -> Any:
    if op == "avg":
        return np.arange(size) % 5 + count + 1
    parts = np.array([contribution(op, size, i, count, boolean)[0] for i in range(count)])
    match op:
        case "sum":
            return parts.any(axis=0) if boolean else parts.sum(axis=0)
        case "prod":
            return parts.all(axis=0) if boolean else parts.prod(axis=0)
        case "min":
            return parts.min(axis=0)
        case _:
            return parts.max(axis=0)


def exact(comm: pccl.Communicator, index: int, count: int) -> None:
    """Every type, operation and size, many at once, in place and out of place."""
    torch_types = _torch_types()
    for size in SIZES:
        checks: list[tuple[Any, ...]] = []
        with comm.step(f"size {size}") as step:
            for code in [*CODES, *torch_types]:
                boolean = code in ("?", "torch.bool")
                for op in OPS[:1] + OPS[2:] if boolean else OPS:
                    values, weight = contribution(op, size, index, count, boolean)
                    array, other, view = _make(code, values, torch_types)
                    out = other if len(checks) % 2 else None
                    step.all_reduce(array, op=op, weight=weight, out=out)
                    wanted = expectation(op, size, count, boolean)
                    checks.append((code, op, array, out, view, values, wanted))
        assert len(step.outcome.contributors) == count, step.outcome
        for code, op, array, out, view, values, wanted in checks:
            got = view(array if out is None else out)
            assert (got == wanted).all(), (code, op, size, got[:8], wanted[:8])
            if out is not None:  # the input is as it was
                assert (view(array) == values).all(), (code, op, size)
    tell(done=True, contributors=[peer.hex() for peer in step.outcome.contributors])


def _torch_types() -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        return {}
    return {str(t): t for t in (torch.bfloat16, torch.float32, torch.int64, torch.bool)}


def _make(code: str, values: Any, torch_types: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Returns an array, an empty one like it, and how to see either as numbers."""
    if code in torch_types:
        import torch

        tensor = torch.from_numpy(np.asarray(values, np.int64)).to(torch_types[code])
        return tensor, torch.zeros_like(tensor), lambda t: t.to(torch.float64).numpy()
    array = np.asarray(values).astype(code)
    return array, np.zeros_like(array), lambda a: a.astype(np.float64)


def forms(comm: pccl.Communicator, index: int, count: int) -> None:
    """The ways to call it: stand-alone, asynchronous, awaited, tags in any order, 0-d, settings."""
    x = np.full(1000, 1.0, np.float32)
    done = comm.all_reduce(x, op="sum")
    assert (x == len(done.contributors)).all() and done.retries == 0
    assert done.contributors == comm.view.members and done.epoch == comm.view.epoch
    assert done.contributors[comm.rank] == comm.peer_id and comm.world_size == count
    assert done.wire_bytes > 0

    normal = [np.random.default_rng(rank).standard_normal(300_000) for rank in range(count)]
    of_rank = [part.astype(np.float32) for part in normal]  # sums of these depend on their order
    for size in (100, 50_000, 300_000):
        mine, expected = of_rank[comm.rank][:size].copy(), of_rank[0][:size].copy()
        for part in of_rank[1:]:
            expected += part[:size]
        comm.all_reduce(mine, deterministic=True)
        assert mine.tobytes() == expected.tobytes(), "in rank order, whatever carries it"

    work = comm.all_reduce(x, op="max", async_op=True)
    work.wait(timeout_s=30)
    assert (x == count).all() and work.done() and work.result is x

    async def awaited() -> list[pccl.Outcome]:
        arrays = [np.full(100 + i, float(i)) for i in range(5)]
        works = [comm.all_reduce(array, async_op=True) for array in arrays]
        outcomes = [await work for work in works]
        assert all((array == i * count).all() for i, array in enumerate(arrays))
        return outcomes

    assert len(asyncio.run(awaited())) == 5

    arrays = {tag: np.full(10 + tag, float(tag + index)) for tag in range(6)}
    with comm.step("tags", timeout_s=60) as step:
        for tag in sorted(arrays, reverse=bool(index % 2)):  # each peer in an order of its own
            step.all_reduce(arrays[tag], tag=tag)
    total = sum(range(count))
    assert all((array == tag * count + total).all() for tag, array in arrays.items())

    scalar = np.array(index + 1)
    comm.all_reduce(scalar, op="max")
    assert scalar == count
    for algorithm in ("direct", "ring", *(["exchange"] if count == 2 else [])):
        y = np.arange(5000.0)
        comm.all_reduce(y, algorithm=algorithm, deterministic=True)
        assert (y == np.arange(5000.0) * count).all()
    with comm.step("empty"):
        pass
    tell(done=True)


def asked_to_end() -> threading.Event:
    """Returns an event that a line on the standard input sets."""
    asked = threading.Event()

    def read() -> None:
        sys.stdin.readline()
        asked.set()

    threading.Thread(target=read, daemon=True).start()
    return asked


def loop(comm: pccl.Communicator, index: int, count: int) -> None:
    """Steps until somebody is asked to end; a newcomer joins wherever the others are."""
    asked = asked_to_end()
    while True:
        x = np.full(1 << 16, 1.0, np.float32)
        end = np.array(asked.is_set())
        with comm.step() as step:
            step.all_reduce(x, op="sum")
            step.all_reduce(end, op="max")
        outcome = step.outcome
        assert (x == len(outcome.contributors)).all(), (x[:4], outcome)
        tell(
            step=step.number,
            contributors=[peer.hex() for peer in outcome.contributors],
            epoch=outcome.epoch,
            retries=outcome.retries,
        )
        if end:
            return


def mismatch(comm: pccl.Communicator, index: int, count: int) -> None:
    """The first peer posts something else; all are told, and the run goes on."""
    x = np.ones(4, np.int64) if index == 0 else np.ones(4, np.float32)
    try:
        with comm.step() as step:
            step.all_reduce(x)
    except pccl.DescriptorMismatch as error:
        assert (x == 1).all(), x
        y = np.ones(4)
        comm.all_reduce(y)
        tell(error=type(error).__name__, text=str(error), after=y.tolist())
    else:
        tell(error=None)


def tags(comm: pccl.Communicator, index: int, count: int) -> None:
    """The first peer uses another tag than the others."""
    x = np.ones(4)
    try:
        with comm.step(timeout_s=10) as step:
            step.all_reduce(x, tag=7 if index == 0 else 8)
    except pccl.PcclError as error:
        tell(error=type(error).__name__, text=str(error), kept=bool((x == 1).all()))
    else:
        tell(error=None)


def alone(comm: pccl.Communicator, index: int, count: int) -> None:
    """The first peer waits in a step that the second never enters, until Ctrl-C."""
    comm.all_reduce(np.ones(1))
    if index == 1:
        tell(ready=True)
        sys.stdin.readline()
        return
    tell(ready=True)
    try:
        comm.all_reduce(np.ones(8), op="max")
    except KeyboardInterrupt:
        tell(error="KeyboardInterrupt", closed=comm.closed)
        return
    tell(error=None)


def state(comm: pccl.Communicator, index: int, count: int) -> None:
    """Adds 1 to a shared state in every step; a newcomer gets the state first."""
    shared = {"p": np.zeros(1000), "n": np.array(0)}
    synced, asked = False, asked_to_end()
    while True:
        synced = pccl.sync_state(comm, shared, synced)
        change, end = np.full(1000, 1.0), np.array(asked.is_set())
        with comm.step() as step:
            step.all_reduce(change, op="avg")
            step.all_reduce(end, op="max")
        shared["p"] += change
        shared["n"] += 1
        assert (shared["p"] == shared["n"]).all()
        tell(n=int(shared["n"]), contributors=len(step.outcome.contributors))
        if end:
            return


PROGRAMS: dict[str, Callable[[pccl.Communicator, int, int], None]] = {
    "exact": exact,
    "forms": forms,
    "loop": loop,
    "mismatch": mismatch,
    "tags": tags,
    "alone": alone,
    "state": state,
}
WHOLE = ("exact", "forms", "mismatch", "tags")
"""Programs whose every step needs everybody, however late a busy machine brings the last one."""


def main() -> int:
    address, program, index, count = sys.argv[1:5]
    min_world = int(count) if program in WHOLE else None
    try:
        with pccl.connect(
            address, timeout_s=20, step_timeout_s=60, min_world=min_world, **wire()
        ) as comm:
            tell(peer=comm.peer_id.hex(), pid=os.getpid())
            if int(index) < int(count):  # a later index is a newcomer
                comm.wait_for(int(count), timeout_s=30)
            PROGRAMS[program](comm, int(index), int(count))
    except pccl.PcclError as error:
        tell(failure=type(error).__name__, text=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
