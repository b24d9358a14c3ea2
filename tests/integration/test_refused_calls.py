"""Calls that only one peer's own library refuses, and first calls that differ: an error on all.

Two communicators of one process form the run; each is used by a thread of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

import pccl
from tests.integration.peer_processes import Run

SOON_S = 15.0  # far below the time-outs of these calls
LATE_S = 60.0
Pair = tuple[pccl.Communicator, pccl.Communicator]
Act = Callable[[pccl.Communicator], Any]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with (
        Run() as run,
        pccl.connect(run.address, min_world=2, timeout_s=20, step_timeout_s=LATE_S) as one,
        pccl.connect(run.address, timeout_s=20, step_timeout_s=LATE_S) as two,
    ):
        yield one, two


def both(pair: Pair, one: Act, two: Act) -> list[Any]:
    """Lets both act at once; returns what they return, or the pccl error that they raise."""

    def act(number: int) -> Any:
        try:
            return (one, two)[number](pair[number])
        except pccl.PcclError as error:
            return error

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(act, range(2)))


def reduce_exactly(pair: Pair) -> None:
    def reduce(comm: pccl.Communicator) -> list[float]:
        x = np.arange(5.0)
        assert len(comm.all_reduce(x).contributors) == 2
        return list(x)

    assert both(pair, reduce, reduce) == [[0.0, 2.0, 4.0, 6.0, 8.0]] * 2


X = np.full(4, 3.0)
TEXT: Any = "64"
NUMPY_INTEGER: Any = np.int64(64)
CALLS: dict[str, tuple[Act, Act, str]] = {  # refused on the first peer, well on the second
    "all_reduce": (
        lambda comm: comm.all_reduce(X, op="most"),
        lambda comm: comm.all_reduce(X.copy()),
        "all_reduce(sum, f64[4])",
    ),
    "broadcast": (
        lambda comm: comm.broadcast([1.0, 2.0]),
        lambda comm: comm.broadcast(X.copy(), 1),
        "broadcast(f64[4]",
    ),
    "reduce_scatter": (
        lambda comm: comm.reduce_scatter(X[::2]),
        lambda comm: comm.reduce_scatter(X.copy()),
        "reduce_scatter(sum, f64[2]",
    ),
    "placed": (
        lambda comm: comm.all_gather(X, np.empty(3)),
        lambda comm: comm.all_gather(X),
        "all_gather(f64[4]",
    ),
    "asynchronous": (
        lambda comm: comm.all_reduce(X, weight=-1.0, op="avg", async_op=True),
        lambda comm: comm.all_reduce(X.copy(), op="avg", async_op=True).wait(),
        "all_reduce(avg, f64[4])",
    ),
    "root": (
        lambda comm: comm.broadcast(X, np.zeros(2)),  # type: ignore[arg-type]
        lambda comm: comm.broadcast(X.copy(), 1),
        "broadcast(f64[4]",
    ),
    "top_k": (
        lambda comm: comm.sparse_all_reduce([np.ones(64, np.float32)], top_k=TEXT),
        lambda comm: comm.sparse_all_reduce([np.ones(64, np.float32)], top_k=NUMPY_INTEGER),
        "all_gather(u8[",
    ),
    "sparse time-out": (
        lambda comm: comm.sparse_all_reduce([np.ones(64, np.float32)], timeout_s=-1),
        lambda comm: comm.sparse_all_reduce([np.ones(64, np.float32)]),
        "all_gather(u8[",
    ),
    "sparse": (
        lambda comm: comm.sparse_all_reduce([X]),
        lambda comm: comm.sparse_all_reduce([np.ones(64, np.float32)]),
        "all_gather(u8[",
    ),
}


@pytest.mark.parametrize("kind", list(CALLS))
def test_a_call_that_one_peer_refuses_is_an_error_on_the_others_at_once(
    pair: Pair, kind: str
) -> None:
    reduce_exactly(pair)
    refused, well, words = CALLS[kind]
    began_s = time.monotonic()
    first, second = both(pair, refused, well)
    assert time.monotonic() - began_s < SOON_S
    assert type(first) is pccl.UsageError and (X == 3).all()
    assert type(second) is pccl.DescriptorMismatch, second
    text = str(second)
    assert f"peer {pair[0].peer_id} posted nothing" in text or "posted nothing" in text, text
    assert words in text and str(pair[1].peer_id) in text, text
    reduce_exactly(pair)


def test_a_call_that_all_refuse_is_no_error_of_a_step(pair: Pair) -> None:
    reduce_exactly(pair)
    for _ in range(40):  # more than may be open at once
        refused = both(pair, lambda comm: comm.barrier(timeout_s=-1), CALLS["broadcast"][0])
        assert [type(error) for error in refused] == [pccl.UsageError] * 2
    reduce_exactly(pair)


def test_a_newcomer_that_is_refused_is_told_at_once_and_comes_in_with_its_next_call(
    pair: Pair,
) -> None:
    began_s = time.monotonic()
    with pytest.raises(pccl.UsageError):
        pair[0].all_reduce([1.0])
    assert time.monotonic() - began_s < SOON_S
    reduce_exactly(pair)


def send_to_other(array: Any) -> Act:
    return lambda comm: comm.send(array, 1 - comm.rank, 3)


def receive_from_other(array: Any) -> Act:
    return lambda comm: comm.recv(array, 1 - comm.rank, 3)


def receive_from_any(array: Any) -> Act:
    return lambda comm: comm.recv(array, tag=3)


READ_ONLY = np.full(4, 3.0)
READ_ONLY.flags.writeable = False
MESSAGES: dict[str, tuple[Act, Act, str]] = {
    "sent": (send_to_other([1.0]), receive_from_other(X), "sends nothing"),
    "sent to any": (send_to_other(X[::2]), receive_from_any(X), "sends nothing"),
    "received": (receive_from_other(READ_ONLY), send_to_other(X), "receives nothing"),
    "received from any": (receive_from_any(X[::2]), send_to_other(X), "receives nothing"),
    "large": (receive_from_any(X[::2]), send_to_other(np.ones(1 << 20)), "receives nothing"),
}


@pytest.mark.parametrize("late", ["neither", "refused", "well"])
@pytest.mark.parametrize("kind", list(MESSAGES))
def test_a_message_that_one_end_refuses_is_an_error_at_the_other_end_at_once(
    pair: Pair, kind: str, late: str
) -> None:
    reduce_exactly(pair)
    refused, well, words = MESSAGES[kind]

    def held_up(act: Act, which: str) -> Act:
        def call(comm: pccl.Communicator) -> Any:
            time.sleep(0.5 if late == which else 0.0)
            return act(comm)

        return call

    began_s = time.monotonic()
    first, second = both(pair, held_up(refused, "refused"), held_up(well, "well"))
    assert time.monotonic() - began_s < SOON_S
    assert type(first) is pccl.UsageError
    assert type(second) is pccl.DescriptorMismatch, second
    for word in (words, "its own error says why", str(pair[0].peer_id), str(pair[1].peer_id)):
        assert word in str(second), (word, second)
    assert (X == 3).all()
    # The next message of the same tag is not concerned, nor are steps.
    got = np.zeros(3)
    sent, source = both(pair, send_to_other(np.arange(3.0)), receive_from_other(got))
    assert sent is None and source == pair[0].rank and list(got) == [0.0, 1.0, 2.0]
    reduce_exactly(pair)


def test_a_message_that_both_ends_refuse_concerns_nobody_else(pair: Pair) -> None:
    reduce_exactly(pair)
    errors = both(pair, send_to_other([1.0]), receive_from_other(READ_ONLY))
    assert [type(error) for error in errors] == [pccl.UsageError] * 2
    got = np.zeros(3)
    sent, _ = both(pair, send_to_other(np.arange(3.0)), receive_from_any(got))
    assert sent is None and list(got) == [0.0, 1.0, 2.0]


def test_a_newcomer_at_another_call_does_not_keep_the_others_from_beginning() -> None:
    with Run() as run:
        connect = partial(pccl.connect, run.address, min_world=2, timeout_s=20)
        with connect() as one, connect() as stray:
            sums = [np.full(4, 1.0), np.full(4, 2.0)]

            def comes_late(_: pccl.Communicator) -> None:
                time.sleep(4.0)
                with connect() as two:
                    two.all_reduce(sums[1])

            def differs(comm: pccl.Communicator) -> None:
                comm.all_reduce(np.ones(5), op="max", timeout_s=8.0)

            acts = (lambda comm: comm.all_reduce(sums[0]), differs)
            late = threading.Thread(target=comes_late, args=(one,))
            late.start()
            errors = both((one, stray), *acts)
            late.join()
        assert isinstance(errors[0], pccl.Outcome) and [list(x) for x in sums] == [[3.0] * 4] * 2
        assert type(errors[1]) is pccl.DeadlineExceeded, errors[1]


def test_entries_that_programs_name_may_differ_for_as_long_as_they_like(pair: Pair) -> None:
    def step(name: str) -> Act:
        def act(comm: pccl.Communicator) -> None:
            with comm.step(name, timeout_s=5.5):
                pass

        return act

    errors = both(pair, step("this"), step("that"))
    for error in errors:  # another job, perhaps; the text says where the other one is
        assert type(error) is pccl.DeadlineExceeded, error
        assert "'this'" in str(error) and "'that'" in str(error), error
