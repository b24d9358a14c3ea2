"""What becomes of a static group that loses a rank, and of calls that come late.

Every survivor raises within seconds, whatever it waits for; nobody hangs and nobody crashes.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

from pccl.pytorch import Aborted, Mismatch, Options, PcclDistError, PeerLost, StaleView, TimedOut
from tests.torch import exact
from tests.torch.ranks import Rank, run_ranks, started
from tests.torch.told import SOON_S, told_by

# ---- a rank is killed


def wait_for_end(me: Rank, how: str, victim: int) -> list[Any]:
    tensor = torch.ones(1 << 20)
    dist.all_reduce(tensor)
    me.say("ready")
    if me.rank == victim:
        time.sleep(60)
    said = [told_by(lambda: CALLS[how](me))]
    kept = torch.full((4,), 5.0)
    said.append(told_by(lambda: dist.all_reduce(kept)))
    said.append(told_by(dist.barrier))
    said.append(("kept", str(torch.equal(kept, torch.full((4,), 5.0))), 0.0))
    dist.destroy_process_group()
    return said


def reduce_for_ever(me: Rank) -> None:
    tensor = torch.ones(1 << 20)
    while True:
        dist.all_reduce(tensor)


def wait_for_a_future(me: Rank) -> None:
    work = dist.all_reduce(torch.ones(4), async_op=True)
    assert work is not None
    work.get_future().wait()


def backward(me: Rank) -> None:
    model = DDP(exact.make_model(), bucket_cap_mb=1e-4)
    exact.backward(model, exact.batch(me.rank, 0))


CALLS: dict[str, Callable[[Rank], None]] = {
    "all_reduce": lambda me: dist.all_reduce(torch.ones(4)),
    "all_gather": lambda me: dist.all_gather_into_tensor(torch.ones(me.world), torch.ones(1)),
    "barrier": lambda me: dist.barrier(),
    "future": wait_for_a_future,
    "object": lambda me: dist.all_gather_object([None] * me.world, me.rank),
}


@pytest.mark.parametrize("victim", [0, 2], ids=["the coordinator's rank", "another rank"])
@pytest.mark.parametrize("how", list(CALLS))
def test_a_killed_rank_ends_the_call_of_every_survivor(how: str, victim: int) -> None:
    with started(wait_for_end, 3, how, victim) as ranks:
        for rank in range(3):
            assert ranks.hear(rank) == "ready"
        ranks.kill(victim)
        for rank in {0, 1, 2} - {victim}:
            first, second, third, kept = ranks.hear(rank)
            # The loss may be known before the call begins.
            assert re.search(r"\[pccl:(PEER_LOST|STALE_VIEW)", first[1]), first
            assert first[2] < SOON_S, first
            assert f"rank {victim}" in first[1], first
            assert "destroy it and make a new one" in first[1], first
            for later in (second, third):
                assert later[1].count("destroy it") == 1 and "retry" not in later[1], later
                assert later[0] == "StaleView" and later[2] < 1.0, later
            assert kept[1] == "True"
            assert ranks.exit_code(rank) == 0


def test_the_end_of_the_first_rank_s_process_shows_long_before_a_coordinator_s_grace_is_over() -> (
    None
):
    options = Options(coordinator_grace_s=300.0)
    with started(wait_for_end, 3, "all_reduce", 0, options=options) as ranks:
        for rank in range(3):
            assert ranks.hear(rank) == "ready"
        ranks.kill(0)
        for rank in (1, 2):
            first = ranks.hear(rank)[0]
            assert re.search(r"\[pccl:(PEER_LOST|STALE_VIEW)", first[1]) and "rank 0" in first[1]
            assert "whose process ran the coordinator" in first[1] and first[2] < SOON_S, first


@pytest.mark.parametrize("how", ["all_reduce", "future"])
def test_a_stopped_first_rank_ends_the_call_of_every_other(how: str) -> None:
    """It runs the coordinator, which is stopped with it; the group's timeout is far away."""
    with started(wait_for_end, 3, how, 0) as ranks:
        for rank in range(3):
            assert ranks.hear(rank) == "ready"
        ranks.kill(0, signal.SIGSTOP)
        for rank in (1, 2):
            first, second, third, kept = ranks.hear(rank)
            assert "[pccl:PEER_LOST" in first[1] and "rank 0" in first[1], first
            assert "rank 0, whose process ran the coordinator" in first[1], first
            assert "is closed" not in first[1] and "has left" not in first[1], first
            assert first[2] < 30.0, first
            assert second[0] == third[0] == "StaleView" and kept[1] == "True"
            assert ranks.exit_code(rank) == 0


