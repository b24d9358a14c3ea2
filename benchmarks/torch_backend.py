"""The torch backend against gloo: latency, DDP and FSDP2 steps, in turns on the same machine.

    ./dev run python benchmarks/torch_backend.py [--ranks 2,4] [--quick] [--threads]

Each contender's ranks are started once per world size and stay; they take turns, so that a
machine's good and bad seconds fall on all alike, and between its turns a contender sleeps in a
read.  A figure is the median over all iterations of all turns of the slowest rank's time; the ratio
of the means is printed beside, since what is slow now and then is slow, too.

The DDP case has 100 MB of gradients in 25 MiB buckets.  Its model reads one row of each parameter,
whose gradient is as large as the parameter all the same, and the optimizer is left out, so at most
30 % of a step is computing (the step without communication is measured, too, and its share of
gloo's step is printed).  For both contenders glibc is told to keep freed memory, else page faults
of fresh gradients would be most of the computing, and more of them for who frees less by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

BACKENDS = ("gloo", "pccl")
PRELOAD = ["torch", "torch.distributed", "torch.distributed.fsdp", "pccl.pytorch.bootstrap"]
WAIT_S = 300.0
BUCKET_MB = 25
LAYERS, WIDTH = 6, 2048  # 6 * 2048 * 2048 * 4 bytes = 100 MB
BARS = {"latency": 1.0, "ddp": 0.8, "fsdp2": 1.0}  # of gloo's time


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement: what a turn does, and how many iterations it has."""

    name: str
    iterations: int


CASES = (Case("latency", 500), Case("ddp", 4), Case("compute", 4), Case("fsdp2", 4))


MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}


class Contender:
    """The ranks of one backend."""

    def __init__(self, backend: str, world: int, folder: str) -> None:
        os.environ.update(MALLOC)  # before the fork server starts
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self.backend = backend
        self.spent_s: defaultdict[str, float] = defaultdict(float)
        self.on_cpu_s: defaultdict[tuple[str, int], float] = defaultdict(float)  # by thread
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=serve, args=(backend, rank, world, f"{folder}/{backend}", theirs)
            )
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def turn(self, case: str, iterations: int) -> list[float]:
        """Returns the slowest rank's seconds, iteration by iteration.

        What the threads of rank 0 have been on a processor meanwhile is added to `on_cpu_s`.
        """
        for pipe in self.pipes:
            pipe.send((case, iterations))
        answers = []
        for pipe in self.pipes:
            if not pipe.poll(WAIT_S):
                raise SystemExit(f"{self.backend} gives no answer for {WAIT_S:g} s")
            answers.append(pipe.recv())
        times, before_s, after_s = answers[0]
        self.spent_s[case] += sum(times)
        for thread, spent_s in after_s.items():
            self.on_cpu_s[case, thread] += spent_s - before_s.get(thread, 0.0)
        return [max(times) for times in zip(*(one[0] for one in answers), strict=True)]

    def busy(self, case: str) -> str:
        """Says how busy rank 0's threads were in all turns: 100 % is one of them that never slept,
        all the time."""
        mine = (s for (of, _), s in self.on_cpu_s.items() if of == case)
        shares = sorted((s / self.spent_s[case] for s in mine), reverse=True)
        first = ", ".join(f"{share:.0%}" for share in shares[:3])
        return f"{self.backend}: {first} of {sum(shares):.0%} in all"

    def end(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(30)
            process.kill()


def serve(backend: str, rank: int, world: int, store: str, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        backend, store=dist.FileStore(store, world), rank=rank, world_size=world
    )
    steps: dict[str, Callable[[], None]] = {}
    while (asked := pipe.recv()) is not None:
        name, iterations = asked
        if name not in steps:
            steps[name] = MAKERS[name](backend)
        steps[name]()  # untimed: brings the ranks together
        times, before_s = [], threads_on_cpu_s()
        for _ in range(iterations):
            began_s = time.perf_counter()
            steps[name]()
            times.append(time.perf_counter() - began_s)
        pipe.send((times, before_s, threads_on_cpu_s()))
    dist.destroy_process_group()


def threads_on_cpu_s() -> dict[int, float]:
    """Returns for how many seconds each thread of this process has been on a processor."""
    found: dict[int, float] = {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            found[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return found


def make_latency(_: str) -> Callable[[], None]:
    import torch
    import torch.distributed as dist

    one = torch.ones(1)
    return lambda: dist.all_reduce(one)


def _layers() -> Any:
    from torch import nn

    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))


def _step(model: Any) -> Callable[[], None]:
    import torch

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    inputs = torch.ones(2, WIDTH)

    def step() -> None:
        optimizer.zero_grad()
        model(inputs).sum().backward()
        optimizer.step()

    return step


def _rows() -> Any:
    """A model with large gradients that computes next to nothing."""
    import torch
    from torch import nn

    class Row(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(WIDTH, WIDTH))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs + self.weight[0].sum()

    return nn.Sequential(*(Row() for _ in range(LAYERS)))


def _ddp(synchronize: bool) -> Callable[[], None]:
    import torch
    from torch.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(_rows(), bucket_cap_mb=BUCKET_MB, gradient_as_bucket_view=True)
    inputs = torch.ones(2)

    def step() -> None:
        model.zero_grad()
        with contextlib.nullcontext() if synchronize else model.no_sync():
            model(inputs).sum().backward()

    return step


def make_ddp(_: str) -> Callable[[], None]:
    return _ddp(True)


def make_compute(_: str) -> Callable[[], None]:
    return _ddp(False)


def make_fsdp2(backend: str) -> Callable[[], None]:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),), backend_override={0: backend})
    model = _layers()
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return _step(model)


