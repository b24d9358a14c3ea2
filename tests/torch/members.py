"""Members of an elastic group, each a process of its own, and the coordinator that they meet at.

Members come and go while a test runs, so each is started, killed and stopped by its number.  What
they say is kept in order.  Invariant: nothing that was started outlives `Members`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from pccl.membership.service import CoordinatorOptions, CoordinatorThread
from pccl.transport.address import Address
from tests.torch import exact
from tests.torch.ranks import WAIT_S, _context

Program = Callable[..., Any]


class Member:
    """What a program is given: its number, where the coordinator is, and a way to say things."""

    def __init__(self, number: int, address: str, pipe: Connection) -> None:
        self.number = number
        self.address = address
        self._pipe = pipe

    def say(self, what: Any) -> None:
        self._pipe.send(("said", what))

    def introduce(self, peer: bytes) -> None:
        """Says as which peer this member goes on."""
        self._pipe.send(("peer", bytes(peer)))


class _Started:
    """A member's process.  Its pipe is read by a thread: a full one would stop the member."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self.process = process
        self.peers: list[bytes] = []  # it has been, one after the other
        self._said: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._reader.start()

    def _read(self, pipe: Connection) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                kind, said = pipe.recv()
                if kind == "peer":
                    self.peers.append(said)
                else:
                    self._said.put((kind, said))
        self._said.put(("ended", None))

    def hear(self, timeout_s: float) -> tuple[str, Any]:
        """Raises queue.Empty."""
        return self._said.get(timeout=timeout_s)

    def await_end(self) -> None:
        self._reader.join(WAIT_S)


class Members:
    """A coordinator in this process, and members by number."""

    def __init__(self, program: Program, *args: Any, address: str = "") -> None:
        """With an `address` the test runs a coordinator there itself."""
        self._program, self._args = program, args
        self._context = _context()
        self._started: dict[int, _Started] = {}
        self._coordinator: CoordinatorThread | None = None
        self.address = address
        if not address:
            options = CoordinatorOptions(listen=Address("127.0.0.1", 0))
            self._coordinator = CoordinatorThread(options)

    def __enter__(self) -> Self:
        if self._coordinator is not None:
            self.address = self._coordinator.start().address
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for started in self._started.values():
            started.process.kill()
        for started in self._started.values():
            started.process.join(WAIT_S)
        if self._coordinator is not None:
            self._coordinator.stop()

    def start(self, *numbers: int, **named: Any) -> None:
        for number in numbers:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(
                target=_main,
                args=(self._program, number, self.address, theirs, self._args, named),
            )
            process.start()
            theirs.close()
            self._started[number] = _Started(process, ours)

    def signal(self, number: int, which: int = signal.SIGKILL) -> None:
        process_id = self._started[number].process.pid
        assert process_id is not None
        os.kill(process_id, which)

    def await_stop(self, number: int) -> None:
        """Waits until a member's process has been stopped by a signal."""
        until = time.monotonic() + WAIT_S
        status = Path(f"/proc/{self._started[number].process.pid}/stat")
        while status.read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < until, f"member {number} is not stopped"
            time.sleep(0.01)

    def hear(self, number: int, timeout_s: float = WAIT_S) -> Any:
        """Returns the next thing that a member says, its result at last."""
        try:
            kind, said = self._started[number].hear(timeout_s)
        except queue.Empty:
            raise AssertionError(f"member {number} is silent for {timeout_s:g} s") from None
        assert kind != "ended", f"member {number} ended: {self.exit_code(number)}"
        assert kind != "failed", f"member {number}:\n{said}"
        return said

    def numbers(self) -> dict[bytes, int]:
        """Returns which member each peer was, when all have ended."""
        for started in self._started.values():
            started.await_end()
        return {peer: number for number, started in self._started.items() for peer in started.peers}

    def await_step(self, number: int, step: int) -> None:
        """Waits until a member has said that it has committed so many steps."""
        until = time.monotonic() + WAIT_S
        while (said := self.hear(number, max(0.0, until - time.monotonic()))) is not None:
            if isinstance(said, int) and said >= step:
                return

    def result(self, number: int) -> Any:
        """Returns what a member's program returns; skips what it says before."""
        while isinstance(said := self.hear(number), int):
            pass
        assert self.exit_code(number) == 0
        return said

    def end_of(self, number: int) -> tuple[int | None, Any]:
        """Returns a member's exit code, and the last thing that it said."""
        last = None
        with contextlib.suppress(AssertionError):
            while True:
                last = self.hear(number)
        return self.exit_code(number), last

    def exit_code(self, number: int) -> int | None:
        process = self._started[number].process
        process.join(WAIT_S)
        return process.exitcode


def _main(
    program: Program,
    number: int,
    address: str,
    pipe: Connection,
    args: tuple[Any, ...],
    named: dict[str, Any],
) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        result = program(Member(number, address, pipe), *args, **named)
        if dist.is_initialized():
            dist.destroy_process_group()
        pipe.send(("returned", result))
    except BaseException:
        pipe.send(("failed", traceback.format_exc()))
        raise
    finally:
        pipe.close()


# ---- what members did, and what they must hold


@dataclass(frozen=True, slots=True)
class Trained:
    """What a member's program returns."""

    number: int
    history: list[tuple[int, tuple[bytes, ...], int]]  # step, members, retries
    parameters: list[Any]  # numpy arrays, for tensors go through pipes as open files
    rolled_back: list[str]
    healed: int


def same(one: Trained, expected: list[torch.Tensor]) -> bool:
    return exact.same([torch.from_numpy(array) for array in one.parameters], expected)


def histories(
    found: Sequence[Trained], numbers: Mapping[bytes, int], steps: int
) -> dict[int, list[int]]:
    """Returns which members' gradients are in each step.  Fails unless all say the same."""
    committed: dict[int, list[int]] = {}
    for one in found:
        for step, members, _ in one.history:
            named = [numbers[peer] for peer in members]
            assert committed.setdefault(step, named) == named, f"step {step}: histories differ"
    assert sorted(committed) == list(range(1, steps + 1)), sorted(committed)
    return committed


def check(
    found: Sequence[Trained],
    numbers: Mapping[bytes, int],
    steps: int,
    make: Callable[[], Any] = exact.make_model,
) -> dict[int, list[int]]:
    """Fails unless all hold the same bits, and those of a replay of what was committed.

    Returns which members' gradients are in each step.
    """
    committed = histories(found, numbers, steps)
    expected = exact.reference(0, steps, make, ranks_at=lambda step: committed[step + 1])
    for one in found:
        assert same(one, expected), f"member {one.number} differs"
    return committed
