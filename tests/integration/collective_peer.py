"""One peer that runs every collective: `python collective_peer.py ADDRESS PROGRAM INDEX COUNT`.

Tells what it saw as JSON lines; every program checks its results exactly, on small integers that
say whose they are.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import pccl
from tests.integration.peer_wire import wire

SIZES = (0, 1, 7, 70_001)
LARGE = 400_000


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def values(rank: int, size: int, dtype: Any = np.float32, to: int = 0) -> Any:
    return ((np.arange(size) * 3 + rank * 7 + to * 11) % 101).astype(dtype)


def summed(count: int, size: int, to: int = 0) -> Any:
    return sum((values(rank, size, to=to) for rank in range(count)), np.zeros(size, np.float32))


def seated(comm: pccl.Communicator, index: int, count: int) -> None:
    assert comm.rank == count - 1 - index
    gathered = comm.all_gather(np.array([comm.rank]))
    assert gathered.ravel().tolist() == list(range(count))


def exact(comm: pccl.Communicator, index: int, count: int) -> None:
    """Stand-alone, with made and given outputs, in place; every rank as the root."""
    rank = comm.view.rank
    for size in SIZES:
        gathered = np.stack([values(r, size) for r in range(count)])
        assert (comm.all_gather(values(rank, size)) == gathered).all()
        whole = np.full((count, size), -1, np.float32)
        whole[rank] = values(rank, size)
        assert comm.all_gather(whole[rank], out=whole) is whole and (whole == gathered).all()

        parts = np.stack([values(rank, size, to=to) for to in range(count)])
        part = comm.reduce_scatter(parts)
        assert part.shape == (1, size) and (part[0] == summed(count, size, rank)).all()
        assert (parts == np.stack([values(rank, size, to=to) for to in range(count)])).all()
        comm.reduce_scatter(parts, out=parts[rank], deterministic=True)
        assert (parts[rank] == summed(count, size, rank)).all()

        sent = np.stack([values(rank, size, to=to) for to in range(count)])
        received = comm.all_to_all(sent)
        assert (received == np.stack([values(r, size, to=rank) for r in range(count)])).all()

        for root in range(count):
            x = values(rank, size)
            assert comm.broadcast(x, root=root).world_size == count
            assert (x == values(root, size)).all()
            x = values(rank, size)
            comm.reduce(x, root=comm.view.members[root])  # by name
            assert (x == (summed(count, size) if rank == root else values(rank, size))).all()
            at_root = comm.gather(values(rank, size), root=root)
            assert (at_root == gathered).all() if rank == root else at_root is None
            array = np.stack([values(root, size, to=to) for to in range(count)])
            mine = comm.scatter(array if rank == root else None, root, np.empty(size, np.float32))
            assert (mine == values(root, size, to=rank)).all()
    assert comm.barrier().world_size == count
    tell(done=True)


def uneven(comm: pccl.Communicator, index: int, count: int) -> None:
    """Parts of unequal size, empty ones too, many in one step."""
    rank = comm.view.rank
    rows = [r * 1000 % 2500 for r in range(count)]
    mine = np.repeat(values(rank, rows[rank])[:, None], 3, axis=1)
    all_rows = np.concatenate([values(r, rows[r]) for r in range(count)])
    total = np.repeat(values(rank, sum(rows))[:, None], 3, axis=1)
    sends = [(rank * 7 + to) % 4 * 500 for to in range(count)]
    receives = [(r * 7 + rank) % 4 * 500 for r in range(count)]
    flat = np.concatenate([values(rank, n, to=to) for to, n in enumerate(sends)])
    listed = [values(rank, rows[to], to=to) for to in range(count)]
    with comm.step() as step:
        everybody = step.all_gather(mine, counts=rows)
        own = step.reduce_scatter(total, counts=rows)
        exchanged = step.all_to_all(flat, None, sends, receives)
        root = step.gather(mine, root=count - 1, counts=rows)
        out = np.empty(rows[rank], np.float32)
        scattered = step.scatter(listed if rank == 0 else None, 0, out)
        barrier = step.barrier()
    assert everybody.result.shape == (sum(rows), 3)
    assert (everybody.result == all_rows[:, None]).all()
    at = sum(rows[:rank])
    expected = sum(values(r, sum(rows)) for r in range(count))[at : at + rows[rank]]
    assert own.result.shape == (rows[rank], 3) and (own.result == expected[:, None]).all()
    wanted = np.concatenate([values(r, n, to=rank) for r, n in enumerate(receives)])
    assert (exchanged.result == wanted).all()
    assert root.result is None or (root.result == all_rows[:, None]).all()
    assert (root.result is None) == (rank != count - 1)
    assert scattered.result is out and (out == values(0, rows[rank], to=rank)).all()
    assert barrier.outcome.world_size == count
    tell(done=True)


def dtypes(comm: pccl.Communicator, index: int, count: int) -> None:
    """Types without arithmetic are moved; complex numbers have sums and averages."""
    rank = comm.view.rank
    for code in ("c8", "c16", "?", "f2", "i1", "u8"):
        x = values(rank, 5000, code)
        assert (comm.all_gather(x) == [values(r, 5000, code) for r in range(count)]).all()
    z = values(rank, 5000, np.complex64) * (1 + 2j)
    total = summed(count, 5000) * np.complex64(1 + 2j)
    y = z.copy()
    comm.all_reduce(y)
    assert (y == total).all()
    y = z.copy()
    comm.reduce(y, root=0, op="sum")
    assert (y == (total if rank == 0 else z)).all()
    parts = comm.reduce_scatter(np.stack([z] * count))
    assert parts.dtype == np.complex64 and (parts[0] == total).all()
    for refused in ("max", "prod"):
        try:
            comm.reduce(z.copy(), op=refused)
        except pccl.UsageError as error:
            assert "c64" in str(error)
        else:
            raise AssertionError(refused)
    torch_dtypes(comm, rank, count)
    tell(done=True)


def torch_dtypes(comm: pccl.Communicator, rank: int, count: int) -> None:
    try:
        import torch
    except ImportError:
        return
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.complex128):
        x = torch.arange(3000).remainder(16).add(rank).to(torch.float32).to(dtype)
        everybody = comm.all_gather(x)
        assert everybody.dtype == dtype and everybody.shape == (count, 3000)
        for r in range(count):
            due = torch.arange(3000).remainder(16).add(r).to(torch.float32).to(dtype)
            assert (everybody[r].view(torch.uint8) == due.view(torch.uint8)).all()
        comm.broadcast(x, root=count - 1)
        assert (x.view(torch.uint8) == everybody[-1].view(torch.uint8)).all()


def works(comm: pccl.Communicator, count: int) -> None:
    x = np.arange(70_000.0)
    assert len(comm.all_reduce(x).contributors) == count
    assert (x == np.arange(70_000.0) * count).all()


def mismatch(comm: pccl.Communicator, index: int, count: int) -> None:
    """The first peer posts something that does not fit; all are told of both, inputs stay."""
    me = comm.view.rank
    odd = index == 0
    x = np.full(12, 3, np.float32)
    split = [x.size // count] * count
    other = [split[0] - 1, *split[1:-1], split[-1] + 1]
    posts: dict[str, Callable[[pccl.Step], Any]] = {
        "root": lambda step: step.broadcast(x, root=1 if odd else 0),
        "size": lambda step: step.broadcast(x[:6] if odd else x, root=0),
        "dtype": lambda step: step.all_gather(x.astype(np.int32) if odd else x),
        "collective": lambda step: step.reduce(x, 0) if odd else step.broadcast(x, 0),
        "part": lambda step: step.reduce_scatter(x[: 4 * count] if odd else x[: 2 * count]),
        "gather": lambda step: step.gather(x[: 1 + odd], root=count - 1),
        "split": lambda step: step.all_to_all(
            x, None, swapped(other, me) if odd else split, swapped(other, me) if odd else split
        ),
    }
    for kind, post in posts.items():
        try:
            with comm.step() as step:
                post(step)
        except pccl.DescriptorMismatch as error:
            tell(kind=kind, text=str(error), kept=bool((x == 3).all()))
        else:
            tell(kind=kind, text=None)
        works(comm, count)
    tell(done=True)


def swapped(counts: list[int], rank: int) -> list[int]:
    """Counts in which this rank's own is the usual one."""
    usual = sum(counts) // len(counts)
    changed = [usual] * len(counts)
    first = (rank + 1) % len(counts)
    second = (rank + 2) % len(counts)
    if second == rank:  # two peers: more for the other than it counts on
        return changed
    changed[first] -= 1
    changed[second] += 1
    return changed


