"""Members whose shared state is a model and its optimizer, wherever their tensors lie."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

import pccl
from tests.torch import exact
from tests.torch.members import Member, Members

FLIPPED_AT, SYNCED_AT, UNTIL = 3, 4, 300
PAUSE_S = 0.03


def share(me: Member, device: str, start: int) -> list[Any]:
    """Returns parameters, optimizer state, the state's root, and bytes received in a sync.

    In member 1's memory a bit flips, which the sync finds; member 2 begins with other contents.
    """
    model = exact.make_model().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=exact.RATE)
    if me.number == 2:
        for parameter in model.parameters():
            parameter.data.fill_(7.0)
    state, received = pccl.SharedState({"model": model, "optimizer": optimizer}), 0
    with pccl.connect(me.address, min_world=start, timeout_s=60, state=state) as comm:
        while state.revision < UNTIL:
            optimizer.zero_grad()
            batch = exact.batch(me.number, state.revision).to(device)
            exact.loss_of(model, batch).backward()
            gradients = [_gradient(parameter) for parameter in model.parameters()]
            with comm.step("train") as step:
                for gradient in gradients:
                    step.all_reduce(gradient, op="avg")
            with state.update(step):
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter.grad = torch.from_numpy(gradient).to(device)
                optimizer.step()
            me.say(state.revision)
            time.sleep(PAUSE_S)
            if state.revision == FLIPPED_AT and me.number == 1:
                next(model.parameters()).data.view(-1)[0] += 1.0
            if state.revision == SYNCED_AT:
                received = comm.sync().byte_count
    parameters = [p.detach().cpu().numpy().copy() for p in model.parameters()]
    values = [value for held in optimizer.state.values() for value in held.values()]
    moments = [value.detach().cpu().numpy().copy() for value in values]
    return [parameters, moments, state.root(), received]


def _gradient(parameter: torch.Tensor) -> Any:
    assert parameter.grad is not None
    return parameter.grad.cpu().numpy().copy()


def check_sharing(device: str) -> None:
    """Fails unless a newcomer and both founders end with the same bits, one of them repaired."""
    with Members(share, device) as members:
        members.start(0, 1, start=2)
        members.await_step(0, 10)
        members.start(2, start=2)
        found = [members.result(number) for number in range(3)]
    first = found[0]
    for parameters, moments, root, _ in found[1:]:
        assert root == first[2]
        assert all(map(np.array_equal, parameters, first[0]))
        assert len(moments) == len(first[1]) > 0 and all(map(np.array_equal, moments, first[1]))
    assert sorted(one[3] > 0 for one in found) == [False, False, True]
