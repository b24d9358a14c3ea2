"""One peer with shared state: `python state_peer.py ADDRESS PROGRAM INDEX COUNT`.

Tells what it saw as JSON lines.  Contents are integers, so every sum is exact; peers that shall
differ begin with contents of their own seed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import pccl
from tests.integration.peer_wire import wire
from tests.integration.state_kinds import (
    Halting,
    Liar,
    Odd,
    Slow,
    Throttled,
    Told,
    drip,
    halt,
    keep_the_gil,
    tell,
)

SIZE = 3 << 20  # of int32, in one tensor: 12 leaves
LARGE = 48 << 20  # 192 MiB
STEPS = 40


def fresh(seed: int, size: int = SIZE) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "model": rng.integers(0, 1000, size, dtype=np.int32),
        "moments": {"first": rng.integers(0, 9, 70_001).astype(np.float32), "count": seed},
    }


def hashed(tensors: Any) -> str:
    digest = hashlib.sha256(tensors["model"].tobytes())
    digest.update(tensors["moments"]["first"].tobytes())
    digest.update(str(tensors["moments"]["count"]).encode())
    return digest.hexdigest()


applied = 0  # how often this process has made a revision, its own steps' and replayed ones


halts_in_apply: Callable[[], None] | None = None  # once, of what is replayed


def add(tensors: Any, total: Any) -> None:
    global applied, halts_in_apply
    applied += 1
    if halts_in_apply is not None:
        halts, halts_in_apply = halts_in_apply, None
        halts()
    tensors["model"][: total.size] += total.astype(np.int32)
    tensors["moments"]["count"] += 1


def summary(result: pccl.SyncResult) -> dict[str, Any]:
    return {
        "synced": result.revision,
        "repaired": [str(p) for p in result.repaired],
        "received": [str(p) for p in result.received],
        "struck": [str(p) for p in result.struck],
        "sources": [str(p) for p in result.sources],
        "byte_count": result.byte_count,
        "tensors": list(result.tensors),
        "restored": None if result.restored is None else result.restored.revision,
    }


def train(
    comm: pccl.Communicator, state: pccl.SharedState, steps: int, pause_s: float = 0.0
) -> None:
    """Adds the number of contributors to all elements, step by step; with PCCL_TEST_JOINED to a few
    steps after the first that so many took part in."""
    global halts_in_apply
    joined = int(os.environ.get("PCCL_TEST_JOINED", "0"))
    while state.revision < steps:
        began_s = time.monotonic()
        delta = np.ones(SIZE, np.int32)
        with comm.step("outer") as step:
            step.all_reduce(delta)
        halts_in_apply = None  # not of what is replayed
        if state.apply is None:
            with state.update(step):
                add(state.tensors, delta)
        else:
            state.advance(step, delta)
        if os.environ.get("PCCL_TEST_DRIPS") and state.revision == 1:
            drip()
        if joined and len(step.outcome.contributors) == joined:
            joined, steps = 0, state.revision + 5
        tell(
            revision=state.revision,
            contributors=len(step.outcome.contributors),
            took_s=time.monotonic() - began_s,
            now=hashed(state.tensors),
        )
        time.sleep(pause_s)


def trains(address: str, index: int, count: int) -> None:
    """Trains to the end; what else happens is in the environment."""
    replays = os.environ.get("PCCL_TEST_REPLAY", "yes") == "yes"
    size = int(os.environ.get("PCCL_TEST_SIZE", str(SIZE)))
    pace = float(os.environ.get("PCCL_TEST_PACE", "1"))
    steps = int(os.environ.get("PCCL_TEST_STEPS", str(STEPS)))
    special = {"ODD": Odd, "LIAR": Liar, "HALTS": Halting}
    found = [k for n, k in special.items() if os.environ.get(f"PCCL_TEST_{n}") == str(index)]
    kind = found[0] if found else Throttled
    hold_s = float(os.environ.get("PCCL_TEST_HOLD", "1"))
    kept = 1 << 30  # however many revisions pass while a newcomer dawdles
    act = add if replays else None
    state = kind(fresh(index, size), apply=act, pace=pace, hold_s=hold_s, results_bytes_max=kept)
    founders = count if count > 1 else None
    disks = os.environ.get("PCCL_TEST_DISKS")
    checkpoints = None
    if disks is not None:
        copies = os.environ.get("PCCL_TEST_COPIES")
        checkpoints = pccl.Checkpoints(
            Path(disks) / str(index), every=5, copies=None if copies is None else int(copies)
        )
    with pccl.connect(
        address, state=state, min_world=founders, checkpoint_dir=checkpoints, **wire()
    ) as comm:
        tell(peer=str(comm.peer_id))
        if founders is not None:
            comm.wait_for(founders)
        elif index == 78:
            dawdle(comm, state)
        train(comm, state, steps, pause_s=0.05)
        if checkpoints is not None:
            checkpoints.wait()
            tell(newest=checkpoints.newest, error=str(checkpoints.error))
        ended = {"ended_at": state.revision, "applied": applied}
        tell(end=hashed(state.tensors), root=state.root().hex(), **ended)


def newcomer(address: str, index: int, count: int) -> None:
    trains(address, 77, 1)


def hopeless(address: str, index: int, count: int) -> None:
    """A newcomer that gives up after a few seconds, says why, and that it is no worse for it."""
    size, pace = int(os.environ["PCCL_TEST_SIZE"]), float(os.environ["PCCL_TEST_PACE"])
    state = pccl.SharedState(fresh(77, size), pace=pace)
    with pccl.connect(address, state=state, step_timeout_s=15.0, **wire()) as comm:
        tell(peer=str(comm.peer_id))
        try:
            with comm.step("outer") as step:
                step.all_reduce(np.ones(SIZE, np.int32))
        except pccl.CannotCatchUp as error:
            progress = state.progress
            assert progress is not None and not state.synced
            tell(
                gave_up=str(error),
                pace=error.pace_bytes_per_s,
                needed=error.needed_bytes_per_s,
                rank=comm.rank,
                entries=progress.entries,
                rounds=progress.rounds,
            )


def dawdler(address: str, index: int, count: int) -> None:
    trains(address, 78, 1)


def dawdle(comm: pccl.Communicator, state: pccl.SharedState) -> None:
    """Between its fetch and its entry this newcomer tells what it holds, and waits to be told to go
    on, so that the members can pass it."""
    session = comm.session
    pass_gate = session._pass_gate

    def late(*arguments: Any) -> Any:
        global halts_in_apply
        tell(fetched=state.revision)
        line = sys.stdin.readline()
        halts_in_apply = {"halt in apply\n": halt, "keep the GIL\n": keep_the_gil}.get(line)
        if isinstance(state, Halting):
            state.halts = "halt as it hashes" in line
        setattr(session, "_pass_gate", pass_gate)  # noqa: B010  once
        return pass_gate(*arguments)

    setattr(session, "_pass_gate", late)  # noqa: B010


def small_disk(address: str, index: int, count: int) -> None:
    """Its disk takes no file of more than a MiB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    trains(address, index, count)


