"""A joiner whose training step is another one goes, and members' steps are as without it."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pccl.pytorch import Mismatch, State, steps
from tests.torch.members import Member, Members
from tests.torch.test_elastic import enter, make_model

WRONG = 9  # the number of the joiner whose script is another one


def reduce(kind: str) -> torch.Tensor | None:
    """What the joiner calls instead of a sum of two f64."""
    match kind:
        case "dtype":
            dist.all_reduce(torch.ones(2, dtype=torch.float32))
        case "size":
            dist.all_reduce(torch.ones(3, dtype=torch.float64))
        case "op":
            dist.all_reduce(torch.ones(2, dtype=torch.float64), op=dist.ReduceOp.MAX)
        case "collective":
            dist.broadcast(torch.ones(2, dtype=torch.float64), 0)
    return None


def count(me: Member, kind: str, until: int) -> Any:
    """Members add up who takes part, step for step; nobody else's step may be rolled back."""
    group = enter(me, 1, 2)
    state = State(model=make_model())
    seen: list[tuple[int, float]] = []
    refused = 0
    try:
        for _ in steps(state, until):
            total = torch.tensor([float(1 << me.number), 1.0], dtype=torch.float64)
            if me.number == WRONG:
                reduce(kind)
            else:
                dist.all_reduce(total)
            if group.commit():
                present = sum(2.0**number for number in (0, 1))
                assert total.tolist() in ([present, 2.0], [present + 2.0**WRONG, 3.0]), total
                seen.append((state.step, total[0].item()))
            else:
                refused += 1
            me.say(state.step)
            time.sleep(0.01)
    except Mismatch as error:
        return str(error)
    return seen, refused


@pytest.mark.parametrize("kind", ["dtype", "size", "op", "collective"])
def test_a_joiner_that_reduces_something_else_goes_and_no_member_s_step_is_rolled_back(
    kind: str,
) -> None:
    with Members(count, kind, 250) as members:
        members.start(0, 1)
        members.await_step(0, 20)
        members.start(WRONG)
        text = members.result(WRONG)
        found = [members.result(number) for number in (0, 1)]
    assert text.startswith("[pccl:MISMATCH") and "put out" in text, text
    assert "posted all_reduce(sum, f64[2]" in text and text.count("rank ") >= 2, text
    for seen, refused in found:
        assert [step for step, _ in seen] == list(range(1, 251)) and refused == 0
        assert {total for _, total in seen} == {3.0}
