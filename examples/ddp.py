"""Trains a small model of text with DistributedDataParallel on the pccl backend.

    torchrun --standalone --nproc-per-node=4 examples/ddp.py

In a checkout `./dev run` goes before that.  Nothing of pccl is imported: torch finds the
backend by itself where pccl is installed.  The text is Python's own documentation, which every
interpreter carries.
"""

import argparse
import pydoc_data.topics

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

CONTEXT = 12  # bytes that the model sees
HELD_OUT = 8192  # samples that it never learns from
LETTERS = 256


class Text(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Bytes, each with those before it."""

    def __init__(self, data: bytes) -> None:
        self.data = torch.frombuffer(bytearray(data), dtype=torch.uint8).long()

    def __len__(self) -> int:
        return len(self.data) - CONTEXT

    def __getitem__(self, at: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.data[at : at + CONTEXT], self.data[at + CONTEXT]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(LETTERS, 24),
        nn.Flatten(),
        nn.Linear(24 * CONTEXT, 256),
        nn.GELU(),
        nn.Linear(256, LETTERS),
    )


def held_out_loss(model: nn.Module, text: Text, rank: int, world: int) -> float:
    """The mean over all ranks, each of which looks at its own share."""
    at = range(rank, len(text), world)
    contexts = torch.stack([text[i][0] for i in at])
    letters = torch.stack([text[i][1] for i in at])
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(contexts), letters)
    dist.all_reduce(loss, dist.ReduceOp.AVG)
    return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128, help="samples per rank and step")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("pccl")
    rank, world = dist.get_rank(), dist.get_world_size()
    data = "\n".join(pydoc_data.topics.topics.values()).encode()
    text, held_out = Text(data[:-HELD_OUT]), Text(data[-HELD_OUT:])
    loader = DataLoader(text, chosen.batch, sampler=DistributedSampler(text, shuffle=True))
    model = DistributedDataParallel(make_model())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step, (contexts, letters) in zip(range(chosen.steps + 1), loader, strict=False):
        if step % 50 == 0 or step == chosen.steps:
            loss = held_out_loss(model.module, held_out, rank, world)
            if rank == 0:
                print(f"step {step}: held-out loss {loss:.3f} on {world} ranks", flush=True)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(contexts), letters).backward()
        optimizer.step()
    check = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    every = [torch.empty_like(check) for _ in range(world)]
    dist.all_gather(every, check)
    assert all(torch.equal(check, other) for other in every), "ranks differ"
    if rank == 0:
        print("all ranks hold the same bits")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
