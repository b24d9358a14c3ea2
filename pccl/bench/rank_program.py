"""One rank's side: obeys the parent's orders over a socket, one line of JSON each.

    parent: {"do": "prepare", ...}   rank: {"ok": ...}       buffers made, one result checked
    parent: {"do": "run", ...}       rank: {"ok": {"times": [...], "cpu_s": ...}}
    parent: {"do": "vitals"}         rank: {"ok": {...}}     memory, threads, sockets
    parent: {"do": "end"}, or hangs up: the rank ends

Between orders a rank sleeps in a read, also one whose library would spin while it waits inside a
call, so that contenders that are not being measured cost nothing.
Invariants: an order that is not done within its deadline ends the process (a watchdog does, even
if a library hangs in native code); a rank does not outlive its parent but for that deadline.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pccl.bench.contributions import fill, first_difference

ORDER_BYTES_MAX = 1 << 16
_NUMPY_TYPES = {
    **{f"f{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"i{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"u{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}
DTYPES = ("f64", "f32", "f16", "bf16", *(name for name in _NUMPY_TYPES if name[0] in "iu"))


class Contender(Protocol):
    """What a rank program has to bring."""

    def prepare(self, order: Mapping[str, Any]) -> None:
        """Makes buffers and checks one result of each form; raises if it is wrong."""

    def choose(self, order: Mapping[str, Any]) -> None:
        """Takes the form of the operation that `once` is to do next."""

    def once(self) -> None:
        """What is timed."""

    def notes(self) -> dict[str, Any]:
        """What else it knows about the operations since `choose`."""

    def close(self) -> None: ...


class WrongResult(Exception):
    """A library returned without an error, and what it returned is wrong."""


class AllReduce:
    """Buffers and checks of an all-reduce; a subclass brings the library's call."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank = rank
        self.world = world
        self.op = "sum"
        self._array: Any = None
        self._out: Any = None
        self._target: Any = None

    def reduce(self, array: Any, out: Any, op: str) -> None:
        """Reduces `array` over the ranks, into `out` unless that is None."""
        raise NotImplementedError

    def prepare(self, order: Mapping[str, Any]) -> None:
        self.op = str(order["op"])
        dtype, count = str(order["dtype"]), int(order["count"])
        self._array = self._out = self._target = None  # the old ones go before the new ones come
        self._array, epsilon = make_array(dtype, count)
        forms = [bool(in_place) for in_place in order["in_place"]]
        if False in forms:
            self._out, _ = make_array(dtype, count)
        for in_place in forms:
            self.choose({"in_place": in_place})
            fill(self._array, self.op, self.rank, self.world)
            self.once()
            found = self._array if in_place else self._out
            difference = first_difference(found, self.op, self.world, epsilon)
            if difference is not None:
                raise WrongResult(f"rank {self.rank}: {difference}")
        # Zeros stay zeros however often they are reduced in place, and cost no less than others.
        self._array[:] = 0

    def choose(self, order: Mapping[str, Any]) -> None:
        self._target = None if order["in_place"] else self._out

    def once(self) -> None:
        self.reduce(self._array, self._target, self.op)

    def notes(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        return


def make_array(dtype: str, count: int) -> tuple[Any, float]:
    """Returns an array whose memory is really there, and its dtype's epsilon (0: integers).

    numpy has no bf16, so that one is a torch tensor.
    """
    if dtype == "bf16":
        import torch

        return torch.ones(count, dtype=torch.bfloat16), float(torch.finfo(torch.bfloat16).eps)
    import numpy as np

    kind = np.dtype(_NUMPY_TYPES[dtype])
    return np.ones(count, kind), float(np.finfo(kind).eps) if kind.kind == "f" else 0.0


def serve(make: Callable[[], Contender], rank: int, door: str) -> int:
    """Connects to the parent at the Unix socket `door`, obeys until told to end; exit code."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as parent:
        parent.connect(door)
        lines = parent.makefile("rb")

        def answer(document: dict[str, Any]) -> None:
            parent.sendall(json.dumps(document).encode() + b"\n")

        contender: Contender | None = None
        try:
            contender = make()
            answer({"rank": rank, "pid": os.getpid()})
            while line := lines.readline(ORDER_BYTES_MAX):
                order = json.loads(line)
                if order["do"] == "end":
                    break
                answer({"ok": _obey(contender, order)})
        except Exception as error:  # this process's outermost frame: the parent is to hear of it
            answer({"rank": rank, "error": f"{type(error).__name__}: {error}"})
            return 1
        finally:
            faulthandler.dump_traceback_later(10, exit=True)
            if contender is not None:
                contender.close()
            faulthandler.cancel_dump_traceback_later()
    return 0


def _obey(contender: Contender, order: Mapping[str, Any]) -> Any:
    faulthandler.dump_traceback_later(float(order["deadline_s"]), exit=True)
    try:
        match order["do"]:
            case "prepare":
                contender.prepare(order)
                return None
            case "run":
                contender.choose(order)
                return _run(contender, int(order["warmups"]), int(order["iterations"]))
            case "vitals":
                return vitals()
            case unknown:
                raise ValueError(f"no such order: {unknown!r}")
    finally:
        faulthandler.cancel_dump_traceback_later()


def _run(contender: Contender, warmups: int, iterations: int) -> dict[str, Any]:
    """Times operations.  The warm-ups bring the ranks together: a rank that leaves one knows that
    all others have entered it."""
    clock = time.perf_counter
    once = contender.once
    for _ in range(warmups):
        once()
    times = [0.0] * iterations
    cpu_s = _cpu_s()
    begin_s = before_s = clock()
    for index in range(iterations):
        once()
        now_s = clock()
        times[index] = now_s - before_s
        before_s = now_s
    return {
        "times": times,
        "loop_s": clock() - begin_s,
        "cpu_s": _cpu_s() - cpu_s,
        **contender.notes(),
    }


def _cpu_s() -> float:
    """CPU seconds of this process, all its threads, in user space and in the kernel."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def vitals() -> dict[str, int]:
    """Returns this process's memory now and at its peak, its threads and its sockets."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kept = 0
    for entry in os.scandir("/proc/self/fd"):
        try:
            kept += os.readlink(entry.path).startswith("socket:")
        except OSError:  # the descriptor that this very listing had
            continue
    return {
        "rss_bytes": int(status["VmRSS"].split()[0]) << 10,
        "peak_bytes": int(status["VmHWM"].split()[0]) << 10,
        "threads": int(status["Threads"]),
        "sockets": kept,
    }


def run_as_main(make: Callable[[], Contender], rank: int, door: str) -> None:
    sys.exit(serve(make, rank, door))