MAKERS: dict[str, Callable[[str], Callable[[], None]]] = {
    "latency": make_latency,
    "ddp": make_ddp,
    "compute": make_compute,
    "fsdp2": make_fsdp2,
}


def measure(world: int, turns: int, cases: list[Case]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        contenders = [Contender(backend, world, folder) for backend in BACKENDS]
        try:
            for case in cases:
                times: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
                for _ in range(turns):
                    for contender in contenders:
                        times[contender.backend] += contender.turn(case.name, case.iterations)
                medians = {name: statistics.median(found) for name, found in times.items()}
                means = {f"{name} mean": statistics.mean(found) for name, found in times.items()}
                busy = {f"{one.backend} threads": one.busy(case.name) for one in contenders}
                rows.append({"case": case.name, "world": world, **medians, **means, **busy})
        finally:
            for contender in contenders:
                contender.end()
    return rows


def told(row: dict[str, Any], found: list[dict[str, Any]]) -> str:
    """Returns a line about one row; that about computing says its share of gloo's DDP step."""
    head = f"{row['case']:8} {row['world']} ranks: gloo {row['gloo'] * 1e3:9.3f} ms, "
    head += f"pccl {row['pccl'] * 1e3:9.3f} ms, "
    if row["case"] == "compute":
        whole = next(other["gloo"] for other in found if other["case"] == "ddp")
        return head + f"without communication: {row['gloo'] / whole:.0%} of gloo's step"
    ratio = row["pccl"] / row["gloo"]
    verdict = "ok" if ratio <= BARS[row["case"]] else f"above {BARS[row['case']]:g}"
    mean = row["pccl mean"] / row["gloo mean"]
    return head + f"ratio {ratio:.2f} ({verdict}); of means {mean:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", default="2,4", help="world sizes (2,4)")
    parser.add_argument("--cases", default=",".join(BARS), help="of latency, ddp, fsdp2 (all)")
    parser.add_argument("--quick", action="store_true", help="two turns instead of seven")
    parser.add_argument(
        "--threads", action="store_true", help="say how busy rank 0's threads were, too"
    )
    parser.add_argument("--json", type=Path, help="write the medians, in seconds, here")
    given = parser.parse_args()
    names = given.cases.split(",") + (["compute"] if "ddp" in given.cases else [])
    wanted = [case for case in CASES if case.name in names]
    rows = []
    for world in map(int, given.ranks.split(",")):
        found = measure(world, 2 if given.quick else 7, wanted)
        for row in found:
            print(told(row, found), flush=True)
            if given.threads:
                print(
                    f"{'':8} busiest threads of rank 0: {row['gloo threads']}; "
                    f"{row['pccl threads']}",
                    flush=True,
                )
        rows += found
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