def misfit(comm: pccl.Communicator, index: int, count: int) -> None:
    """Arguments that do not fit the view: an error here, before anything is sent."""
    odd = np.ones(count * 2 + 1, np.float32)
    told = []
    calls: tuple[Callable[[], Any], ...] = (
        lambda: comm.reduce_scatter(odd),
        lambda: comm.all_to_all(odd),
        lambda: comm.broadcast(odd, root=count),
        lambda: comm.all_gather(odd, counts=[odd.size] * (count + 1)),
        lambda: comm.all_gather(odd, out=np.empty(3, np.float32)),
        lambda: comm.broadcast(odd, root=-1),
        lambda: comm.scatter(None, 0),
        lambda: comm.broadcast(odd, root=bytes(16)),
    )
    for call in calls:
        try:
            call()
        except pccl.UsageError as error:
            told.append(str(error))
    works(comm, count)
    tell(told=told)


def arguments(kind: str, step: Any, rank: int, count: int, root: int) -> tuple[Any, Any, Any]:
    """Posts one large operation; returns its work, its input, and what that was."""
    x = values(rank, LARGE) if kind in ("broadcast", "reduce", "all_gather", "gather") else (
        np.stack([values(rank, LARGE // count, to=to) for to in range(count)])
    )  # fmt: skip
    before = x.copy()
    work = {
        "broadcast": lambda: step.broadcast(x, root),
        "reduce": lambda: step.reduce(x, root),
        "all_gather": lambda: step.all_gather(x),
        "gather": lambda: step.gather(x, root),
        "reduce_scatter": lambda: step.reduce_scatter(x, out=x[rank]),
        "scatter": lambda: step.scatter(
            x if rank == root else None, root, np.empty(LARGE // count, np.float32)
        ),
        "all_to_all": lambda: step.all_to_all(x),
        "barrier": lambda: step.barrier(),
    }[kind]()
    return work, x, before


def killed(comm: pccl.Communicator, index: int, count: int) -> None:
    """The last peer is killed inside a collective, before or after it has posted its side."""
    kind, how, which = os.environ["PCCL_TEST_KILL"].split()
    rank = comm.view.rank
    victim = index == count - 1
    names = [peer.hex() for peer in comm.view.members]
    tell(rank=rank, victim=victim)
    ranks = comm.all_gather(np.array([victim]))
    lost = int(np.flatnonzero(ranks)[0])
    root = lost if which == "lost" else (lost + 1) % count
    x = before = np.zeros(0)
    try:
        with comm.step("kill") as step:
            if victim and how == "idle":
                time.sleep(0.3)
                os.kill(os.getpid(), signal.SIGKILL)
            _, x, before = arguments(kind, step, rank, count, root)
            if victim:
                os.kill(os.getpid(), signal.SIGKILL)
    except pccl.ViewChanged as error:
        assert error.retryable
        tell(ended="ViewChanged", text=str(error), kept=bool((x == before).all()), lost=names[lost])
    else:
        outcome = step.outcome
        ok = True
        if kind == "broadcast":
            ok = bool((x == values(root, LARGE)).all())
        if kind == "reduce" and rank == root:
            there = [
                r for r, peer in enumerate(names) if peer in {p.hex() for p in outcome.contributors}
            ]
            ok = bool((x == sum(values(r, LARGE) for r in there)).all())
        tell(ended="committed", contributors=outcome.world_size, right=ok)
    works(comm, count - 1)
    y = comm.all_gather(np.array([rank]))  # the new view works, too
    assert y.shape == (count - 1, 1)
    tell(done=True)


def changing(comm: pccl.Communicator, index: int, count: int) -> None:
    """Operations that depend on the members, while some are killed and others come in."""
    asked = threading.Event()

    def listen() -> None:
        if sys.stdin.readline():
            asked.set()

    threading.Thread(target=listen, daemon=True).start()
    name = bytes(comm.peer_id)
    ended = over = 0
    while not over:
        mine = np.frombuffer(name + bytes([asked.is_set()]), np.uint8)
        try:
            with comm.step("changing") as step:
                n, rank = step.world_size, step.rank
                rows = step.all_gather(mine)
                sums = step.reduce_scatter(np.arange(n * 5_000).reshape(n, -1))
                sent = np.repeat(rank * 100 + np.arange(n)[:, None], 3_000, axis=1)
                exchanged = step.all_to_all(sent)
                x = np.full(40_000, float(rank))
                step.broadcast(x, root=n - 1)
        except pccl.ViewChanged:
            ended += 1
            continue
        there = [bytes(peer) for peer in step.outcome.contributors]
        assert [row.tobytes()[:-1] for row in rows.result] == there and there[rank] == name
        assert (sums.result == n * (np.arange(5_000) + rank * 5_000)).all()
        assert (exchanged.result == np.arange(n)[:, None] * 100 + rank).all()
        assert (x == n - 1).all()
        over = int(rows.result[:, -1].any())
        tell(number=step.number, size=n)
        time.sleep(0.005)
    tell(done=True, ended=ended)


PROGRAMS: dict[str, Callable[[pccl.Communicator, int, int], None]] = {
    "exact": exact,
    "uneven": uneven,
    "dtypes": dtypes,
    "mismatch": mismatch,
    "misfit": misfit,
    "killed": killed,
    "changing": changing,
    "seated": seated,
}


def main() -> int:
    address, program, index, count = sys.argv[1:5]
    try:
        seat = int(count) - 1 - int(index) if program == "seated" else None
        with pccl.connect(address, timeout_s=20, step_timeout_s=60, seat=seat, **wire()) as comm:
            comm.wait_for(int(count), timeout_s=30)
            if program != "changing":
                assert len(comm.all_reduce(np.ones(1)).contributors) == int(count)
            PROGRAMS[program](comm, int(index), int(count))
    except pccl.PcclError as error:
        tell(failure=type(error).__name__, text=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
