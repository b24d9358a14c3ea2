"""What is left in memory when a fetch breaks off, and what the state knows of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from pccl.base.clock import Deadline
from pccl.base.errors import StepFailed
from pccl.state import messages as m
from pccl.state import receiver
from pccl.state.election import Target
from pccl.state.opening import Opened
from pccl.state.receiver import Receiver
from pccl.state.shared import SharedState
from pccl.state.stream import StreamLost

LEAF_BYTES = 1 << 20


LONG_S = 8.0


class Dying:
    """A source's stream, which ends after so many leaves."""

    received = 0

    def __init__(self, state: SharedState, leaf_count: int) -> None:
        self._state, self._left = state, leaf_count
        self._asked: list[m.Fetch] = []
        self._leaves: list[Any] = []

    def until(self, deadline: Deadline | None) -> None:
        pass

    def send(self, body: bytes) -> None:
        self._asked.append(cast(m.Fetch, m.question_codec.decode(body)))

    def receive(self) -> bytes:
        self._leaves = [self._state.layout.leaves[i] for i in self._asked.pop(0).leaves]
        return m.answer_codec.encode(m.Leaves(sum(leaf.byte_count for leaf in self._leaves)))

    def receive_into(self, view: memoryview) -> None:
        if not self._left:
            raise StreamLost("went away")
        self._left -= 1
        view[:] = self._state.memory_of(self._leaves.pop(0)).tobytes()

    def close(self) -> None:
        pass


def no_second_stream(*_: Any, **__: Any) -> Opened:
    raise StreamLost("full")


def fetch(
    mine: SharedState,
    theirs: SharedState,
    leaf_count: int,
    mp: pytest.MonkeyPatch,
    second: Callable[..., Opened] = no_second_stream,
) -> None:
    mp.setattr(receiver, "open_source", second)
    digests, root = theirs.survey()
    said = m.Described(3, 1, "xxh3-128", root, 10, len(digests))
    member = cast(Any, SimpleNamespace(peer_id=b"d" * 16))
    stream = cast(Any, Dying(theirs, leaf_count))
    opened = [Opened(member, stream, said, digests, time.monotonic())]
    made = Receiver(
        mine, Target(3, 1, root), [member], cast(Any, None), opened=opened, drain_s=LONG_S
    )
    made.run(Deadline(20))


def test_a_state_knows_that_a_fetch_has_left_parts_in_it_until_one_is_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = SharedState({"x": np.zeros(2 * LEAF_BYTES, np.uint8)})
    theirs = SharedState({"x": np.ones(2 * LEAF_BYTES, np.uint8)})
    with pytest.raises(StepFailed):
        fetch(mine, theirs, 0, monkeypatch)
    assert not mine.torn, "nothing has come"
    with pytest.raises(StepFailed):
        fetch(mine, theirs, 1, monkeypatch)
    assert mine.torn and mine.root() != theirs.root()
    with pytest.raises(ValueError), mine.all_or_nothing():
        raise ValueError  # a restore that is taken back gives parts back
    assert mine.torn
    fetch(mine, theirs, 1, monkeypatch)
    assert not mine.torn and mine.root() == theirs.root()


def test_for_what_a_source_owes_that_has_died_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = SharedState({"x": np.zeros(2 * LEAF_BYTES, np.uint8)})
    theirs = SharedState({"x": np.ones(2 * LEAF_BYTES, np.uint8)})
    began_s = time.monotonic()
    with pytest.raises(StepFailed, match="went away"):
        fetch(mine, theirs, 1, monkeypatch)
    assert time.monotonic() - began_s < LONG_S / 2


def test_a_stream_that_is_still_dialled_when_all_is_here_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = SharedState({"x": np.zeros(2 * LEAF_BYTES, np.uint8)})
    theirs = SharedState({"x": np.ones(2 * LEAF_BYTES, np.uint8)})
    over = threading.Event()

    def by_a_relay_that_has_stopped(*_: Any, **__: Any) -> Opened:
        over.wait(LONG_S)
        raise StreamLost("no answer")

    began_s = time.monotonic()
    fetch(mine, theirs, 2, monkeypatch, by_a_relay_that_has_stopped)
    assert time.monotonic() - began_s < LONG_S / 2 and mine.root() == theirs.root()
    over.set()
