"""A communicator's life: views, waiting for others, awaiting, and every way it can end."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import traceback

import numpy as np
import pytest

import pccl
from pccl import session
from pccl.membership import messages as m
from pccl.membership.agent import Standing
from pccl.transport.engine_api import BegunStep
from tests.unit.face.fake_run import FakeRun, sit


def test_rank_and_world_follow_the_view() -> None:
    run = FakeRun()
    comm, _, _ = sit(run, b"one")
    assert (comm.rank, comm.world_size) == (0, 1)
    other, _, _ = sit(run, b"two")
    assert comm.view == pccl.View(run.epoch, (comm.peer_id, other.peer_id), 0, (0, 0))
    assert other.rank == 1
    assert repr(comm.peer_id) == b"one.".hex()


def test_waiting_for_others_ends_when_they_are_in() -> None:
    run = FakeRun()
    comm, _, agent = sit(run, b"one")

    def another_joins() -> None:
        run.join(b"another")

    agent.on_wait = another_joins
    comm.wait_for(world_size=3, timeout_s=10)
    assert comm.world_size == 3
    assert agent.wanted == [3, 0]
    comm.wait_for(world_size=2)
    assert agent.wanted == [3, 0]


def test_a_newcomer_counts_those_who_wait_with_it() -> None:
    run = FakeRun()
    comm, engine, agent = sit(run, b"one")
    run.live.remove(engine.peer_id)
    agent.standing = Standing(admitted=agent.standing.admitted, world=m.World(4, 0, 0))
    comm.wait_for(world_size=4, timeout_s=10)
    assert comm.rank == -1


def test_waiting_for_others_in_vain_says_how_many_are_in() -> None:
    comm, _, agent = sit(FakeRun(), b"one")
    with pytest.raises(pccl.DeadlineExceeded, match="1 of 2"):
        comm.wait_for(world_size=2, timeout_s=0.01)
    assert agent.wanted == [2, 0]


def test_a_newcomer_that_waits_for_long_is_told_why_in_its_log_and_in_the_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(session._log, "warning", lambda text, *args: said.append(text % args))
    run = FakeRun()
    comm, engine, agent = sit(run, b"one")
    run.live.remove(engine.peer_id)
    engine.gate_open = False
    why = "this process waits at 'eval', which no member has begun lately"
    agent.standing = Standing(admitted=agent.standing.admitted, waits=why)
    with pytest.raises(pccl.DeadlineExceeded, match=why), comm.step("eval", timeout_s=60):
        pass
    assert len(said) == 1 and why in said[0]


def test_a_stand_alone_operation_enters_by_its_descriptor() -> None:
    comm, engine, _ = sit(FakeRun(), b"one")
    names: list[str] = []
    begin = engine.begin_step

    def watched(name: str, timeout_s: float) -> BegunStep:
        names.append(name)
        return begin(name, timeout_s)

    engine.begin_step = watched  # type: ignore[method-assign]
    comm.all_reduce(np.ones((2, 3), np.float32))
    comm.all_reduce(np.ones(6, np.int8), op="max")
    assert names == ["all_reduce(sum, f32[6])", "all_reduce(max, i8[6])"]


def test_a_work_can_be_awaited() -> None:
    run = FakeRun()
    comm, _, agent = sit(run, b"one")
    run.join(b"silent")

    async def program() -> pccl.Outcome:
        x = np.ones(2)
        work = comm.all_reduce(x, async_op=True)
        task = asyncio.ensure_future(_outcome_of(work))
        while 0 not in agent.notices:
            await asyncio.sleep(0)
        run.remove(b"silent".ljust(16, b"."))
        agent.announce(0)
        return await task

    assert asyncio.run(program()).contributors == (comm.peer_id,)


async def _outcome_of(work: pccl.Work) -> pccl.Outcome:
    return await work


def test_awaiting_ends_with_the_error_that_ends_the_communicator() -> None:
    run = FakeRun()
    comm, _, agent = sit(run, b"one")
    run.join(b"silent")

    async def program() -> None:
        task = asyncio.ensure_future(_outcome_of(comm.all_reduce(np.ones(2), async_op=True)))
        while 0 not in agent.notices:
            await asyncio.sleep(0)
        agent.end("evicted", "silent for 3 s")
        agent.announce(0)
        await task

    with pytest.raises(pccl.Evicted, match="silent for 3 s"):
        asyncio.run(program())


def test_awaiting_proposes_the_end_when_the_operations_time_is_up() -> None:
    run = FakeRun()
    comm, engine, _ = sit(run, b"one")
    run.join(b"silent")

    async def program() -> None:
        await comm.all_reduce(np.ones(2), async_op=True, timeout_s=0.01)

    with pytest.raises(pccl.DeadlineExceeded):
        asyncio.run(program())
    assert [code for _, code, _ in engine.proposals] == [3]


def test_closing_is_idempotent_and_every_later_call_says_closed() -> None:
    comm, engine, agent = sit(FakeRun(), b"one")
    with comm:
        comm.close()
    comm.close()
    assert comm.closed and engine.closed and agent.stopped == ["closed"]
    for call in (
        lambda: comm.all_reduce(np.ones(1)),
        lambda: comm.step().__enter__(),
        lambda: comm.wait_for(2),
        lambda: comm.view,
        lambda: comm.rank,
        lambda: comm.world_size,
        lambda: comm.__enter__(),
    ):
        with pytest.raises(pccl.Closed, match="connect again"):
            call()
    assert "closed" in repr(comm)


def test_closing_may_be_interrupted_by_a_handler_that_closes_too() -> None:
    comm, engine, agent = sit(FakeRun(), b"one")
    stop = agent.stop

    def interrupted(reason: str, timeout_s: float, decided_below: int = 0) -> bool:
        comm.close()  # as a signal handler on the same thread would
        return stop(reason, timeout_s, decided_below)

    agent.stop = interrupted  # type: ignore[method-assign]
    closing = threading.Thread(target=comm.close, daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive() and comm.closed and engine.closed


def test_memory_of_a_finished_operation_is_free_though_nobody_waited_for_it() -> None:
    comm, _, _ = sit(FakeRun(), b"one")
    x = np.ones(4, np.float32)
    work = comm.all_reduce(x, async_op=True)
    assert len(comm.all_reduce(x).contributors) == 1
    assert work.done()


def test_an_evicted_process_is_told_so_by_every_later_call() -> None:
    comm, _, agent = sit(FakeRun(), b"one")
    agent.end("evicted", "the run went on without this process")
    for _ in range(2):
        with pytest.raises(pccl.Evicted, match="went on"):
            comm.all_reduce(np.ones(1))
    comm.close()
    assert comm.closed


def test_a_gate_that_stays_shut_is_a_deadline_and_nothing_begins() -> None:
    comm, engine, _ = sit(FakeRun(), b"one")
    engine.gate_open = False
    with pytest.raises(pccl.DeadlineExceeded, match="'warmup' did not begin within 5 s"):
        comm.step("warmup", timeout_s=5).__enter__()
    engine.paused = True
    with pytest.raises(pccl.DeadlineExceeded, match="paused: 1 in, fewer than min_world"):
        comm.step("warmup", timeout_s=5).__enter__()
    engine.gate_open = True
    assert comm.all_reduce(np.ones(1)).world_size == 1


def test_a_forgotten_communicator_leaves_the_run() -> None:
    comm, engine, agent = sit(FakeRun(), b"one")
    del comm
    gc.collect()
    assert engine.closed and len(agent.stopped) == 1


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_is_told_so_and_cannot_disturb_its_parent() -> None:
    comm, engine, agent = sit(FakeRun(), b"one")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for call in (lambda: comm.all_reduce(np.ones(1)), lambda: comm.view):
                try:
                    call()
                    os._exit(2)
                except pccl.Forked:
                    pass
            comm.close()
            status = 3 if engine.closed or agent.stopped else 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert comm.all_reduce(np.ones(1)).world_size == 1


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan"), "5", True])
def test_a_timeout_is_a_positive_number_of_seconds(timeout_s: float) -> None:
    comm, engine, _ = sit(FakeRun(), b"one")
    with pytest.raises(pccl.UsageError, match="timeout_s"):
        comm.all_reduce(np.ones(1), timeout_s=timeout_s)
    assert engine.posted == [] and engine.next_step == 1, "a step without operations"


def test_without_any_decision_awaiting_ends_as_waiting_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pccl.session.Session.decision_s", 0.01)

    async def awaited(work: pccl.Work) -> None:
        await work

    def waited(work: pccl.Work) -> None:
        work.wait()

    def waited_long(work: pccl.Work) -> None:
        work.wait(timeout_s=5)

    for end in (lambda work: asyncio.run(awaited(work)), waited, waited_long):
        run = FakeRun()
        comm, engine, _ = sit(run, b"one")
        run.join(b"silent")
        engine.answers_proposals = False
        work = comm.all_reduce(np.ones(2), async_op=True, timeout_s=0.01)
        with pytest.raises(pccl.OutcomeUnknown, match="the others may hold the step as committed"):
            end(work)
        assert comm.closed and engine.closed
