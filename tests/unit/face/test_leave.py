"""Leaving: asked for at any moment, told at a step, and quiet at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import pccl
from pccl.drain_signal import DrainOnSigterm
from tests.unit.face.fake_run import FakeRun, sit


def test_asking_to_leave_returns_at_once_and_the_loop_goes_on() -> None:
    run = FakeRun()
    comm, _, agent = sit(run, b"one")
    assert not comm.leaving
    comm.leave(deadline_s=12, reason="spot notice")
    assert comm.leaving and agent.drains == [(12.0, "spot notice")]
    x = np.ones(4, np.float32)
    assert comm.all_reduce(x).contributors == (comm.peer_id,)


@pytest.mark.parametrize("deadline_s", [-1.0, float("nan"), 1e9])
def test_a_deadline_that_is_none_is_the_callers_mistake(deadline_s: float) -> None:
    comm, _, agent = sit(FakeRun(), b"one")
    with pytest.raises(pccl.UsageError, match="deadline_s"):
        comm.leave(deadline_s)
    assert not comm.leaving and agent.drains == []


def test_the_step_from_which_others_go_on_alone_raises_left_and_the_block_ends_quietly() -> None:
    run = FakeRun()
    comm, engine, agent = sit(run, b"one")
    steps = 0
    with comm:
        comm.leave()
        while True:
            if steps == 3:
                engine.refusals.append(pccl.Left())
            with comm.step() as step:
                step.all_reduce(np.ones(4, np.float32))
            steps += 1
    assert steps == 3 and comm.closed
    assert agent.decided_below == 3


def test_a_block_passes_every_other_error_on() -> None:
    comm, _, _ = sit(FakeRun(), b"one")
    with pytest.raises(pccl.Evicted), comm:
        raise pccl.Evicted("the run went on")


def test_works_in_flight_are_finished_before_left_is_raised() -> None:
    run = FakeRun()
    comm, engine, agent = sit(run, b"one")
    run.join(b"slow")
    x = np.ones(4, np.float32)
    work = comm.all_reduce(x, async_op=True)
    engine.refusals.append(pccl.Left())
    timer = threading.Timer(0.1, run.remove, [b"slow".ljust(16, b".")])
    timer.start()
    with pytest.raises(pccl.Left):
        comm.step().__enter__()
    assert work.done()
    comm.close()
    assert agent.decided_below == 1
    timer.join()


def test_a_close_with_a_step_open_does_not_claim_that_it_is_decided() -> None:
    run = FakeRun()
    comm, _, agent = sit(run, b"one")
    comm.all_reduce(np.ones(4, np.float32))
    run.join(b"slow")
    comm.all_reduce(np.ones(4, np.float32), async_op=True)
    comm.close()
    assert agent.decided_below == 1


def test_an_exclusion_and_a_small_world_are_errors_after_which_a_step_may_begin() -> None:
    run = FakeRun()
    comm, engine, _ = sit(run, b"one")
    engine.refusals += [pccl.Excluded("too slow"), pccl.WorldTooSmall("1 of 2")]
    for kind in (pccl.Excluded, pccl.WorldTooSmall):
        with pytest.raises(kind):
            comm.step().__enter__()
        assert kind.retryable
    with comm.step() as step:
        step.all_reduce(np.ones(4, np.float32))


@pytest.fixture
def handler_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def armed(run: FakeRun) -> tuple[pccl.Communicator, list[tuple[float, str]]]:
    comm, _, agent = sit(run, b"one")
    drain = DrainOnSigterm(comm._session, 20.0)
    comm._session.on_close = drain.restore
    drain.install()
    return comm, agent.drains


@pytest.mark.usefixtures("handler_before")
def test_sigterm_is_a_request_to_leave() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    comm, drains = armed(FakeRun())
    os.kill(os.getpid(), signal.SIGTERM)
    assert comm.leaving and drains == [(20.0, "SIGTERM")]
    comm.close()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.usefixtures("handler_before")
def test_a_handler_that_was_there_is_called_and_put_back() -> None:
    heard: list[int] = []

    def earlier(number: int, frame: object) -> None:
        heard.append(number)

    signal.signal(signal.SIGTERM, earlier)
    comm, drains = armed(FakeRun())
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [signal.SIGTERM] and len(drains) == 1
    comm.close()
    assert signal.getsignal(signal.SIGTERM) == earlier


@pytest.mark.usefixtures("handler_before")
def test_a_second_sigterm_does_what_it_would_have_done_without_us(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[int] = []

    def earlier(number: int, frame: object) -> None:
        heard.append(number)

    signal.signal(signal.SIGTERM, earlier)
    comm, drains = armed(FakeRun())
    monkeypatch.setattr("pccl.drain_signal.AGAIN_S", 0.0)
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
    assert len(heard) == 3 and len(drains) == 1
    assert signal.getsignal(signal.SIGTERM) == earlier
    comm.close()
    assert signal.getsignal(signal.SIGTERM) == earlier


def test_a_second_sigterm_ends_a_process_that_has_no_handler() -> None:
    program = (
        "import os, signal, time, types\n"
        "from pccl.drain_signal import DrainOnSigterm\n"
        "leave = lambda *_: print('leaves', flush=True)\n"
        "session = types.SimpleNamespace(closed=False, leave=leave)\n"
        "DrainOnSigterm(session, 20.0).install()\n"
        "for _ in range(2):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)  # a launcher signals the group, and the child\n"
        "    print('goes on', flush=True)\n"
        "    time.sleep(1.1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.returncode) == ("leaves\ngoes on\n", -signal.SIGTERM)


@pytest.mark.usefixtures("handler_before")
def test_a_handler_that_the_program_sets_later_stays() -> None:
    comm, drains = armed(FakeRun())
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    comm.close()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    assert drains == []


@pytest.mark.usefixtures("handler_before")
def test_after_a_close_by_another_thread_sigterm_is_only_passed_on() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    comm, drains = armed(FakeRun())
    thread = threading.Thread(target=comm.close)
    thread.start()
    thread.join()
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [signal.SIGTERM] and drains == []


@pytest.mark.usefixtures("handler_before")
def test_only_the_main_thread_can_ask_for_it() -> None:
    comm, _, _ = sit(FakeRun(), b"one")
    drain = DrainOnSigterm(comm._session, 20.0)
    caught: list[BaseException] = []

    def install() -> None:
        try:
            drain.install()
        except pccl.UsageError as error:
            caught.append(error)

    thread = threading.Thread(target=install)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])
