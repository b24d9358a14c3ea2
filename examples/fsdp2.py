"""Trains a small model of text with FSDP2, as one replica or as one of several that come and go.

    torchrun --standalone --nproc-per-node=2 examples/fsdp2.py

shards the model over two processes.  With the address of a coordinator it is one replica of an
elastic run:

    pccl coordinator --listen 127.0.0.1:48148
    torchrun --standalone --nproc-per-node=2 examples/fsdp2.py 127.0.0.1:48148

Start the second line again, here or elsewhere, and both train together; kill one, and the other
goes on.  For other machines the coordinator listens on an address of the network, with --insecure.
In a checkout `./dev run` goes before each line.  The text is Python's own documentation.
"""

import argparse
import pydoc_data.topics
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

import pccl.pytorch as pt

CONTEXT, BATCH = 12, 128  # bytes that the model sees; samples per process and step


class Text(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Bytes, each with those before it."""

    def __init__(self) -> None:
        data = "\n".join(pydoc_data.topics.topics.values()).encode()
        self.data = torch.frombuffer(bytearray(data), dtype=torch.uint8).long()

    def __len__(self) -> int:
        return len(self.data) - CONTEXT

    def __getitem__(self, at: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.data[at : at + CONTEXT], self.data[at + CONTEXT]


def make_model(shards: Any) -> nn.Module:
    torch.manual_seed(0)
    embedding = nn.Sequential(nn.Embedding(256, 24), nn.Flatten())
    model = nn.Sequential(embedding, nn.Linear(24 * CONTEXT, 256), nn.GELU(), nn.Linear(256, 256))
    mesh = DeviceMesh.from_group(shards, "cpu")
    for layer in (model[0], model[1], model[3]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("coordinator", nargs="?", help="host:port; without it: one fixed replica")
    parser.add_argument("--until", type=int, default=300, help="steps in all")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("pccl")  # the replica: fixed, its processes live and die together
    shards, rank, parts = dist.group.WORLD, dist.get_rank(), dist.get_world_size()
    model = make_model(shards)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batches = pt.Batches(Text(), BATCH)
    group = None
    if chosen.coordinator is not None:
        where = {"coordinator": chosen.coordinator, "job": "text", "peer_group": rank}
        options = pt.Options(elastic=True, **where)
        group = dist.new_group(list(range(parts)), backend="pccl", pg_options=options)
        pt.elastic_fsdp(model, group, shards)
    state = pt.State(model=model, optimizer=optimizer, loader=batches)
    turns: Iterable[Any] = (
        pt.steps(state, chosen.until, group=group) if group else range(chosen.until)
    )
    for turn in turns:
        # Each process of a replica takes its own part of what the replica takes.
        contexts, letters = turn if group else batches.batch(0, 1)
        optimizer.zero_grad()
        mine = slice(rank, None, parts)
        loss = nn.functional.cross_entropy(model(contexts[mine]), letters[mine])
        loss.backward()
        if group is None or group.commit():
            optimizer.step()
            if group is None:
                state.step += 1
                batches.advance(1)
            if state.step % 50 == 0 and rank == 0:
                replicas = group.size() if group else 1
                print(f"step {state.step}: loss {loss:.3f} on {replicas} replicas", flush=True)
    print(f"done at step {state.step}: shard {rank} is {state.digest().hex()[:12]}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
