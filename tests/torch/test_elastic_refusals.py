"""Calls on an elastic group that one member refuses: the others are told at once, and go on."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pccl.pytorch import State, elastic_group
from tests.torch.members import Member, Members
from tests.torch.test_elastic import enter, make_model
from tests.torch.told import SOON_S, told_by

UNKNOWN = torch.float8_e5m2  # no sums of these


def call(how: str) -> None:
    """Rank 0's is wrong as it stands; those of the others are not."""
    first = dist.get_rank() == 0
    if how == "reduction":
        dist.all_reduce(torch.ones(4).to(UNKNOWN if first else torch.float32))
    elif how == "output":
        world = dist.get_world_size()
        dist.all_gather_into_tensor(torch.empty(2 * world + first), torch.ones(2))
    elif how == "gradient":
        gradient = torch.ones(2, 3)
        elastic_group().reduce_gradient(gradient.t() if first else gradient)
    elif first:
        dist.send(torch.eye(2).to_sparse(), 1)
    elif dist.get_rank() == 1:
        dist.recv(torch.ones(4), 0)


def within_a_step(me: Member, how: str) -> list[Any]:
    """A step with a call that member 0 refuses, which its program swallows; then a good one."""
    group = enter(me, 1, 3)
    state = State(model=make_model())
    group.begin(state)
    began_s = time.monotonic()
    said = told_by(lambda: call(how))
    committed = [group.commit()]
    seconds = time.monotonic() - began_s
    group.begin(state)
    total = torch.tensor([float(1 << me.number)])
    dist.all_reduce(total)
    committed.append(group.commit())
    return [dist.get_rank(), said, committed, seconds, total.item(), state.step]


@pytest.mark.parametrize("how", ["reduction", "output", "gradient"])
def test_a_call_that_one_member_refuses_in_a_step_rolls_it_back_on_all(how: str) -> None:
    with Members(within_a_step, how) as members:
        members.start(0, 1, 2)
        found = [members.result(number) for number in range(3)]
    assert sorted(rank for rank, *_ in found) == [0, 1, 2]
    for rank, said, committed, seconds, total, step in found:
        assert said[0] == ("Misused" if rank == 0 else "nothing"), said
        assert committed == [False, True] and total == 7.0 and step == 1, found
        assert seconds < SOON_S, found


def beside_steps(me: Member, how: str) -> list[Any]:
    """The same after a commit, where errors are raised at once."""
    group = enter(me, 1, 3)
    state = State(model=make_model())
    alone = told_by(lambda: dist.all_reduce(torch.ones(4).to(UNKNOWN)))  # local so far
    group.begin(state)
    assert group.commit()
    said = told_by(lambda: call(how))
    total = torch.tensor([float(1 << me.number)])
    dist.all_reduce(total)
    group.begin(state)
    assert group.commit()
    return [alone, said, total.item(), dist.get_rank()]


@pytest.mark.parametrize("how", ["reduction", "output", "message"])
def test_a_call_that_one_member_refuses_between_steps_is_an_error_on_all(how: str) -> None:
    with Members(beside_steps, how) as members:
        members.start(0, 1, 2)
        found = [members.result(number) for number in range(3)]
    for alone, said, total, rank in found:
        assert alone[0] == "Misused" and alone[2] < 5.0, alone
        concerned = how != "message" or rank == 1
        wanted = "Misused" if rank == 0 else "Mismatch" if concerned else "nothing"
        assert said[0] == wanted and said[2] < SOON_S, found
        assert wanted != "Mismatch" or "rank 0" in said[1], said
        assert wanted != "Mismatch" or "nothing (its own error says why)" in said[1], said
        assert total == 7.0, found
