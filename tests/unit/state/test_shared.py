"""Revisions and pins: what others read never changes under them."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from pccl.base.errors import UsageError
from pccl.state import kept
from pccl.state.shared import SharedState
from tests.unit.face.fake_run import FakeRun, sit


def content(state: SharedState, pin: Any) -> bytes | None:
    scratch = np.empty(1 << 20, np.uint8)
    whole = []
    for leaf in state.layout.leaves:
        part = state.read(pin, leaf, scratch)
        if part is None:
            return None
        whole.append(part.tobytes())
    return b"".join(whole)


def test_a_pinned_revision_stays_as_it_is_while_the_state_changes() -> None:
    x = np.arange(600_000, dtype=np.int32)
    state = SharedState({"x": x})
    pin = state.pin()
    before = x.tobytes()
    for _ in range(3):
        with state.writing():
            x += 1
        assert content(state, pin) == before and state.holds(pin)
    newer = state.pin()
    assert newer.root != pin.root and content(state, newer) == x.tobytes()
    state.unpin(pin)
    state.unpin(newer)


def test_a_revision_is_hashed_once_for_all_who_ask() -> None:
    state = SharedState({"x": np.zeros(10)})
    first, second = state.pin(), state.pin()
    assert first is second and first.users == 2


def test_without_memory_for_a_copy_the_pin_is_lost_and_nothing_wrong_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept, "available_bytes", lambda: 1000)
    x = np.zeros(100_000)
    state = SharedState({"x": x})
    pin = state.pin()
    with state.writing():
        x += 1
    assert not state.holds(pin) and content(state, pin) is None


def test_what_is_read_while_the_state_is_written_is_the_pinned_revision_or_nothing() -> None:
    x = np.zeros(1 << 18, np.int64)  # two leaves
    state = SharedState({"x": x})
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            with state.writing():
                x[:] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            pin = state.pin()
            found = content(state, pin)
            if found is not None:
                values = np.frombuffer(found, np.int64)
                assert (values == values[0]).all(), "two revisions in one"
                digests = state.hashing.blocks(values.ctypes.data, values.nbytes, 1 << 20)
                assert digests == pin.digests
            state.unpin(pin)
    finally:
        stop.set()
        writer.join()


def add(tensors: Any, total: Any) -> None:
    tensors["x"] += total


def test_only_a_committed_step_makes_a_revision_and_each_but_once() -> None:
    comm, _, _ = sit(FakeRun(), b"one")
    state = SharedState({"x": np.zeros(3)}, apply=add)
    with comm.step() as step:
        work = step.all_reduce(np.ones(3))
        with pytest.raises(UsageError):
            state.advance(step, work)
    assert state.revision == 0
    state.advance(step, np.ones(3))
    assert state.revision == 1 and (state.tensors["x"] == 1).all()
    with pytest.raises(UsageError, match="has made one"):
        state.advance(step, np.ones(3))
    work = comm.all_reduce(np.ones(3), async_op=True)
    work.wait()
    with state.update(work):
        state.tensors["x"][0] = 9
    assert state.revision == 2
    no_step: Any
    for no_step in (None, 3, work.outcome):
        with pytest.raises(UsageError, match="committed step"), state.update(no_step):
            raise AssertionError("never inside")
    assert state.revision == 2


def test_an_update_that_raises_makes_no_revision() -> None:
    comm, _, _ = sit(FakeRun(), b"one")
    state = SharedState({"x": np.zeros(3)})
    with comm.step() as step:
        step.all_reduce(np.ones(3))
    with pytest.raises(ZeroDivisionError), state.update(step):
        raise ZeroDivisionError
    assert state.revision == 0
    with pytest.raises(UsageError, match="apply"):
        state.advance(step)
    with state.update(step):
        pass
    assert state.revision == 1


def test_results_are_kept_while_somebody_wants_them_and_within_their_limit() -> None:
    comm, _, _ = sit(FakeRun(), b"one")
    state = SharedState({"x": np.zeros(3)}, apply=add, results_bytes_max=48)

    def advance() -> None:
        with comm.step() as step:
            step.all_reduce(np.ones(3))
        state.advance(step, np.full(3, float(state.revision)))

    advance()
    assert state.results_of(0) is None, "nobody had asked"
    state.follow()
    for _ in range(3):
        advance()
    assert state.results_of(1) is None, "two of them are all that fits"
    kept = state.results_of(3)
    assert kept is not None and kept.content[0].tobytes() == np.full(3, 3.0).tobytes()
    state.unfollow()
    advance()
    assert state.results_of(3) is None


def test_memory_that_is_written_all_or_nothing_is_as_it_was_unless_all_was() -> None:
    x, numbers = np.arange(9.0), {"count": 3}
    state = SharedState({"x": x, "numbers": numbers})

    def write() -> None:
        x[:] = -1.0
        state.memory_named("numbers.count")[:] = 7

    def is_as_it_was() -> bool:
        return bool((x == np.arange(9.0)).all()) and numbers == {"count": 3}

    before = state.root()
    with state.all_or_nothing():
        write()
        state.push()
    assert is_as_it_was() and state.root() == before and not state.torn
    with pytest.raises(ValueError), state.all_or_nothing():
        write()
        raise ValueError
    assert is_as_it_was() and state.root() == before
    with state.all_or_nothing() as whole:
        write()
        state.push()
        whole()
    assert (x == -1.0).all() and numbers == {"count": 0x0707070707070707}
    assert state.root() != before and not state.torn


def test_without_memory_for_a_copy_a_state_knows_that_it_is_torn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept, "available_bytes", lambda: 100)
    state = SharedState({"x": np.zeros(30)})
    with state.all_or_nothing():
        state.memory_named("x")[:] = 1
    assert state.torn
    state.adopt(4, 1)
    assert not state.torn


def test_newcomers_at_many_revisions_cost_a_few_copies_and_a_checkpoint_is_not_lost_by_them() -> (
    None
):
    x = np.zeros(100)
    state = SharedState({"x": x})
    pins = []
    for number in range(8):
        pins.append(state.pin(precious=number == 6))
        with state.writing():
            x += 1
            state.applied(number + 1)
    held = [state.holds(pin) for pin in pins]
    assert held == [True] * 4 + [False, False, True, False]
    for number in (0, 3, 6):
        assert content(state, pins[number]) == np.full(100, float(number)).tobytes()
    state.unpin(pins[0])
    after = state.pin()
    with state.writing():
        x += 1
    assert content(state, after) == np.full(100, 8.0).tobytes(), "there is room again"
