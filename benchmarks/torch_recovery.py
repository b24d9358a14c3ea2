"""How long training stands still when a worker is killed: elastic pccl, torchft, torchrun on gloo.

    ./dev run python benchmarks/torch_recovery.py [--workers 3] [--kills 5] [--json FILE]
    ./dev run python benchmarks/torch_recovery.py --only pccl --only torchrun

Each contender trains the same small DDP model; a worker says when a step is done.  One worker is
killed; what counts is the time until the next step is done on a worker that is left (pccl,
torchft), or on any worker after all have been started again (torchrun on gloo, which is what stock
torch offers).  Where workers are left the killed one is started again before the next kill.
torchft, where it is installed, runs with its defaults, on its own Gloo group and on pccl's.  A
contender whose workers do no step within two minutes of a kill is not killed again: it is said, the
next contender begins, and the exit status stays 0 (a hang is a result of whoever hangs) but for
pccl's own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

WAIT_S = 120.0
WIDTH, LAYERS, SETTLED = 256, 4, 20  # steps after which a worker may be killed
ENOUGH = 10**9
CONTENDERS = ("pccl", "torchft-pccl", "torchft-gloo", "torchrun")
OURS = {"pccl", "torchft-pccl"}


def _model() -> Any:
    from torch import nn

    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))


def _say(folder: Path, step: int) -> None:
    """Appends one line: who, which step, when (a clock that all processes share)."""
    with (folder / f"{os.getpid()}").open("a") as out:
        out.write(f"{step} {time.monotonic():.6f}\n")


def train_elastic(address: str, folder: Path) -> None:
    import torch
    import torch.distributed as dist

    import pccl.pytorch as pt

    torch.set_num_threads(1)
    dist.init_process_group(
        "pccl",
        init_method=f"pccl://{address}/recovery?min=2",
        timeout=timedelta(seconds=WAIT_S),
        pg_options=pt.Options(elastic=True),
    )
    model = pt.elastic_ddp(_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    state = pt.State(model=model, optimizer=optimizer)
    group = pt.elastic_group()
    for _ in pt.steps(state, ENOUGH):
        optimizer.zero_grad()
        model(torch.ones(8, WIDTH)).sum().backward()
        if group.commit():
            optimizer.step()
            _say(folder, state.step)


def train_stock(folder: Path) -> None:
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore, TCPStore
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    # By env:// alone torch 2.13's gloo finds the addresses of the attempt before in the store.
    timeout = timedelta(seconds=WAIT_S)
    where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
    dist.init_process_group(
        "gloo",
        store=PrefixStore(attempt, TCPStore(*where, is_master=False, timeout=timeout)),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timeout,
    )
    model = DistributedDataParallel(_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for step in range(ENOUGH):
        optimizer.zero_grad()
        model(torch.ones(8, WIDTH)).sum().backward()
        optimizer.step()
        _say(folder, step)


def train_torchft(kind: str, lighthouse: str, folder: Path) -> None:
    import torch
    import torchft
    from torch._C._distributed_c10d import TCPStore
    from torchft.process_group import ProcessGroupGloo

    from pccl.pytorch.torchft import DistributedDataParallel, ProcessGroupPCCL

    torch.set_num_threads(1)
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    timeout = timedelta(seconds=WAIT_S)
    manager = torchft.Manager(
        pg=ProcessGroupPCCL(timeout) if kind == "pccl" else ProcessGroupGloo(timeout),
        load_state_dict=model.load_state_dict,
        state_dict=model.state_dict,
        min_replica_size=1,
        timeout=timeout,
        rank=0,
        world_size=1,
        store_addr="127.0.0.1",
        store_port=server.port,
        lighthouse_addr=lighthouse,
        replica_id=f"replica{os.getpid()}",
        hostname="127.0.0.1",
    )
    # torchft 0.2.0's own wrapper raises as soon as an all-reduce fails, on its own group as well.
    ddp = DistributedDataParallel(manager, model)
    stepper = torchft.Optimizer(manager, optimizer)
    while True:
        done = manager.current_step()
        stepper.zero_grad()
        ddp(torch.ones(8, WIDTH)).sum().backward()
        stepper.step()
        if manager.current_step() > done:
            _say(folder, done)


class Watched:
    """Workers that write when they have done a step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> dict[int, list[float]]:
        """Returns, by process, when its steps were done."""
        found = {}
        for path in self.folder.iterdir():
            lines = path.read_text().splitlines()
            found[int(path.name)] = [float(line.split()[1]) for line in lines if " " in line]
        return found

    def settled(self, workers: int) -> list[int]:
        """Waits until so many live workers have done enough steps; returns their process ids."""
        until_s = time.monotonic() + WAIT_S
        while time.monotonic() < until_s:
            alive = [p for p, s in self.steps().items() if len(s) >= SETTLED and _lives(p)]
            if len(alive) >= workers:
                return alive
            time.sleep(0.05)
        raise SystemExit(f"{workers} workers do not train within {WAIT_S:g} s; see {self.folder}")

    def gap_after(self, kill_s: float, killed: int) -> float:
        """Waits for the first steps that are done after a kill by somebody else.

        Returns:
            The longest time without a step, in seconds; infinity if they do none in ``WAIT_S``.
        """
        until_s = time.monotonic() + WAIT_S
        while time.monotonic() < until_s:
            later = [
                done_s
                for process, times in self.steps().items()
                for done_s in times
                if process != killed and done_s > kill_s
            ]
            # The others may finish the step that the victim had sent its part of.
            after = sorted(later)
            if len(after) >= 4:
                return max(b - a for a, b in zip([kill_s, *after], after, strict=False))
            time.sleep(0.01)
        return math.inf


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except (OSError, IndexError):
        return False


