"""Waits that end for one rank alone, and barriers that name who is missing."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pccl.pytorch import PcclDistError, TimedOut
from tests.torch.ranks import Rank, run_ranks

LATE_S = 2.0


def impatient(me: Rank) -> list[Any]:
    """Rank 1 comes late; rank 0 gives up waiting, and then waits on."""
    tensor = torch.full((3,), me.rank + 1.0)
    if me.rank == 1:
        time.sleep(LATE_S)
    work = dist.all_reduce(tensor, async_op=True)
    assert work is not None
    gave_up = ""
    if me.rank == 0:
        with pytest.raises(TimedOut) as raised:
            work.wait(timedelta(milliseconds=200))
        gave_up = str(raised.value)
        assert not work.is_completed()
    work.wait()
    dist.barrier()  # nobody leaves while another one may still call
    return [gave_up, tensor.tolist()]


def test_giving_up_a_wait_ends_nothing_and_the_result_comes_all_the_same() -> None:
    first, second = run_ranks(impatient, 2)
    assert first[0].startswith("[pccl:TIMED_OUT") and second[0] == ""
    assert first[1] == second[1] == [3.0, 3.0, 3.0]


def monitored(me: Rank, late: bool) -> str:
    """A barrier of the group's own; rank 1 never comes to it, if it is late."""
    group: Any = dist.group.WORLD
    said = "passed"
    if me.rank == 0 or not late:
        try:
            group.monitored_barrier(timedelta(seconds=3))
        except PcclDistError as error:
            said = str(error)
    else:
        time.sleep(5)
    return said


def test_a_monitored_barrier_lets_all_pass_who_come() -> None:
    assert run_ranks(monitored, 2, False) == ["passed", "passed"]


def test_a_monitored_barrier_that_somebody_misses_ends_in_time() -> None:
    first, _ = run_ranks(monitored, 2, True)
    assert first.startswith("[pccl:TIMED_OUT"), first