def die_before_a_child(me: Rank, victim: int) -> tuple[str, str, float]:
    """The victim has forked: a child that outlives it keeps its connections open."""
    dist.all_reduce(torch.ones(4))
    if me.rank == victim:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        me.say(child)
        time.sleep(60)
    me.say("ready")
    return told_by(lambda: dist.all_reduce(torch.ones(4)))


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_the_death_of_a_rank_shows_although_a_process_that_it_forked_lives_on(victim: int) -> None:
    with started(die_before_a_child, 3, victim) as ranks:
        said = [ranks.hear(rank) for rank in range(3)]
        try:
            ranks.kill(victim)
            for rank in {0, 1, 2} - {victim}:
                _, text, seconds = ranks.hear(rank)
                assert re.search(r"\[pccl:(PEER_LOST|STALE_VIEW)", text), text
                assert f"rank {victim}" in text and seconds < 30.0, (text, seconds)
        finally:
            os.kill(said[victim], signal.SIGKILL)


def come_late(me: Rank) -> float:
    if me.rank == 1:
        time.sleep(12.0)
    tensor = torch.ones(2)
    dist.all_reduce(tensor)
    return float(tensor.sum().item())


def test_a_late_rank_is_waited_for_while_the_first_one_lives() -> None:
    assert run_ranks(come_late, 2) == [4.0, 4.0]


def lose_one_inside(me: Rank, what: str, victim: int) -> tuple[str, str, float]:
    if what == "backward":
        model = DDP(exact.make_model(layers=4), bucket_cap_mb=1e-4)
        exact.train(model, me.rank, 1)
        if me.rank == victim:
            parameter = next(iter(model.parameters()))
            parameter.register_hook(lambda _: os.kill(os.getpid(), signal.SIGKILL))
        said = told_by(lambda: exact.train(model, me.rank, 2))
    else:
        me.say("ready")
        said = told_by(lambda: reduce_for_ever(me))
    return said


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_killed_inside_backward_ends_backward_everywhere(victim: int) -> None:
    with started(lose_one_inside, 3, "backward", victim) as ranks:
        for rank in {0, 1, 2} - {victim}:
            kind, text, seconds = ranks.hear(rank)
            assert kind == "RuntimeError" or kind == "PeerLost", (kind, text)
            assert "[pccl:PEER_LOST" in text or "[pccl:STALE_VIEW" in text, text
            assert seconds < SOON_S + 5, seconds
            # What happened and what to do, in words of who trains by torch.
            assert f"rank {victim}" in text and "torchrun --max-restarts" in text, text
            assert not re.search(r"min_world|\bstep \d|in epoch|retry", text), text
            assert victim == 0 or "has ended, is stopped or cannot be reached" in text, text
            assert ranks.exit_code(rank) == 0
        assert ranks.exit_code(victim) == -signal.SIGKILL


def test_a_rank_killed_inside_a_large_reduction_ends_it_everywhere() -> None:
    with started(lose_one_inside, 3, "reduction", 1) as ranks:
        for rank in range(3):
            assert ranks.hear(rank) == "ready"
        time.sleep(0.3)  # somewhere in the middle of one of many
        ranks.kill(1)
        for rank in (0, 2):
            kind, text, seconds = ranks.hear(rank)
            assert kind == "PeerLost" and "rank 1" in text and seconds < SOON_S, (kind, text)
            assert ranks.exit_code(rank) == 0


