"""Runs a function on several ranks, each a process of its own, and returns what they return.

Ranks are forked from a server that has torch loaded, which takes a tenth of the time of new
interpreters.  They meet at a FileStore, so no port is chosen here.

Invariant: no rank outlives `run_ranks`; whatever a rank raises fails the test with its traceback.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

WAIT_S = 90.0
# DDP loads torch._dynamo when it is made, which takes seconds in each rank.
PRELOAD = ["torch", "torch.distributed", "torch._dynamo", "pccl.pytorch.bootstrap", __name__]


@dataclass(frozen=True, slots=True)
class Setting:
    """What every rank of one run has in common."""

    world: int
    store: str
    backend: str = "pccl"
    timeout_s: float = 60.0
    options: Any = None


Program = Callable[..., Any]


@dataclass(slots=True)
class Ranks:
    """The running ranks of one test."""

    processes: list[BaseProcess]
    pipes: list[Connection]

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        process_id = self.processes[rank].pid
        assert process_id is not None
        os.kill(process_id, number)

    def hear(self, rank: int, timeout_s: float = WAIT_S) -> Any:
        """Returns the next thing that a rank says, its result at last."""
        assert self.pipes[rank].poll(timeout_s), f"rank {rank} says nothing for {timeout_s:g} s"
        try:
            kind, said = self.pipes[rank].recv()
        except EOFError:
            raise AssertionError(f"rank {rank} ended: {self.exit_code(rank)}") from None
        assert kind != "failed", f"rank {rank}:\n{said}"
        return said

    def exit_code(self, rank: int) -> int | None:
        self.processes[rank].join(WAIT_S)
        return self.processes[rank].exitcode


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


@contextlib.contextmanager
def started(program: Program, world: int, *args: Any, **setting: Any) -> Iterator[Ranks]:
    """Starts the ranks; those that still run at the end are killed."""
    context = _context()
    with tempfile.TemporaryDirectory() as folder:
        common = Setting(world, str(Path(folder) / "store"), **setting)
        pairs = [context.Pipe() for _ in range(world)]
        processes = [
            context.Process(target=_main, args=(program, rank, common, pairs[rank][1], args))
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for _, theirs in pairs:
            theirs.close()
        try:
            yield Ranks(processes, [ours for ours, _ in pairs])
        finally:
            for process in processes:
                process.kill()
                process.join(WAIT_S)


def run_ranks(program: Program, world: int, *args: Any, **setting: Any) -> list[Any]:
    """Runs `program(rank, *args)` in a group on all ranks; returns their results."""
    with started(program, world, *args, **setting) as ranks:
        results: dict[int, Any] = {}
        until = time.monotonic() + WAIT_S
        while len(results) < world:
            open_pipes = [p for r, p in enumerate(ranks.pipes) if r not in results]
            ready = wait(open_pipes, max(0.0, until - time.monotonic()))
            missing = sorted(set(range(world)) - set(results))
            assert ready, f"ranks {missing} say nothing for {WAIT_S:g} s"
            for pipe in ready:
                rank = ranks.pipes.index(pipe)  # type: ignore[arg-type]
                results[rank] = ranks.hear(rank)
        codes = [ranks.exit_code(rank) for rank in range(world)]
        assert codes == [0] * world, codes
        return [results[rank] for rank in range(world)]


class Rank:
    """What a program is given: its rank, and a way to say things before it returns."""

    def __init__(self, rank: int, setting: Setting, pipe: Connection) -> None:
        self.rank = rank
        self.world = setting.world
        self.setting = setting
        self._pipe = pipe

    def meet(self, name: str) -> None:
        """Waits for all ranks without the group, at a place that is met at once."""
        import torch.distributed as dist

        store = dist.FileStore(self.setting.store + ".met", self.world)
        if store.add(name, 1) == self.world:
            store.set(f"{name}/all", "")
        store.wait([f"{name}/all"], timedelta(seconds=WAIT_S))

    def say(self, what: Any) -> None:
        self._pipe.send(("said", what))


def _main(
    program: Program, rank: int, setting: Setting, pipe: Connection, args: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            setting.backend,
            store=dist.FileStore(setting.store, setting.world),
            rank=rank,
            world_size=setting.world,
            timeout=timedelta(seconds=setting.timeout_s),
            pg_options=setting.options,
        )
        result = program(Rank(rank, setting, pipe), *args)
        if dist.is_initialized():
            dist.destroy_process_group()
        pipe.send(("returned", result))
    except BaseException:
        pipe.send(("failed", traceback.format_exc()))
        raise
    finally:
        pipe.close()
