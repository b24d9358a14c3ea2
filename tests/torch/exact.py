"""A small model whose training is exact: whole numbers, powers of two, and double precision.

So a distributed step can be compared bit by bit with what one process computes from all ranks'
batches.  Invariant: everything here is a pure function of rank and step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

RATE = 1 / 64
STEPS = 3
WIDTH = 8
GATED_LAYERS = 3


def whole(seed: int, *shape: int) -> torch.Tensor:
    """Whole numbers from -3 to 3."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randint(-3, 4, shape, generator=generator, device="cpu").double()


def fill(module: nn.Module) -> None:
    """Gives every parameter its own whole numbers."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(whole(100 + number, *parameter.shape))


def make_model(layers: int = 2) -> nn.Sequential:
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(WIDTH, WIDTH, dtype=torch.float64), nn.ReLU()]
    model = nn.Sequential(*parts)
    fill(model)
    return model


class Gated(nn.Module):
    """Layers whose inputs are switched on and off by those before.

    So gradients are whole numbers whatever the parameters are, and yet depend on them: however
    many steps there are, sums are exact in any order, on a GPU, too; so are means of up to four.
    """

    def __init__(self) -> None:
        super().__init__()
        layers = (nn.Linear(WIDTH, WIDTH, dtype=torch.float64) for _ in range(GATED_LAYERS))
        self.layers = nn.ModuleList(layers)
        fill(self)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inputs = 12 * inputs
        gate, outputs = torch.ones_like(inputs), []
        for layer in self.layers:
            # FSDP2 reduces a layer's gradients once that of its input is there.
            outputs.append(layer((inputs * gate).requires_grad_()))
            gate = (outputs[-1].detach() > 0).double()
        return torch.stack(outputs)


def batch(rank: int, step: int, rows: int = 4) -> torch.Tensor:
    return whole(1000 * step + rank, rows, WIDTH)


def loss_of(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = model(inputs).sum()
    return loss


def backward(model: nn.Module, inputs: torch.Tensor) -> None:
    loss_of(model, inputs).backward()


def train(model: nn.Module, rank: int, steps: int = STEPS) -> list[torch.Tensor]:
    """Trains on the batches of one rank; returns the parameters."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for step in range(steps):
        optimizer.zero_grad()
        backward(model, batch(rank, step))
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def reference(
    world: int,
    steps: int = STEPS,
    make: Callable[[], nn.Module] = make_model,
    ranks_at: Callable[[int], Sequence[int]] | None = None,
) -> list[torch.Tensor]:
    """What all ranks must hold: one process, the mean of all ranks' gradients per step.

    Args:
        ranks_at: which ranks contribute at a step, if not all; the mean is over these.
    """
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for step in range(steps):
        optimizer.zero_grad()
        ranks = range(world) if ranks_at is None else ranks_at(step)
        for rank in ranks:
            backward(model, batch(rank, step))
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= len(ranks)
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> bool:
    return len(found) == len(wanted) and all(
        torch.equal(one, other) for one, other in zip(found, wanted, strict=True)
    )
