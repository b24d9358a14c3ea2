"""Trains a small model of text on workers that come and go.

    pccl coordinator --listen 127.0.0.1:48148          in one terminal
    python examples/elastic_ddp.py 127.0.0.1:48148     in as many others as you like, at any time

In a checkout `./dev run` goes before each line; for other machines the coordinator listens on an
address of the network, with --insecure.  Kill a worker: the others train on.  Start one: it gets
the state.  `--local 4` starts all, kills one, lets another in.  The text is Python's own docs.
"""

import argparse
import contextlib
import os
import pydoc_data.topics
import subprocess
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

import pccl.pytorch as pt
from pccl.membership.service import CoordinatorOptions, CoordinatorThread
from pccl.transport.address import parse_address

CONTEXT, BATCH = 12, 128  # bytes that the model sees; samples per worker and step


class Text(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __init__(self) -> None:  # bytes, each with those before it
        data = "\n".join(pydoc_data.topics.topics.values()).encode()
        self.data = torch.frombuffer(bytearray(data), dtype=torch.uint8).long()

    def __len__(self) -> int:
        return len(self.data) - CONTEXT

    def __getitem__(self, at: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.data[at : at + CONTEXT], self.data[at + CONTEXT]


def make_model() -> nn.Module:
    parts = [nn.Embedding(256, 24), nn.Flatten(), nn.Linear(24 * CONTEXT, 256), nn.GELU()]
    return nn.Sequential(*parts, nn.Linear(256, 256))


def work(address: str, until: int) -> None:
    torch.set_num_threads(1)
    url, options = f"pccl://{address}/text?min=2", pt.Options(elastic=True)
    dist.init_process_group("pccl", url, timeout=timedelta(seconds=120), pg_options=options)
    group = pt.elastic_group()
    model = pt.elastic_ddp(make_model())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    state = pt.State(model=model, optimizer=optimizer, loader=pt.Batches(Text(), BATCH))
    size = 0
    for contexts, letters in pt.steps(state, until):
        if size != (size := group.size()) and group.rank() == 0:
            print(f"from step {state.step} on: {size} workers", flush=True)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(contexts), letters)
        loss.backward()
        if group.commit():
            optimizer.step()
            if state.step % 100 == 0 and group.rank() == 0:
                print(f"step {state.step}: loss {loss:.3f} on {size} workers", flush=True)
    print(f"done at step {state.step}: parameters {state.digest().hex()[:12]}", flush=True)
    dist.destroy_process_group()


def run_locally(count: int, until: int) -> None:
    options = CoordinatorOptions(listen=parse_address("127.0.0.1:0", port_min=0))
    with CoordinatorThread(options) as coordinator:
        command = [sys.executable, __file__, coordinator.address, "--until", str(until)]
        (lines, said), (gate, key) = os.pipe(), os.pipe()
        workers = [subprocess.Popen(command, stdout=said) for _ in range(count)]
        spare = subprocess.Popen([*command, "--spare"], stdin=gate)
        os.close(said)  # what is read ends with the workers
        for line in os.fdopen(lines):
            print(line, end="", flush=True)
            if line.startswith("step 100:"):
                print("--- one worker is killed, another one comes", flush=True)
                workers.pop().kill()
                os.close(key)
        with contextlib.suppress(subprocess.TimeoutExpired):
            spare.wait(20)  # if it has not come in by now it would wait for others
        spare.kill()
        assert not any(worker.wait() for worker in workers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("address", nargs="?", help="the coordinator's, host:port")
    where.add_argument("--local", type=int, metavar="N", help="start all of it, N workers")
    parser.add_argument("--spare", action="store_true", help="begin when standard input ends")
    parser.add_argument("--until", type=int, default=1500, help="steps")
    chosen = parser.parse_args()
    _ = chosen.spare and sys.stdin.read()  # torch is imported by now
    run_locally(chosen.local, chosen.until) if chosen.local else work(chosen.address, chosen.until)
