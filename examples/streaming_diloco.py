"""Trains a small language model whose layers are reduced in turn, while it is trained further.

    pccl coordinator --listen 127.0.0.1:48148                in one terminal
    python examples/streaming_diloco.py 127.0.0.1:48148      in as many others as you like

In a checkout `./dev run` goes before each line; `--local 2` starts all of it.  Workers may be
killed and others started at any time.  The text is Python's standard library.
"""

import argparse
import subprocess
import sys

import torch

import pccl
from pccl.demo.corpus import default_root, load_corpus
from pccl.demo.model import ByteGPT, held_out_batch, training_batch
from pccl.demo.peer_config import ModelShape
from pccl.diloco import StreamingDiLoCo
from pccl.membership.service import CoordinatorOptions, CoordinatorThread
from pccl.transport.address import parse_address

SHAPE = ModelShape(layers=4, width=64, heads=4, context=64)
BATCH = 8


def work(address: str, until: int, workers: int) -> None:
    torch.set_num_threads(1)
    corpus = load_corpus(default_root(), shard=0, shards=1)
    text, held_out = (
        torch.frombuffer(bytearray(part), dtype=torch.uint8)
        for part in (corpus.shard, corpus.held_out)
    )
    judged = held_out_batch(held_out, rows=64, context=SHAPE.context)
    model = ByteGPT(SHAPE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    with pccl.connect(address) as comm:
        comm.wait_for(workers)
        seed = int.from_bytes(comm.peer_id[:3])
        # Every 20 steps each of 4 fragments is reduced once; the result is used 3 steps later.
        outer = StreamingDiLoCo(comm, model, inner_steps=20, fragments=4, overlap=3)
        while outer.outer_step < until:
            optimizer.zero_grad()
            batch = training_batch(
                text, rows=BATCH, context=SHAPE.context, seed=seed, step=outer.inner_step
            )
            model(batch).backward()
            optimizer.step()
            report = outer.step(tokens=batch.numel())
            if report is not None and comm.rank == 0 and report.outer_step % 8 == 0:
                with outer.shared_parameters(), torch.no_grad():
                    loss = float(model(judged))
                print(
                    f"after {outer.inner_step} steps fragment {report.fragment} of "
                    f"{len(report.contributors)} workers: held-out loss {loss:.3f}, "
                    f"{report.wire_bytes / 1e3:.0f} kB sent for it",
                    flush=True,
                )
        outer.finish()
        outer.verify()  # raises if any member holds other bits
        print(f"done: state {outer.digest():016x}\n", end="", flush=True)


def run_locally(count: int, until: int) -> int:
    options = CoordinatorOptions(listen=parse_address("127.0.0.1:0", port_min=0))
    with CoordinatorThread(options) as coordinator:
        command = [sys.executable, __file__, coordinator.address, "--until", str(until)]
        command += ["--workers", str(count)]
        workers = [subprocess.Popen(command) for _ in range(count)]
        return max(abs(worker.wait()) for worker in workers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("address", nargs="?", help="the coordinator's, host:port")
    where.add_argument("--local", type=int, metavar="N", help="start all of it, N workers")
    parser.add_argument("--until", type=int, default=48, help="reductions of a fragment")
    parser.add_argument("--workers", type=int, default=1, help="wait for so many at the start")
    chosen = parser.parse_args()
    if chosen.local:
        sys.exit(run_locally(chosen.local, chosen.until))
    work(chosen.address, chosen.until, chosen.workers)
