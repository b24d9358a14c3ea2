"""Steps and works as a program sees them."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from typing import Any

import numpy as np
import pytest

import pccl
from pccl.ticket import failure_of
from pccl.transport.engine_api import STEP_FAILED
from pccl.transport.native_frames import SuspectCode
from tests.unit.face.fake_run import FakeRun, sit


def at_once(*programs: Any) -> list[Any]:
    """Runs programs at the same time; returns what each returned or raised."""
    results: list[Any] = [None] * len(programs)

    def run(index: int) -> None:
        try:
            results[index] = programs[index]()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(programs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return results


def test_two_peers_reduce_in_place_and_learn_who_contributed() -> None:
    run = FakeRun()
    (one, _, _), (two, _, _) = sit(run, b"one"), sit(run, b"two")

    def program(comm: pccl.Communicator, value: float) -> Any:
        x = np.full(5, value, np.float32)
        with comm.step() as step:
            step.all_reduce(x, op="sum")
        return x, step.outcome

    (x, outcome), (y, same) = at_once(lambda: program(one, 1.0), lambda: program(two, 2.0))
    assert x.tolist() == y.tolist() == [3.0] * 5
    assert outcome == same
    assert outcome.contributors == (one.peer_id, two.peer_id)
    assert outcome.world_size == 2


def test_several_operations_of_a_step_are_told_apart_by_tags_or_by_their_order() -> None:
    comm, engine, _ = sit(FakeRun(), b"one")
    x, y, z, w = (np.zeros(2) for _ in range(4))
    with comm.step() as step:
        step.all_reduce(x)
        step.all_reduce(y, tag=1)
        step.all_reduce(z)
        step.all_reduce(w, tag=9)
        assert sorted(engine.run.steps[step.number].posts[engine.peer_id]) == [0, 1, 2, 9]
        with pytest.raises(pccl.UsageError, match="tag 9"):
            step.all_reduce(np.zeros(1), tag=9)
        for wrong in (-1, 1 << 32, "a", True):
            with pytest.raises(pccl.UsageError, match="tag"):
                step.all_reduce(np.zeros(1), tag=wrong)  # type: ignore[arg-type]
    assert step.outcome.contributors == (comm.peer_id,)


def test_out_of_place_leaves_the_input_as_it_was() -> None:
    comm, _, _ = sit(FakeRun(), b"one")
    x, out = np.arange(4.0), np.zeros(4)
    with comm.step() as step:
        work = step.all_reduce(x, op="avg", weight=3.0, out=out)
    assert work.result is out
    assert out.tolist() == x.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_inside_the_block_no_result_can_be_had() -> None:
    comm, _, _ = sit(FakeRun(), b"one")
    with comm.step() as step:
        work = step.all_reduce(np.zeros(1))
        with pytest.raises(pccl.UsageError, match="after the with block"):
            work.wait()
        with pytest.raises(pccl.UsageError):
            _ = work.outcome
        with pytest.raises(pccl.UsageError):
            _ = step.outcome
        assert not work.done()
    assert work.done()
    assert work.wait() == work.outcome == step.outcome


def test_a_bad_argument_sends_nothing_and_spoils_nothing() -> None:
    comm, engine, _ = sit(FakeRun(), b"one")
    x = np.ones((4, 4))
    with comm.step() as step:
        for bad in (x[:, 1], [1.0], np.zeros(2, np.clongdouble)):
            with pytest.raises(pccl.UsageError):
                step.all_reduce(bad)
        step.all_reduce(x)
        with pytest.raises(pccl.UsageError, match="in use by another"):
            step.all_reduce(x[1])
    assert len(engine.run.steps[step.number].posts[engine.peer_id]) == 1
    with pytest.raises(pccl.UsageError):
        comm.all_reduce([1.0])
    assert engine.next_step == 2 and not any(engine.run.steps[1].posts.values())  # an empty one
    assert not comm.closed


def test_a_decided_step_is_released_once_and_its_memory_is_free_again() -> None:
    comm, engine, agent = sit(FakeRun(), b"one")
    x = np.ones(3)
    for _ in range(40):  # more than may be open at a time
        work = comm.all_reduce(x, async_op=True)
        work.wait(timeout_s=5)
        work.wait(timeout_s=5)
    assert engine.released == list(range(40))
    assert agent.steps_decided == 40


def test_works_that_nobody_waits_for_are_swept() -> None:
    comm, engine, _ = sit(FakeRun(), b"one")
    works = [comm.all_reduce(np.ones(1), async_op=True) for _ in range(40)]
    assert len(engine.released) >= 24
    assert all(work.done() for work in works)
    assert len(engine.released) == 40


def test_an_operation_on_memory_in_flight_is_refused() -> None:
    run = FakeRun()
    comm, _, _ = sit(run, b"one")
    run.join(b"silent")
    x = np.ones(3)
    work = comm.all_reduce(x, async_op=True)
    with pytest.raises(pccl.UsageError, match="in flight"):
        comm.all_reduce(x, async_op=True)
    with pytest.raises(pccl.DeadlineExceeded, match="goes on"):
        work.wait(timeout_s=0.01)
    run.remove(b"silent".ljust(16, b"."))
    assert work.wait(timeout_s=5).world_size == 1


def test_a_step_that_takes_too_long_is_failed_for_all_by_one_proposal() -> None:
    run = FakeRun()
    comm, engine, _ = sit(run, b"one")
    run.join(b"silent")
    with pytest.raises(pccl.DeadlineExceeded, match=r"not done after 0\.01 s on peer 6f6e65"):
        comm.all_reduce(np.ones(1), timeout_s=0.01)
    assert [(step, code) for step, code, _ in engine.proposals] == [(0, 3)]
    assert not comm.closed
    run.remove(b"silent".ljust(16, b"."))
    assert comm.all_reduce(np.ones(1)).world_size == 1


def test_a_proposal_without_an_answer_ends_in_an_unknown_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pccl.session.Session.decision_s", 0.01)
    run = FakeRun()
    comm, engine, _ = sit(run, b"one")
    run.join(b"silent")
    engine.answers_proposals = False
    with pytest.raises(pccl.OutcomeUnknown):
        comm.all_reduce(np.ones(1), timeout_s=0.01)
    assert comm.closed and engine.closed


@pytest.mark.parametrize("awaited", [False, True])
def test_a_coordinator_that_comes_back_may_say_that_a_decision_takes_longer(
    awaited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_s = itertools.chain([0.05], itertools.repeat(30.0))
    monkeypatch.setattr("pccl.session.Session.decision_s", property(lambda _: next(told_s)))
    run = FakeRun()
    comm, engine, _ = sit(run, b"one")
    run.join(b"silent")
    engine.answers_proposals = False

    def decide() -> None:
        time.sleep(0.3)
        run.remove(b"silent".ljust(16, b"."))

    async def waits(work: pccl.Work) -> pccl.Outcome:
        return await work

    work = comm.all_reduce(np.ones(1), async_op=True, timeout_s=0.01)
    thread = threading.Thread(target=decide)
    thread.start()
    outcome = asyncio.run(waits(work)) if awaited else work.wait()
    thread.join()
    assert outcome.world_size == 1


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (1, pccl.DescriptorMismatch),
        (2, pccl.CorruptResult),
        (3, pccl.DeadlineExceeded),
        (5, pccl.StepFailed),
    ],
)
def test_a_decided_failure_is_raised_and_the_next_step_is_fine(
    code: int, error: type[Exception]
) -> None:
    run = FakeRun()
    comm, engine, _ = sit(run, b"one")
    run.before_commit = lambda number: run.decide(run.steps[number], STEP_FAILED, code, "f32 i64")
    with pytest.raises(error, match="step 0: f32 i64"), comm.step() as step:
        work = step.all_reduce(np.ones(1))
    with pytest.raises(error, match="f32 i64"):
        work.wait()
    assert engine.released == [0]
    run.before_commit = lambda number: None
    assert comm.all_reduce(np.ones(1)).world_size == 1


def test_an_exception_inside_the_block_takes_this_peer_out_and_no_other() -> None:
    run = FakeRun()
    (one, engine, agent), (two, _, _) = sit(run, b"one"), sit(run, b"two")

    def broken() -> None:
        with one.step() as step:
            step.all_reduce(np.ones(1))
            raise ZeroDivisionError("mine")

    raised, outcome = at_once(broken, lambda: two.all_reduce(np.ones(1)))
    assert isinstance(raised, ZeroDivisionError)
    assert outcome.contributors == (two.peer_id,)
    assert one.closed and engine.closed and len(agent.stopped) == 1
    with pytest.raises(pccl.Closed, match="ZeroDivisionError"):
        one.all_reduce(np.ones(1))


@pytest.mark.parametrize("form", ["step", "call", "work"])
def test_ctrl_c_in_a_wait_leaves_the_run_and_propagates(form: str) -> None:
    run = FakeRun()
    comm, engine, _ = sit(run, b"one")
    run.join(b"silent")
    engine.interrupt_next_wait = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        if form == "step":
            with comm.step() as step:
                step.all_reduce(np.ones(1))
        elif form == "call":
            comm.all_reduce(np.ones(1))
        else:
            comm.all_reduce(np.ones(1), async_op=True).wait()
    assert comm.closed and engine.closed
    comm.close()


def test_steps_begun_by_many_threads_get_one_number_each() -> None:
    comm, engine, _ = sit(FakeRun(), b"one")

    def program() -> list[int]:
        numbers = []
        for _ in range(20):
            with comm.step() as step:
                step.all_reduce(np.ones(1))
            numbers.append(step.number)
        return numbers

    results = at_once(program, program, program)
    assert sorted(number for numbers in results for number in numbers) == list(range(60))
    assert sorted(engine.released) == list(range(60))


def test_two_threads_may_wait_for_the_same_work() -> None:
    run = FakeRun()
    comm, engine, _ = sit(run, b"one")
    run.join(b"silent")
    work = comm.all_reduce(np.ones(1), async_op=True)
    waits = [lambda: work.wait(timeout_s=10)] * 2
    first, second, _ = at_once(*waits, lambda: run.remove(b"silent".ljust(16, b".")))
    assert first == second == work.outcome
    assert engine.released == [0]


def test_a_step_is_entered_once_and_named_in_reason() -> None:
    comm, _, _ = sit(FakeRun(), b"one")
    step = comm.step()
    with pytest.raises(pccl.UsageError, match="enter"):
        step.all_reduce(np.ones(1))
    with step:
        pass
    with pytest.raises(pccl.UsageError, match="once"):
        step.__enter__()
    with pytest.raises(pccl.UsageError, match="block"):
        step.all_reduce(np.ones(1))
    for name in ("", "x" * 257):
        with pytest.raises(pccl.UsageError, match="256"):
            comm.step(name).__enter__()


def test_a_step_is_named_once_in_what_it_ends_with_and_a_mismatch_says_what_to_do() -> None:
    late = failure_of(SuspectCode.DEADLINE, "'step' was not done after 8 s on peer 264434c8", 5)
    assert str(late) == "step 5: 'step' was not done after 8 s on peer 264434c8"
    differs = failure_of(SuspectCode.DESCRIPTOR, "tag 0: ...", 5)
    text = "tag 0: peer 264434c8 posted f32[2], peer 0a0b0c0d posted f32[3]"
    own = str(failure_of(SuspectCode.DESCRIPTOR, text, 5, "0a0b0c0d"))
    assert "peer 264434c8 posted f32[2], peer 0a0b0c0d (this process) posted f32[3]" in own
    assert str(differs).startswith("step 5: tag 0: ...; make shape, dtype, op, tag and options")
    bad = failure_of(SuspectCode.NONFINITE, "peer 264434c8: its contribution ...", 5)
    assert isinstance(bad, pccl.NonFiniteContribution)
    assert str(bad) == "step 5: peer 264434c8: its contribution ..."


def test_a_step_that_commits_in_the_background_is_waited_for_by_its_work() -> None:
    run = FakeRun()
    (one, engine, _), (two, _, _) = sit(run, b"one"), sit(run, b"two")
    sums = [np.ones(3), np.ones(3)]
    with one.step() as first:
        first.all_reduce(sums[0])
        work = first.commit_async()
    assert not work.done()  # the block has been left, and the other peer has not begun
    with pytest.raises(pccl.UsageError):
        _ = first.outcome
    with two.step() as second:
        second.all_reduce(sums[1])
    assert work.wait(timeout_s=5).world_size == 2
    assert first.outcome is work.outcome
    assert (sums[0] == 2).all() and (sums[1] == 2).all()
    assert engine.released == [0]


def test_after_commit_async_a_step_takes_nothing_more_and_an_error_leaves_nobody_alone() -> None:
    comm, engine, _ = sit(FakeRun(), b"one")
    x = np.ones(3)
    with pytest.raises(RuntimeError, match="after it"), comm.step() as step:
        step.all_reduce(x)
        work = step.commit_async()
        for post in (lambda: step.all_reduce(np.ones(1)), step.commit_async):
            with pytest.raises(pccl.UsageError):
                post()  # type: ignore[no-untyped-call]
        raise RuntimeError("after it")
    assert not comm.closed and not engine.closed
    assert work.wait(timeout_s=5).world_size == 1


def test_a_background_step_that_fails_raises_from_its_work() -> None:
    run = FakeRun()
    comm, _, _ = sit(run, b"one")
    run.before_commit = lambda number: run.decide(run.steps[number], STEP_FAILED, 0, "no")
    with comm.step() as step:
        step.all_reduce(np.ones(3))
        work = step.commit_async()
    with pytest.raises(pccl.StepFailed):
        work.wait(timeout_s=5)
    with pytest.raises(pccl.StepFailed):
        _ = step.outcome
