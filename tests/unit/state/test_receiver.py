"""What is left in memory when a fetch breaks off, and what the state knows of it."""

from __future__ import annotations

import time
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


class Dying:
    """A source's stream, which ends after so many leaves."""

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


def fetch(mine: SharedState, theirs: SharedState, leaf_count: int, mp: pytest.MonkeyPatch) -> None:
    def no_second_stream(*_: Any, **__: Any) -> Opened:
        raise StreamLost("full")

    mp.setattr(receiver, "open_source", no_second_stream)
    digests, root = theirs.survey()
    said = m.Described(3, 1, "xxh3-128", root, 10, len(digests))
    member = cast(Any, SimpleNamespace(peer_id=b"d" * 16))
    stream = cast(Any, Dying(theirs, leaf_count))
    opened = [Opened(member, stream, said, digests, time.monotonic())]
    Receiver(mine, Target(3, 1, root), [member], cast(Any, None), opened=opened).run(Deadline(20))


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
