"""What low-communication methods cost in loss, and save in bytes, against averaged gradients.

    ./dev run python benchmarks/low_communication.py            3 seeds, minutes on 2 cores
    ./dev run python benchmarks/low_communication.py --quick    1 seed, and fewer steps

Four processes train the byte-level GPT of `pccl demo` on disjoint shards of the Python standard
library, every method with the same model, inner optimizer, batches and number of tokens.  Loss is
that of the final shared parameters on held-out text, in nats per byte.  Wire bytes are what one
peer has put on its connections for reductions, as the library counts them, headers included.

The bar is 1.05 times DDP's loss.  A line that misses it is printed and marked, not left out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import machine
from pccl.demo.methods import DDP, METHODS, inner_steps_per_reduction, make_outer
from pccl.demo.peer_config import ModelShape
from pccl.membership.service import CoordinatorOptions, CoordinatorThread
from pccl.transport.address import Address

BAR = 1.05
PEERS = 4
SHAPE = ModelShape(layers=4, width=64, heads=4, context=64)
ROWS = 8
WAIT_S = 900.0


@dataclass(frozen=True, slots=True)
class Task:
    """One run of one peer."""

    address: str
    method: str
    seed: int
    peer: int
    steps: int


@dataclass(frozen=True, slots=True)
class Run:
    """One run, as peer 0 saw it; `digests` counts the different final states of all peers."""

    method: str
    seed: int
    start_loss: float
    loss: float
    wire_bytes: int
    reductions: int
    tokens: int
    digests: int
    seconds: float


def work(pipe: Connection) -> None:
    """A peer's process, which does one task after the other: torch is imported once."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    while (task := pipe.recv()) is not None:
        pipe.send(train(task))


def train(task: Task) -> dict[str, Any]:
    import pccl
    from pccl.demo.corpus import default_root, load_corpus
    from pccl.demo.inner import InnerTraining, sha256_of

    corpus = load_corpus(default_root(), shard=task.peer, shards=PEERS)
    training = InnerTraining(
        SHAPE,
        corpus,
        rows=ROWS,
        seed=task.seed,
        shard=task.peer,
        shards=PEERS,
        steps=task.steps,
    )
    start_loss = training.evaluate()
    with pccl.connect(task.address, min_world=PEERS) as comm:
        comm.wait_for(PEERS)
        began_s = time.perf_counter()
        run = average_gradients if task.method == DDP else train_outer
        wire_bytes, reductions, final = run(task, comm, training)
        seconds = time.perf_counter() - began_s
    return {
        "start_loss": start_loss,
        "loss": training.evaluate(),
        "wire_bytes": wire_bytes,
        "reductions": reductions,
        "digest": sha256_of(final),
        "seconds": seconds,
        "tokens": task.steps * training.tokens * PEERS,
    }


def average_gradients(task: Task, comm: Any, training: Any) -> tuple[int, int, list[Any]]:
    """What DistributedDataParallel does, without its overlap, which changes no bit."""
    parameters = list(training.model.parameters())
    wire_bytes = 0
    for step in range(task.steps):
        training.backward(step)
        with comm.step("ddp") as averaged:
            for parameter in parameters:
                averaged.all_reduce(parameter.grad, op="avg")
        wire_bytes += averaged.outcome.wire_bytes
        training.update(step)
    return wire_bytes, task.steps, parameters


def train_outer(task: Task, comm: Any, training: Any) -> tuple[int, int, list[Any]]:
    outer = make_outer(task.method, comm, training.model, layers=SHAPE.layers)
    wire_bytes = reductions = 0
    for step in range(task.steps):
        training.backward(step)
        training.update(step)
        report = outer.step(tokens=training.tokens)
        if report is not None:
            wire_bytes += report.wire_bytes
            reductions += 1
    report = outer.finish()
    if report is not None:
        wire_bytes += report.wire_bytes
        reductions += 1
    return wire_bytes, reductions, outer.parameters()


class Peers:
    """The processes of all runs."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(PEERS):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, method: str, seed: int, steps: int) -> Run:
        with CoordinatorThread(CoordinatorOptions(listen=Address("127.0.0.1", 0))) as coordinator:
            for peer, pipe in enumerate(self._pipes):
                pipe.send(Task(coordinator.address, method, seed, peer, steps))
            found = []
            for peer, pipe in enumerate(self._pipes):
                if not pipe.poll(WAIT_S):
                    raise RuntimeError(f"{method}: peer {peer} says nothing for {WAIT_S:g} s")
                found.append(pipe.recv())
        digests = len({one.pop("digest") for one in found})
        return Run(method=method, seed=seed, digests=digests, **found[0])

    def end(self) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(None)
            process.join(30.0)


def table(runs: Sequence[Run]) -> list[str]:
    """Returns the lines of a Markdown table, one for each method."""
    lines = [
        "| method | reductions | loss, mean of seeds | of each seed | × DDP | bar | "
        "MB sent by a peer | less than DDP |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ddp = [run for run in runs if run.method == DDP]
    for method in dict.fromkeys(run.method for run in runs):
        mine = [run for run in runs if run.method == method]
        loss, sent = fmean(run.loss for run in mine), fmean(run.wire_bytes for run in mine)
        ratio = loss / fmean(run.loss for run in ddp)
        bar = "" if method == DDP else "holds" if ratio <= BAR else "**missed**"
        each = ", ".join(f"{run.loss:.3f}" for run in mine)
        less = fmean(run.wire_bytes for run in ddp) / sent
        lines.append(
            f"| {method} | {mine[0].reductions} | {loss:.3f} | {each} | {ratio:.3f} | {bar} | "
            f"{sent / 1e6:.2f} | {less:.1f} × |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, 100 steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200, help="inner steps of each peer")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--out", type=Path, default=Path("low-communication"))
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.seeds, chosen.steps = 1, 100
    methods = [DDP, *(m for m in chosen.methods.split(",") if m != DDP)]
    assert set(methods) <= set(METHODS), methods
    rounds = max(map(inner_steps_per_reduction, methods))
    assert chosen.steps % rounds == 0, f"--steps must be a multiple of {rounds}"

    peers = Peers()
    runs: list[Run] = []
    for seed in range(1, chosen.seeds + 1):
        for method in methods:
            run = peers.run(method, seed, chosen.steps)
            assert run.digests == 1, f"{method}: the peers' final states differ"
            runs.append(run)
            print(
                f"seed {seed}  {method:13}  loss {run.start_loss:.3f} -> {run.loss:.3f}  "
                f"{run.wire_bytes / 1e6:8.2f} MB  {run.reductions:4} reductions  "
                f"{run.seconds:5.1f} s",
                flush=True,
            )
    peers.end()
    about = machine.describe()
    chosen.out.mkdir(parents=True, exist_ok=True)
    record = {"about": about, "runs": [asdict(run) for run in runs]}
    (chosen.out / "low-communication.json").write_text(json.dumps(record, indent=1) + "\n")
    caption = f"{PEERS} peers, {chosen.steps} steps, {runs[0].tokens / 1e6:.2f} M tokens each"
    lines = table(runs)
    print("\n" + "\n".join(lines) + f"\n\n{caption}; {about['machine']['cpu']}, {about['commit']}")

    from benchmarks.low_communication_picture import draw  # matplotlib takes a second

    picture = chosen.out / "low-communication.png"
    points = [(run.method, run.wire_bytes, run.loss) for run in runs]
    draw(points, BAR, f"{caption}, byte-level GPT", picture)
    print(f"see {picture}")
    return 0 if not any("missed" in line for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
