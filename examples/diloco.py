"""Trains a small model of text on workers that meet once in 25 steps, with DiLoCo.

    pccl coordinator --listen 127.0.0.1:48148      in one terminal
    python examples/diloco.py 127.0.0.1:48148      in as many others as you like, at any time

In a checkout `./dev run` goes before each line.  Kill a worker: the others train on, with the same
parameters.  Start one: it receives parameters and outer momentum, and joins.  `--delayed` lets a
reduction travel while the next steps are computed; all workers must say so.  `--local 3` starts
coordinator and workers here.  The text is Python's own documentation.
"""

import argparse
import pydoc_data.topics
import subprocess
import sys

import torch
from torch import nn

import pccl
from pccl.diloco import AsyncDiLoCo, DiLoCo, OuterOptimizer
from pccl.membership.service import CoordinatorOptions, CoordinatorThread
from pccl.transport.address import parse_address

CONTEXT, BATCH = 12, 128  # bytes that the model sees; samples per worker and inner step


def make_model() -> nn.Module:
    parts = [nn.Embedding(256, 24), nn.Flatten(), nn.Linear(24 * CONTEXT, 256), nn.GELU()]
    return nn.Sequential(*parts, nn.Linear(256, 256))


def read_text() -> tuple[torch.Tensor, torch.Tensor]:
    data = "\n".join(pydoc_data.topics.topics.values()).encode()
    text = torch.frombuffer(bytearray(data), dtype=torch.uint8).long()
    return text[:-8192], text[-8192:]  # the end is held out


def loss_on(model: nn.Module, text: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    contexts = text[starts.unsqueeze(1) + torch.arange(CONTEXT)]
    return nn.functional.cross_entropy(model(contexts), text[starts + CONTEXT])


def work(address: str, until: int, delayed: bool, workers: int) -> None:
    torch.set_num_threads(1)
    text, held_out = read_text()
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    with pccl.connect(address) as comm:
        comm.wait_for(workers)
        outer: OuterOptimizer
        dice = torch.Generator().manual_seed(int.from_bytes(comm.peer_id[:4]))
        if delayed:  # which acts like momentum, so there is less of that
            outer = AsyncDiLoCo(comm, model, inner_steps=25, momentum=0.5, eager=True)
        else:
            outer = DiLoCo(comm, model, inner_steps=25)
        while outer.outer_step < until:
            optimizer.zero_grad()
            starts = torch.randint(len(text) - CONTEXT, (BATCH,), generator=dice)
            loss = loss_on(model, text, starts)
            loss.backward()
            optimizer.step()
            report = outer.step(tokens=BATCH)
            if report is not None and comm.rank == 0 and report.outer_step % 5 == 0:
                with outer.shared_parameters(), torch.no_grad():
                    judged = loss_on(model, held_out, torch.arange(len(held_out) - CONTEXT))
                print(
                    f"outer step {report.outer_step}: held-out loss {judged:.3f}, "
                    f"{len(report.contributors)} workers, {report.wire_bytes / 1e6:.1f} MB sent",
                    flush=True,
                )
        outer.finish()
        outer.verify()  # raises if any member holds other bits
        print(
            f"done after {outer.tokens} samples: state {outer.digest():016x}\n", end="", flush=True
        )


def run_locally(count: int, until: int, delayed: bool) -> int:
    options = CoordinatorOptions(listen=parse_address("127.0.0.1:0", port_min=0))
    with CoordinatorThread(options) as coordinator:
        command = [sys.executable, __file__, coordinator.address, "--until", str(until)]
        command += ["--workers", str(count), *(["--delayed"] if delayed else [])]
        workers = [subprocess.Popen(command) for _ in range(count)]
        return max(abs(worker.wait()) for worker in workers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("address", nargs="?", help="the coordinator's, host:port")
    where.add_argument("--local", type=int, metavar="N", help="start all of it, N workers")
    parser.add_argument("--until", type=int, default=20, help="outer steps")
    parser.add_argument("--workers", type=int, default=1, help="wait for so many at the start")
    parser.add_argument("--delayed", action="store_true", help="one step delayed (AsyncDiLoCo)")
    chosen = parser.parse_args()
    if chosen.local:
        sys.exit(run_locally(chosen.local, chosen.until, chosen.delayed))
    work(chosen.address, chosen.until, chosen.delayed, chosen.workers)