@contextlib.contextmanager
def connected(address: str, count: int, timeout_s: float = 60.0) -> Any:
    with pccl.connect(address, min_world=min(2, count), timeout_s=timeout_s, **wire()) as comm:
        comm.wait_for(count)
        tell(peer=str(comm.peer_id))
        yield comm


def changed(address: str, index: int, count: int) -> None:
    """The last one's memory changes behind everybody's back; then nobody's."""
    state = pccl.SharedState(fresh(5))
    with connected(address, count) as comm:
        tell(**summary(comm.sync(state)))
        if comm.rank == count - 1:
            state.tensors["model"][700_000] += 1
            tell(odd=True)
        tell(**summary(comm.sync()))
        tell(**summary(comm.sync()))
        tell(end=hashed(state.tensors))


def tie(address: str, index: int, count: int) -> None:
    """Everybody begins with another content: the lowest rank's counts."""
    state = pccl.SharedState(fresh(index), hashing=os.environ["PCCL_TEST_HASHING"])
    own = hashed(state.tensors)
    with connected(address, count) as comm:
        result = comm.sync(state)
        tell(rank=comm.rank, own=own, end=hashed(state.tensors), **summary(result))


def strategies(address: str, index: int, count: int) -> None:
    """All hold the same but for the last two, who say who is right."""
    state = pccl.SharedState(fresh(0))
    with connected(address, count) as comm:
        comm.sync(state)
        if comm.rank == count - 1:
            state.tensors["model"][:] = 7
        result = comm.sync(strategy="send_only" if comm.rank == count - 1 else "popular")
        assert (state.tensors["model"] == 7).all()
        tell(**summary(result))
        if comm.rank != 1:
            state.tensors["model"][:] = 8
        result = comm.sync(strategy="popular" if comm.rank == 1 else "receive_only")
        assert (state.tensors["model"] == 7).all()
        tell(**summary(result))
        try:
            comm.sync(strategy="receive_only")
        except pccl.UsageError as error:
            tell(refused=str(error))
        tell(end=hashed(state.tensors))


def layouts(address: str, index: int, count: int) -> None:
    """The last one has another shape; the others go on without it."""
    tensors = fresh(0)
    if index == count - 1:
        tensors["moments"]["first"] = np.zeros((7, 3), np.float32)
    state = pccl.SharedState(tensors)
    with connected(address, count) as comm:
        tell(rank=comm.rank)
        try:
            result = comm.sync(state)
        except pccl.UsageError as error:
            return tell(refused=str(error), closed=comm.closed)
        tell(**summary(result))
        x = np.ones(3, np.int32)
        tell(contributors=len(comm.all_reduce(x).contributors))
    return None


def faulty(address: str, index: int, count: int) -> None:
    """One source does as PCCL_TEST_FAULT says; the one of the highest rank is new to the state."""
    fault, size = os.environ["PCCL_TEST_FAULT"], LARGE
    kinds = {"odd": Odd, "slow": Slow}
    kind = kinds.get(fault, pccl.SharedState) if index == 1 else pccl.SharedState
    state = kind(fresh(0, size), pace=1.0)
    with connected(address, count) as comm:
        comm.sync(state)
        tell(rank=comm.rank)
        if index == 2:
            state.tensors["model"][:] = -1
        began_s = time.monotonic()
        result = comm.sync()
        took_s = time.monotonic() - began_s
        tell(end=hashed(state.tensors), took_s=took_s, lost=len(result.lost), **summary(result))


PROGRAMS: dict[str, Callable[[str, int, int], None]] = {
    "trains": trains,
    "newcomer": newcomer,
    "dawdler": dawdler,
    "hopeless": hopeless,
    "small_disk": small_disk,
    "changed": changed,
    "tie": tie,
    "strategies": strategies,
    "layouts": layouts,
    "faulty": faulty,
}

if __name__ == "__main__":
    logging.getLogger("pccl.state").addHandler(Told(logging.WARNING))
    PROGRAMS[sys.argv[2]](sys.argv[1], int(sys.argv[3]), int(sys.argv[4]))
