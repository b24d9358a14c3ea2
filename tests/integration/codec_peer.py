"""One peer of quantised all-reduces: `python codec_peer.py ADDRESS PROGRAM INDEX COUNT`.

Tells what it saw as JSON lines.  Exact values are on the codec's grid: every block has the largest
code in it, so that scales are whole numbers and nothing is rounded.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import pccl
from tests.integration.peer_wire import wire

KINDS = ("int8", "int4", "fp8")
LIMITS = {"int8": 127, "int4": 7}
STEPS = {"int8": 1 / 127 / 2, "int4": 1 / 7 / 2, "fp8": 2.0**-4}
LARGE = 3_000_001


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def on_grid(size: int, limit: int = 127) -> Any:
    """Integers of which every 32 next to each other hold one of the largest."""
    array = (np.arange(size) * 7) % (2 * limit + 1) - limit
    array[::32] = limit
    return array.astype(np.float32)


def normal(index: int, size: int) -> Any:
    return np.random.default_rng(index).standard_normal(size).astype(np.float32)


def digest(array: Any) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(array.tobytes())


def check_near(kind: str, result: Any, inputs: list[Any], block: int = 256) -> None:
    """No element is farther from the average than two roundings put it."""

    def steps(array: Any) -> Any:
        blocks = np.pad(np.abs(array), (0, -len(array) % block)).reshape(-1, block)
        return np.repeat(blocks.max(axis=1) * STEPS[kind], block)[: len(array)]

    exact = np.mean(inputs, axis=0, dtype=np.float64)
    slack = np.mean([steps(x) for x in inputs], axis=0) + 1.1 * steps(result) + 1e-5
    assert (np.abs(result - exact) <= slack).all(), np.abs(result - exact).max()


def forms(comm: pccl.Communicator, index: int, count: int) -> None:
    """Stand-alone, in a step, asynchronous, out of place, torch; exact on the grid, near off it."""
    digests = []
    for kind in KINDS:
        for size in (0, 1, 300, 70_001):
            inputs = [normal(i, size) for i in range(count)]
            mine = inputs[index].copy()
            out = np.empty_like(mine)
            comm.all_reduce(mine, "avg", out=out, codec=kind)
            assert (mine == inputs[index]).all()
            if size:
                check_near(kind, out, inputs)
            digests.append(digest(out))
            with comm.step() as step:
                step.all_reduce(mine, "avg", codec=kind, deterministic=True)
            digests.append(digest(mine))

    for kind, limit in LIMITS.items():
        grid = on_grid(10_000, limit)
        x = torch.from_numpy(grid.copy())
        comm.all_reduce(x, codec=pccl.Codec(kind, block=32))
        assert (x.numpy() == grid * count).all()
        y = grid.copy()
        work = comm.all_reduce(y, "avg", weight=index + 1.0, codec=kind, async_op=True)
        work.wait(timeout_s=30)
        assert (y == grid).all()

    async def awaited() -> None:
        arrays = [on_grid(1000 + i) for i in range(4)]
        works = [comm.all_reduce(array, codec="int8", async_op=True) for array in arrays]
        for work in works:
            await work
        assert all((array == on_grid(1000 + i) * count).all() for i, array in enumerate(arrays))

    asyncio.run(awaited())
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        z = torch.from_numpy(on_grid(5000, 7)).to(dtype)
        comm.all_reduce(z, "avg", codec="int4")
        assert (z.double().numpy() == on_grid(5000, 7)).all()

    sent = {
        kind: comm.all_reduce(normal(index, 1 << 20), "avg", algorithm="direct", codec=kind)
        for kind in (None, *KINDS)
    }
    tell(digests=digests, sent={str(kind): done.wire_bytes for kind, done in sent.items()})


def mismatch(comm: pccl.Communicator, index: int, count: int) -> None:
    """The first peer quantises otherwise than the others; all are told, and the run goes on."""
    pairs: list[tuple[Any, Any]] = [
        ("int8", None),
        ("int8", "int4"),
        ("int8", pccl.Codec("int8", block=512)),
        ("fp8", pccl.Codec("fp8", stochastic=True)),
    ]
    texts = []
    for first, other in pairs:
        x = np.ones(4000, np.float32)
        try:
            with comm.step() as step:
                step.all_reduce(x, codec=first if index == 0 else other)
        except pccl.DescriptorMismatch as error:
            assert (x == 1).all()
            texts.append(str(error))
        else:
            raise AssertionError("they fit")
    y = on_grid(4000)
    comm.all_reduce(y, codec="int8")
    assert (y == on_grid(4000) * count).all()
    tell(texts=texts)


def loop(comm: pccl.Communicator, index: int, count: int) -> None:
    """Sums in place until asked to end; exact among whoever is there, so inputs came back.

    Asked to die, it does so before it seals, when slices of somebody else have come.
    """
    asked, dying = threading.Event(), threading.Event()

    def read() -> None:
        (dying if sys.stdin.readline().strip() == "die" else asked).set()

    threading.Thread(target=read, daemon=True).start()
    grid = on_grid(LARGE)
    x = np.empty_like(grid)
    number = 0
    while True:
        x[:] = grid
        end = np.array([1.0 if asked.is_set() else 0.0])
        heard = comm.session.engine.stats()["frames_received"]
        with comm.step() as step:
            step.all_reduce(x, codec="int8", deterministic=number % 2 == 0)
            step.all_reduce(end, op="max")
            if dying.is_set():
                until_s = time.monotonic() + 30
                # OPENs, SEAL and DONE of each of the others are four: this is one slice more.
                while comm.session.engine.stats()["frames_received"] <= heard + 4 * (count - 1):
                    assert time.monotonic() < until_s, "nobody sends anything"
                    time.sleep(0.001)
                os.kill(os.getpid(), signal.SIGKILL)
        assert (x == grid * len(step.outcome.contributors)).all()
        number += 1
        tell(
            step=step.number,
            retries=step.outcome.retries,
            contributors=len(step.outcome.contributors),
        )
        if end:
            return


def nonfinite(comm: pccl.Communicator, index: int, count: int) -> None:
    """The last peer contributes what is no number; its policy says what becomes of it."""
    last = index == count - 1
    for codec in (None, "int8"):
        for algorithm in ("auto", "direct"):
            for op in ("sum", "avg"):
                x = on_grid(70_000)
                if last:
                    x[[5, 4000]] = np.nan, -np.inf
                given = x.copy()
                out = np.empty_like(x)
                for target in (out, x):
                    comm.all_reduce(
                        x,
                        op,
                        weight=index + 1.0 if op == "avg" else 1.0,
                        out=target,
                        algorithm=algorithm,
                        codec=codec,
                        nonfinite="drop_contributor",
                    )
                    whole = on_grid(70_000) * (count - 1 if op == "sum" else 1)
                    assert (target == whole).all(), (codec, algorithm, op)
                    assert target is x or np.array_equal(x, given, equal_nan=True)
    dropped = comm.nonfinite

    x = np.full(300, np.nan if last else 1.0, np.float16)
    comm.all_reduce(x, nonfinite="allow")
    assert np.isnan(x).all()

    began_s = time.monotonic()
    y, z = np.full(5000, np.inf if last else 2.0), np.full(10, 3.0)
    try:
        with comm.step() as step:
            step.all_reduce(y, "max", nonfinite="raise")
            step.all_reduce(z)
    except pccl.NonFiniteContribution as error:
        text = str(error)
    assert (y == (np.inf if last else 2.0)).all() and (z == 3).all()
    try:
        comm.all_reduce(y, nonfinite="raise")
    except pccl.NonFiniteContribution as error:
        alone = str(error)
    took_s = time.monotonic() - began_s
    comm.all_reduce(z)
    assert (z == 3 * count).all()
    found = comm.nonfinite
    tell(
        dropped=[dropped.elements, dropped.arrays, dropped.dropped, dropped.raised],
        found=[found.elements, found.arrays, found.dropped, found.raised],
        texts=[text, alone],
        took_s=took_s,
    )


PROGRAMS: dict[str, Callable[[pccl.Communicator, int, int], None]] = {
    "forms": forms,
    "mismatch": mismatch,
    "nonfinite": nonfinite,
    "loop": loop,
}


def main() -> int:
    address, program, index, count = sys.argv[1:5]
    min_world = None if program == "loop" else int(count)
    try:
        with pccl.connect(
            address, timeout_s=20, step_timeout_s=60, min_world=min_world, **wire()
        ) as comm:
            tell(peer=comm.peer_id.hex(), pid=os.getpid())
            comm.wait_for(int(count), timeout_s=30)
            PROGRAMS[program](comm, int(index), int(count))
    except pccl.PcclError as error:
        tell(failure=type(error).__name__, text=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
