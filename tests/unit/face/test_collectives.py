"""Collectives as a program calls them: what is posted, what comes back, what an error leaves."""

from __future__ import annotations

import numpy as np
import pytest

import pccl
from pccl.collectives.collective import Collective
from pccl.ticket import failure_of
from pccl.transport.engine_api import STEP_FAILED
from pccl.transport.native_frames import SuspectCode
from tests.unit.face.fake_run import FakeEngine, FakeRun, sit


def alone() -> tuple[pccl.Communicator, FakeEngine, FakeRun]:
    run = FakeRun()
    comm, engine, _ = sit(run, b"one")
    return comm, engine, run


def test_a_stand_alone_operation_is_one_step_whose_last_post_seals_it() -> None:
    comm, engine, _ = alone()
    x = np.arange(4.0)
    result = comm.all_gather(x)
    assert result.shape == (1, 4)
    ((step, tag, kind, source, target, count, *rest),) = engine.collectives
    assert (step, tag, kind, count) == (0, 0, Collective.ALL_GATHER, 4)
    assert (source, target) == (x.ctypes.data, result.ctypes.data)
    assert rest == [0, 0, 1.0, False, -1, False, (), ()]


def test_what_works_in_place_returns_the_outcome_and_a_work_has_both() -> None:
    comm, _, _ = alone()
    x = np.arange(4.0)
    assert comm.broadcast(x).contributors == (comm.peer_id,)
    assert comm.reduce(x).world_size == 1
    assert comm.barrier().retries == 0
    work = comm.broadcast(x, async_op=True)
    assert work.wait(timeout_s=10).world_size == 1 and work.result is x
    gathered = comm.gather(x, async_op=True)
    gathered.wait(timeout_s=10)
    assert gathered.result.shape == (1, 4)


def test_in_a_step_each_operation_has_a_tag_and_results_wait_for_the_end() -> None:
    comm, engine, _ = alone()
    x, y = np.arange(4.0), np.arange(6.0)
    with comm.step() as step:
        works = [
            step.broadcast(x, comm.peer_id, tag=7),
            step.reduce_scatter(y),
            step.all_to_all(y + 0),
            step.scatter(y.reshape(1, 6) + 0),
            step.gather(y + 1),
            step.reduce(y + 2, out=np.empty(6)),
            step.all_gather(y + 3, counts=[6]),
            step.barrier(),
        ]
        with pytest.raises(pccl.UsageError, match="wait"):
            works[1].wait()
    assert [post[1] for post in engine.collectives] == [7, 0, 1, 2, 3, 4, 5, 6]
    assert engine.collectives[0][10] == comm.peer_id
    assert works[1].result.shape == (6,) and works[-1].result is None


def test_arguments_that_do_not_fit_the_view_end_a_stand_alone_step_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    comm, engine, run = alone()
    begin = engine.begin_step
    monkeypatch.setattr(
        engine, "begin_step", lambda *gate: begin(*gate)._replace(rank=1, world_size=2)
    )
    odd = np.ones(3)
    with pytest.raises(pccl.UsageError, match="divisible by the world size, 2"):
        comm.reduce_scatter(odd)
    assert engine.collectives == [] and not comm.closed
    assert run.steps[0].sealed == {engine.peer_id}  # nobody waits for this peer
    assert comm.all_gather(odd).shape == (2, 3)  # the next step runs


def test_what_the_engine_refuses_of_a_stand_alone_operation_ends_its_step_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    comm, engine, run = alone()

    def refuse(*_: object) -> None:
        raise pccl.UsageError("the root does not fit its members")

    with monkeypatch.context() as patched, pytest.raises(pccl.UsageError, match="the root"):
        patched.setattr(engine, "post_collective", refuse)
        comm.broadcast(np.ones(3), root=b"somebody else...")
    assert run.steps[0].sealed == {engine.peer_id} and not comm.closed
    assert comm.broadcast(np.ones(3)).world_size == 1


def test_a_result_for_which_there_is_no_memory_costs_the_step_and_not_the_seat() -> None:
    comm, _, run = alone()
    with pytest.raises((MemoryError, pccl.UsageError)):
        comm.all_to_all(np.empty((0, 4)), None, [0], [1 << 50])
    assert run.steps[0].sealed and not comm.closed


def test_memory_in_use_by_another_operation_is_refused() -> None:
    comm, _, _ = alone()
    x = np.arange(4.0)
    with pytest.raises(pccl.UsageError, match="in use"), comm.step() as step:
        step.broadcast(x)
        step.all_gather(x[:2])


def test_a_step_that_was_bound_to_a_lost_member_ends_with_view_changed() -> None:
    comm, engine, run = alone()
    engine.answers_proposals = False
    run.before_commit = lambda number: run.decide(
        run.steps[number], STEP_FAILED, SuspectCode.VIEW_CHANGED, "peer 02 is gone"
    )
    with pytest.raises(pccl.ViewChanged, match="step 0: peer 02 is gone") as caught:
        comm.all_gather(np.arange(4.0))
    assert isinstance(caught.value, pccl.StepFailed) and caught.value.retryable
    assert isinstance(failure_of(SuspectCode.VIEW_CHANGED, "", 1), pccl.ViewChanged)


def test_after_the_block_no_operation_is_taken() -> None:
    comm, _, _ = alone()
    with comm.step() as step:
        pass
    with pytest.raises(pccl.UsageError, match="ended"):
        step.barrier()