def measure_elastic(workers: int, kills: int) -> list[float]:
    from pccl.membership.service import CoordinatorOptions, CoordinatorThread
    from pccl.transport.address import parse_address

    options = CoordinatorOptions(listen=parse_address("127.0.0.1:0", port_min=0))
    with CoordinatorThread(options) as coordinator:
        return _kill_one_by_one("elastic", coordinator.address, workers, kills)


def measure_torchft(role: str, workers: int, kills: int) -> list[float]:
    os.environ["RUST_LOG"] = "error"
    from torchft.coordination import LighthouseServer

    lighthouse = LighthouseServer(bind="127.0.0.1:0", min_replicas=2)
    try:
        return _kill_one_by_one(role, lighthouse.address(), workers, kills)
    finally:
        lighthouse.shutdown()


def _kill_one_by_one(role: str, address: str, workers: int, kills: int) -> list[float]:
    """Kills a worker, and starts another one in its place, again and again."""
    gaps = []
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-W", "ignore", __file__, "--as", role, "--folder", name]
        command += ["--address", address]

        def start() -> subprocess.Popen[bytes]:  # torchft tells every step of its Manager
            return subprocess.Popen(
                command, stderr=None if role == "elastic" else subprocess.DEVNULL
            )

        running = {w.pid: w for w in (start() for _ in range(workers))}
        watched = Watched(Path(name))
        try:
            for _ in range(kills):
                victim = watched.settled(workers)[-1]
                kill_s = time.monotonic()
                os.kill(victim, signal.SIGKILL)
                gaps.append(watched.gap_after(kill_s, victim))
                running.pop(victim).wait()
                if math.isinf(gaps[-1]):
                    break
                another = start()
                running[another.pid] = another
        finally:
            for worker in running.values():
                worker.kill()
                worker.wait()
    return gaps


def measure_stock(workers: int, kills: int) -> list[float]:
    gaps = []
    with tempfile.TemporaryDirectory() as name:
        launcher = subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *(f"--nproc-per-node={workers}", f"--max-restarts={kills}"),
                *("--monitor-interval=0.1", __file__, "--as", "stock", "--folder", name),
            ],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        watched = Watched(Path(name))
        try:
            for _ in range(kills):
                victim = watched.settled(workers)[-1]
                kill_s = time.monotonic()
                os.kill(victim, signal.SIGKILL)
                gaps.append(watched.gap_after(kill_s, victim))
                if math.isinf(gaps[-1]):
                    break
        finally:
            launcher.terminate()
            launcher.wait()
    return gaps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--kills", type=int, default=5, help="of each contender")
    parser.add_argument("--only", action="append", choices=CONTENDERS, help="may be given again")
    parser.add_argument("--json", type=Path, help="write the gaps, in seconds, here")
    parser.add_argument("--as", dest="role", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role == "elastic":
        train_elastic(given.address, given.folder)
        return 0
    if given.role == "stock":
        train_stock(given.folder)
        return 0
    if given.role in ("torchft-gloo", "torchft-pccl"):
        train_torchft(given.role.partition("-")[2], given.address, given.folder)
        return 0
    return compare(given)


def compare(given: argparse.Namespace) -> int:
    """Measures one contender after the other, and prints a line for each as it is known."""
    contenders: dict[str, Callable[[int, int], list[float]]] = {
        "pccl": measure_elastic,
        "torchft-pccl": partial(measure_torchft, "torchft-pccl"),
        "torchft-gloo": partial(measure_torchft, "torchft-gloo"),
        "torchrun": measure_stock,
    }
    gaps: dict[str, list[float]] = {}
    for name in given.only or contenders:
        if name.startswith("torchft") and importlib.util.find_spec("torchft") is None:
            print(f"{name:13} left out: torchft is not installed here")
            continue
        gaps[name] = contenders[name](given.workers, given.kills)
        print(f"{name:13} {given.workers} workers, {told(gaps[name])}", flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps(gaps, indent=1))
    return 1 if any(math.isinf(gap) for name in OURS & set(gaps) for gap in gaps[name]) else 0


def told(gaps: list[float]) -> str:
    """Returns what a contender's line says."""
    ended = [gap for gap in gaps if math.isfinite(gap)]
    text = f"{len(gaps)} kills: "
    if ended:
        median, longest = statistics.median(ended), max(ended)
        text += f"without a step for {median:.3f} s (median), {longest:.3f} s (longest)"
    if len(ended) < len(gaps):
        text += f"{'; then ' if ended else ''}no step within {WAIT_S:g} s of kill {len(gaps)}"
    return text


if __name__ == "__main__":
    sys.exit(main())
