"""Replayed updates are a stranger's bytes: whatever they do, it is the stream that ends by it."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any, cast

import numpy as np
import pytest

from pccl.base.clock import Deadline
from pccl.base.errors import DeadlineExceeded, RemoteError
from pccl.state import messages as m
from pccl.state.layout import Layout
from pccl.state.replay import replay
from pccl.state.shared import SharedState
from pccl.state.stream import Stream, StreamLost
from pccl.state.tensors import cells_of


class Told:
    """A stream whose other end answers with these updates, one after another, and then no more."""

    def __init__(self, *updates: Any) -> None:
        self._bytes = b""
        self._answers: list[m.Answer] = []
        for revision, update in enumerate(updates):
            cells, _ = cells_of({"000000": update})
            layout = Layout.of(cell.entry for cell in cells)
            self._bytes += layout.encoded + cells[0].memory.tobytes()
            said = m.Results(revision, len(layout.encoded), layout.byte_count)
            self._answers.append(said)

    def until(self, deadline: Deadline | None) -> None:
        pass

    def send(self, body: bytes) -> None:
        assert isinstance(m.question_codec.decode(body), m.Replay)

    def receive(self) -> bytes:
        answer = self._answers.pop(0) if self._answers else m.Sorry("gone", "no more")
        return m.answer_codec.encode(answer)

    def receive_bytes(self, count: int) -> bytes:
        found, self._bytes = self._bytes[:count], self._bytes[count:]
        return found

    def receive_into(self, view: memoryview) -> None:
        view[:] = self.receive_bytes(len(view))


def add(tensors: Any, update: Any) -> None:
    tensors["x"] += update


def test_updates_are_applied_one_after_another() -> None:
    state = SharedState({"x": np.zeros(3)}, apply=add)
    assert replay(state, cast(Stream, Told(np.ones(3), np.full(3, 4.0))), Deadline(60))
    assert state.revision == 2 and (state.tensors["x"] == 5).all()
    assert not replay(state, cast(Stream, Told()), Deadline(60))


def test_an_update_that_apply_refuses_is_its_senders_fault_and_makes_no_revision() -> None:
    state = SharedState({"x": np.zeros(3)}, apply=add)
    with pytest.raises(RemoteError, match="apply= refuses"):
        replay(state, cast(Stream, Told(np.ones(3), np.ones(7))), Deadline(60))
    assert state.revision == 1 and (state.tensors["x"] == 1).all()


def test_updates_that_never_end_end_with_the_newcomers_time() -> None:
    state = SharedState({"x": np.zeros(3)}, apply=add)
    with pytest.raises(DeadlineExceeded, match="more come as fast"):
        replay(state, cast(Stream, Told(*[np.ones(3)] * 3)), Deadline(0.0))


def test_a_stream_that_drips_ends_with_the_deadline_of_who_waits_for_it() -> None:
    ours, theirs = socket.socketpair()
    over = threading.Event()

    def drip() -> None:
        while not over.wait(0.01):
            theirs.send(b"x")

    dripping = threading.Thread(target=drip)
    dripping.start()
    stream = Stream(ours, 5.0)
    stream.until(Deadline(0.2))
    began_s = time.monotonic()
    try:
        with pytest.raises(StreamLost, match="too slow"):
            stream.receive_bytes(2000)
        assert time.monotonic() - began_s < 10
    finally:
        over.set()
        dripping.join()
        stream.close()
        theirs.close()