# ---- time, and the end


def _world() -> Any:
    return dist.group.WORLD


def late(me: Rank) -> list[Any]:
    _world().set_timeout(timedelta(seconds=1))
    if me.rank == 1:
        time.sleep(3)
    said = told_by(dist.barrier)
    _world().set_timeout(timedelta(seconds=30))
    total = torch.ones(2)
    dist.all_reduce(total)
    _world().set_timeout(timedelta(seconds=1))
    opts = dist.AllreduceOptions()
    opts.timeout = timedelta(seconds=30)
    if me.rank == 1:
        time.sleep(2)  # longer than the group's time, but not than this call's
    _world().allreduce([total], opts).wait()
    return [said, total.tolist()]


def test_a_call_that_is_late_has_timed_out_on_all_ranks_and_the_group_goes_on() -> None:
    for (kind, text, _), total in run_ranks(late, 2):
        assert kind == "TimedOut" and text.startswith("[pccl:TIMED_OUT"), (kind, text)
        assert "after 1 s on rank 0; " in text and "another one" in text, text
        assert total == [4.0, 4.0]


def _future_of(tensor: torch.Tensor) -> None:
    work = dist.all_reduce(tensor, async_op=True)
    assert work is not None
    work.get_future().wait()


def late_future(me: Rank) -> tuple[str, str, float]:
    _world().set_timeout(timedelta(seconds=1))
    if me.rank == 1:
        time.sleep(4)
        return told_by(lambda: dist.all_reduce(torch.ones(2)))
    return told_by(lambda: _future_of(torch.ones(2)))


def test_a_future_has_the_deadline_of_its_call() -> None:
    for kind, text, seconds in run_ranks(late_future, 2):
        assert "[pccl:TIMED_OUT" in text and seconds < SOON_S, (kind, text)


def aborted(me: Rank) -> list[Any]:
    if me.rank == 0:
        work: Any = dist.all_reduce(torch.ones(4), async_op=True)
        future = work.get_future()
        _world().abort()
        me.meet("aborted")
        said = [told_by(work.wait), told_by(future.wait)]
        said.append(told_by(lambda: dist.all_reduce(torch.ones(4))))
    else:
        me.meet("aborted")
        said = [told_by(lambda: dist.all_reduce(torch.ones(4)))]
    dist.destroy_process_group()
    return said


def test_abort_ends_what_is_in_flight_here_and_is_a_loss_to_the_others() -> None:
    here, there = run_ranks(aborted, 2)
    assert all("[pccl:ABORTED" in text and seconds < 1 for _, text, seconds in here), here
    assert "[pccl:PEER_LOST" in there[0][1], there


def in_a_fork(me: Rank) -> str:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        _, text, _ = told_by(lambda: dist.all_reduce(torch.ones(1)))
        os.write(write, text.encode())
        os._exit(0)
    os.waitpid(child, 0)
    dist.barrier()
    return os.read(read, 4096).decode()


def test_a_fork_is_told_that_the_group_is_not_its_own() -> None:
    for text in run_ranks(in_a_fork, 2):
        assert text.startswith("[pccl:MISUSED") and "parent process" in text, text


def test_the_errors_are_in_the_hierarchies_that_programs_catch() -> None:
    assert issubclass(PcclDistError, dist.DistBackendError)
    assert issubclass(PeerLost, dist.DistNetworkError) and issubclass(StaleView, PeerLost)
    assert issubclass(TimedOut, TimeoutError) and issubclass(Mismatch, dist.DistError)
    error = Aborted("why", op="all_reduce", epoch=3)
    assert str(error) == "[pccl:ABORTED epoch=3 op=all_reduce] why"
