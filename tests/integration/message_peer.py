"""One peer that sends and receives: `python message_peer.py ADDRESS PROGRAM INDEX COUNT`.

Tells what it saw as JSON lines; contents are integers that say whose they are.
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

SIZES = (0, 1, 1000, 65_536, 65_537, 700_001)
LARGE = 16 << 20  # 64 MiB of int32
Peers = tuple[bytes, ...]  # in the order of their ranks when all were there


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def values(rank: int, size: int, dtype: Any = np.int32) -> Any:
    return ((np.arange(size, dtype=np.int64) * 31 + rank * 7) % 113).astype(dtype)


def exact(comm: pccl.Communicator, peers: Peers) -> None:
    """Everybody to everybody, all sizes and some types, asynchronously and not."""
    rank, count = comm.rank, len(peers)
    others = [r for r in range(count) if r != rank]
    for size in SIZES:
        for dtype in (np.int32, np.uint8, np.complex128):
            sends = [comm.send(values(rank, size, dtype), r, 3, async_op=True) for r in others]
            for other in others:
                x = np.full(size, 99, dtype)
                assert comm.recv(x, other, 3) == other
                assert (x == values(other, size, dtype)).all()
            for send in sends:
                send.wait()
                assert send.done()
    after, before = (rank + 1) % count, (rank - 1) % count
    for turn in range(200):  # by name, around a ring, in turn
        x = np.full(7, turn, np.int16)
        if rank == 0:
            comm.send(x, comm.view.members[after])
            comm.recv(x, comm.view.members[before])
        else:
            assert comm.recv(x) == before
            comm.send(x, after)
        assert (x == turn).all()
    tell(done=True)


def anybody(comm: pccl.Communicator, peers: Peers) -> None:
    """Rank 0 receives from any; the others' arrays are torch tensors where there is torch."""
    if comm.rank == 0:
        seen = set()
        for _ in peers[1:]:
            x = np.zeros(100_000, np.int32)
            source = comm.recv(x, tag=5)
            assert (x == values(source, 100_000)).all()
            seen.add(source)
        assert seen == set(range(1, len(peers)))
    else:
        comm.send(_tensor(values(comm.rank, 100_000)), 0, 5)
    tell(done=True)


def _tensor(array: Any) -> Any:
    try:
        import torch
    except ImportError:
        return array
    return torch.from_numpy(array)


def mismatch(comm: pccl.Communicator, peers: Peers) -> None:
    """Sizes and types that differ are told to both, and what follows is not concerned."""
    mine: tuple[Any, ...] = (np.zeros(10, np.float32), np.zeros(5, np.int64), np.zeros(300_000))
    theirs: tuple[Any, ...] = (np.zeros(11, np.float32), np.zeros(5, np.uint64), np.zeros(1))
    for first, second in zip(mine, theirs, strict=True):
        try:
            if comm.rank == 0:
                comm.send(first, 1)
            else:
                comm.recv(second, 0)
        except pccl.DescriptorMismatch as error:
            tell(text=str(error), untouched=bool((second == 0).all()))
        else:
            tell(text=None)
    x = values(0, 10)
    if comm.rank == 0:
        comm.send(x, 1)
    else:
        y = np.zeros(10, np.int32)
        assert comm.recv(y, 0) == 0 and (x == y).all()
    tell(done=True)


def killed(comm: pccl.Communicator, peers: Peers) -> None:
    """The last rank dies in the middle of 64 MiB, as their sender or receiver; steps go on."""
    victim, role = len(peers) - 1, os.environ["PCCL_TEST_KILL"]
    x = values(comm.rank, LARGE)
    began = time.monotonic()
    caught: list[Any] = []
    if comm.rank == victim:
        transfers = [
            comm.send(x, 0, async_op=True) if role == "sender" else comm.recv(x, 0, async_op=True)
        ]
        comm.recv(np.zeros(1), 0, 8)  # all is posted there; it overtakes the large one
        threading.Timer(float(os.environ["PCCL_TEST_AFTER"]), die).start()
        transfers[0].wait()
        time.sleep(60)
    if comm.rank == 0:
        transfers = [
            comm.recv(x, victim, async_op=True)
            if role == "sender"
            else comm.send(x, victim, async_op=True),
            comm.recv(np.zeros(3), None, 9, async_op=True),
            comm.send(np.zeros(3), 1, 7, async_op=True),
        ]
        go = comm.send(np.zeros(1), victim, 8, async_op=True)
        for transfer in transfers:
            transfer.when_done(lambda: caught.append(time.monotonic() - began))
            try:
                transfer.wait()
            except pccl.PeerLost as error:
                tell(lost=error.peer, retryable=error.retryable)
            else:
                tell(lost=None)
        x[...] = 1  # its memory is free
        assert go.done()
    else:
        small = np.zeros(3)
        assert comm.recv(small, 0, 7) == 0
    y = np.ones(10)
    assert comm.all_reduce(y).world_size == victim
    if comm.rank == 0:
        deadline = time.monotonic() + 10
        while len(caught) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(caught) == 3
    tell(done=True, seconds=time.monotonic() - began)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def late(comm: pccl.Communicator, peers: Peers) -> None:
    """Deadlines on either side, and what comes after them."""
    if comm.rank == 0:
        for call in (
            lambda: comm.send(np.zeros(100_000), 1, 1, timeout_s=0.3),
            lambda: comm.send(np.zeros(1), 1, 1, timeout_s=0.3),
            lambda: comm.recv(np.zeros(1), 1, 2, timeout_s=0.3),
            lambda: comm.recv(np.zeros(1), None, 2, timeout_s=0.3),
        ):
            began = time.monotonic()
            try:
                call()
            except pccl.DeadlineExceeded as error:
                assert 0.2 < time.monotonic() - began < 5
                tell(text=str(error))
            else:
                tell(text=None)
    comm.barrier()
    x = values(comm.rank, 4)
    if comm.rank == 0:
        comm.send(x, 1, 1)
    elif comm.rank == 1:
        assert comm.recv(x, 0, 1) == 0 and (x == values(0, 4)).all()
    tell(done=True)


def closing(comm: pccl.Communicator, peers: Peers) -> None:
    """A peer that leaves, as planned or not, right after its receive; and one that waits for it."""
    x = np.zeros(1000)
    first, leaver = peers[:2]  # ids: ranks change with the view, which may be another one by now
    if comm.peer_id == leaver:
        assert comm.recv(x, first) == 0
        comm.close()
        tell(done=True)
        return
    if comm.peer_id == first:
        comm.send(x, leaver)  # it has it, whatever becomes of it now
        try:
            comm.recv(x, leaver)
        except pccl.PeerLost as error:
            tell(lost=error.peer)
    tell(done=True)


PROGRAMS: dict[str, Callable[[pccl.Communicator, Peers], None]] = {
    "exact": exact,
    "anybody": anybody,
    "mismatch": mismatch,
    "killed": killed,
    "late": late,
    "closing": closing,
}


def main() -> int:
    address, program, _, count = sys.argv[1:5]
    try:
        with pccl.connect(address, timeout_s=20, step_timeout_s=60, **wire()) as comm:
            comm.wait_for(int(count), timeout_s=30)
            peers = comm.all_reduce(np.ones(1)).contributors
            assert len(peers) == int(count)
            tell(rank=peers.index(comm.peer_id))
            PROGRAMS[program](comm, peers)
            if not comm.closed:
                comm.barrier()  # nobody leaves while others send
    except pccl.PcclError as error:
        tell(failure=type(error).__name__, text=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
