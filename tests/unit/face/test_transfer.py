"""Sends and receives as a program sees them, over an engine whose messages end as a story says."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import pccl
from pccl.transport.engine_letters import LetterEnd
from tests.unit.face.fake_run import FakeAgent, FakeEngine, FakeRun, sit


@pytest.fixture
def seat() -> tuple[pccl.Communicator, FakeEngine, FakeAgent]:
    run = FakeRun()
    seated = sit(run, b"me")
    sit(run, b"other")
    return seated


def test_what_is_posted_is_the_arrays_memory(seat: Any) -> None:
    comm, engine, _ = seat
    x = np.arange(6, dtype=np.float32)
    comm.send(x, 1, 7, async_op=True, timeout_s=3)
    comm.recv(np.empty(2, np.int64), b"p" * 16, async_op=True)
    comm.recv(np.empty((), np.uint8), async_op=True)
    assert engine.posted[0] == (True, 1, 7, x.ctypes.data, 6, 1, 3.0)
    assert engine.posted[1][:3] == (False, b"p" * 16, 0)
    assert engine.posted[1][4:] == (2, 10, 20.0)
    assert engine.posted[2][:3] == (False, -1, 0)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (dict(to=-1), "to must be a rank"),
        (dict(to=True), "to must be a rank"),
        (dict(to=b"short"), "16 bytes"),
        (dict(to=1, tag=-1), "tag"),
        (dict(to=1, tag=1 << 32), "tag"),
        (dict(to=1, tag="a"), "tag"),
        (dict(to=1, timeout_s=0), "timeout_s"),
        (dict(to=1, array=[1.0]), "list"),
    ],
)
def test_an_argument_that_is_not_as_described_sends_nothing(
    seat: Any, arguments: dict[str, Any], word: str
) -> None:
    comm, engine, _ = seat
    with pytest.raises(pccl.UsageError, match=word):
        comm.send(**{"array": np.zeros(1), **arguments})
    assert engine.posted == []


def test_a_read_only_array_may_be_sent_and_not_received_into(seat: Any) -> None:
    comm, _, _ = seat
    x = np.zeros(3)
    x.flags.writeable = False
    comm.send(x, 1, async_op=True)
    with pytest.raises(pccl.UsageError, match="read-only"):
        comm.recv(x, 1)


def test_a_receive_returns_the_senders_rank_and_a_transfer_has_it_once_it_is_done(
    seat: Any,
) -> None:
    comm, engine, _ = seat
    transfer = comm.recv(np.zeros(3), async_op=True)
    assert not transfer.done() and "under way" in repr(transfer)
    with pytest.raises(pccl.UsageError, match="under way"):
        _ = transfer.source
    engine.end_letter(1, LetterEnd.DONE)
    assert transfer.done() and transfer.source == 1
    assert transfer.peer == b"other".ljust(16, b".")
    transfer.wait()
    transfer.wait(1)
    threading.Timer(0.05, engine.end_letter, (2, LetterEnd.DONE)).start()
    assert comm.recv(np.zeros(3)) == 1
    assert engine.letters == {}  # released, once each


@pytest.mark.parametrize(
    ("end", "error", "word"),
    [
        (LetterEnd.DIFFERS, pccl.DescriptorMismatch, "what both say; make element count"),
        (LetterEnd.LOST, pccl.PeerLost, "6f746865 was lost in epoch 7"),
        (LetterEnd.GIVEN_UP, pccl.DeadlineExceeded, "6f746865 has given up receiving"),
        (LetterEnd.LATE, pccl.DeadlineExceeded, "send to rank 1, tag 0: not done within 20 s"),
        (LetterEnd.CANCELLED, pccl.PcclError, "cancelled"),
        (LetterEnd.LEFT, pccl.Left, "left"),
        (LetterEnd.EXCLUDED, pccl.Excluded, "did not wait"),
    ],
)
def test_each_end_has_its_error_again_and_again(
    seat: Any, end: LetterEnd, error: type[Exception], word: str
) -> None:
    comm, engine, _ = seat
    transfer = comm.send(np.zeros(3), 1, async_op=True)
    engine.end_letter(1, end, "what both say")
    assert transfer.done()
    for _ in range(2):
        with pytest.raises(error, match=word):
            transfer.wait()


def test_a_wait_that_is_over_leaves_the_message_alone(seat: Any) -> None:
    comm, engine, _ = seat
    transfer = comm.send(np.zeros(3), 1, async_op=True)
    with pytest.raises(pccl.DeadlineExceeded, match="it goes on"):
        transfer.wait(0.01)
    engine.end_letter(1, LetterEnd.DONE)
    transfer.wait()
    assert engine.cancelled == []


def test_an_interrupted_wait_gives_the_message_up(seat: Any) -> None:
    comm, engine, _ = seat
    engine.interrupt_next_wait = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        comm.recv(np.zeros(3), 1)
    assert engine.cancelled == [1] and engine.letters == {}


def test_memory_under_way_is_nobody_elses_to_write(seat: Any) -> None:
    comm, _, _ = seat
    x = np.zeros(10)
    comm.send(x[:5], 1, async_op=True)
    comm.send(x[2:6], 1, async_op=True)  # both only read
    with pytest.raises(pccl.UsageError, match="in use: <Transfer: send to rank 1, tag 0"):
        comm.recv(x[4:], 1)
    with pytest.raises(pccl.UsageError, match="in use"), comm.step() as step:
        step.all_reduce(x)


def test_memory_is_free_once_the_message_has_ended_though_nobody_looked(seat: Any) -> None:
    comm, engine, _ = seat
    x = np.zeros(10)
    comm.recv(x, 1, async_op=True)
    engine.end_letter(1, LetterEnd.DONE)
    comm.recv(x, 1, async_op=True)
    assert len(engine.posted) == 2


def test_handles_that_are_dropped_are_forgotten_when_their_messages_have_ended(seat: Any) -> None:
    comm, engine, _ = seat
    for number in range(1, 400):
        comm.send(np.zeros(1), 1, async_op=True)
        engine.end_letter(number, LetterEnd.DONE)
        assert len(engine.letters) <= 64


def test_a_callback_comes_once_and_at_once_if_it_is_done_already(seat: Any) -> None:
    comm, engine, agent = seat
    transfer = comm.send(np.zeros(1), 1, async_op=True)
    called: list[int] = []
    transfer.when_done(lambda: called.append(1))
    assert called == []
    engine.end_letter(1, LetterEnd.DONE)
    agent.announce(1)
    assert called == [1] and transfer.done()
    transfer.when_done(lambda: called.append(2))
    assert called == [1, 2]


def test_what_ends_the_engine_ends_a_wait(seat: Any) -> None:
    comm, engine, _ = seat
    transfer = comm.send(np.zeros(1), 1, async_op=True)
    engine.fail("closed", "the end")
    with pytest.raises(pccl.Closed, match="the end"):
        transfer.wait()
    assert transfer.done()


def test_several_threads_may_wait_for_one_message(seat: Any) -> None:
    comm, engine, _ = seat
    transfer = comm.recv(np.zeros(1), 1, async_op=True)
    threads = [threading.Thread(target=transfer.wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    engine.end_letter(1, LetterEnd.DONE)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert engine.letters == {}
