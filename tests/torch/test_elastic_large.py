"""Elastic DDP with buckets of 2 MB: a member is killed from outside at any moment.

Here payloads go through rings in shared memory, one reduction takes many slices, and contributions
are added as they arrive.  All values are whole numbers in double precision, so the sums are exact
in any order, and members are compared bit by bit with a replay of the committed history.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pccl.pytorch import Options, State, elastic_ddp, elastic_group, steps
from tests.torch import exact
from tests.torch.members import Member, Members, Trained, histories, same
from tests.torch.test_elastic import TIMEOUT_S, trained

WIDTH = 512  # a weight is a bucket of 2 MB
LAYERS = 6
BUCKET_MB = 2
STEPS = 20
STEP_S = 0.06  # about; the moment of the death is drawn from so long after a commit
ROUNDS, ROUNDS_SLOW = 3, 20


class Forms(nn.Module):
    """The sum of quadratic forms: gradients are outer products of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        zeros = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
        self.weights = nn.ParameterList(nn.Parameter(zeros.clone()) for _ in range(LAYERS))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        terms = [(inputs * (i + 1)) @ weight @ inputs for i, weight in enumerate(self.weights)]
        return torch.stack(terms).sum()


def batch(number: int, step: int) -> torch.Tensor:
    return exact.whole(1000 * step + number, WIDTH)


def replay(committed: Mapping[int, Sequence[int]]) -> list[torch.Tensor]:
    model = Forms()
    optimizer = torch.optim.SGD(model.parameters(), lr=exact.RATE)
    for step in range(STEPS):
        optimizer.zero_grad()
        who = committed[step + 1]
        for number in who:
            model(batch(number, step)).backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad /= len(who)
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def train(me: Member, start: int) -> Trained:
    dist.init_process_group(
        "pccl",
        init_method=f"pccl://{me.address}/test?start={start}",
        timeout=timedelta(seconds=TIMEOUT_S),
        pg_options=Options(elastic=True),
    )
    group = elastic_group()
    model = elastic_ddp(Forms(), bucket_cap_mb=BUCKET_MB)
    optimizer = torch.optim.SGD(model.parameters(), lr=exact.RATE)
    state = State(model=model, optimizer=optimizer)
    me.introduce(bytes(group.run.communicator.peer_id))
    for step in steps(state, STEPS):
        optimizer.zero_grad()
        model(batch(me.number, step)).backward()
        if group.commit():
            optimizer.step()
        me.say(state.step)
    return trained(me, group, model)


def lose_one(rng: random.Random) -> int:
    """One run in which a member is killed.  Returns how often a step was replayed for that."""
    size = rng.choice([3, 4])
    victim, step, after_s = rng.randrange(size), rng.choice([3, 7]), rng.uniform(0, STEP_S)
    case = f"member {victim} of {size}, {1000 * after_s:.1f} ms after step {step}"
    rest = [number for number in range(size) if number != victim]
    with Members(train, size) as members:
        members.start(*range(size))
        members.await_step(victim, step)
        time.sleep(after_s)
        members.signal(victim)
        found = [members.result(number) for number in rest]
        committed = histories(found, members.numbers(), STEPS)
        assert members.exit_code(victim) == -signal.SIGKILL, case
    expected = replay(committed)
    assert all(same(one, expected) for one in found), case
    assert sorted(committed[1]) == list(range(size)) and sorted(committed[STEPS]) == rest, case
    replays: int = max(retries for one in found for _, _, retries in one.history)
    return replays


@pytest.mark.timeout(240)
def test_a_member_is_killed_at_any_moment_and_the_others_train_on() -> None:
    rng = random.Random(1)
    for _ in range(ROUNDS):
        lose_one(rng)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_some_of_many_deaths_fall_into_a_reduction_which_is_replayed() -> None:
    rng = random.Random(2)
    assert sum(lose_one(rng) for _ in range(ROUNDS_SLOW)) > 0
