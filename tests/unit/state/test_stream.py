"""How donors keep a pace, and how much has come on a stream that breaks off."""

from __future__ import annotations

import socket
import threading
import time
from types import SimpleNamespace

import pytest

from pccl.base.clock import Deadline
from pccl.state.stream import Stream, StreamLost

SIZE = 1 << 20
RATE = 8 << 20  # bytes a second that the reader takes


def taken_slowly(sock: socket.socket) -> threading.Thread:
    """A reader of a way that carries RATE."""

    def take() -> None:
        left = SIZE
        while left:
            count = len(sock.recv(16 << 10))
            left -= count
            time.sleep(count / RATE)

    thread = threading.Thread(target=take)
    thread.start()
    return thread


def pauses_of(pace: float, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
    """Returns how long sending took, and how long pauses would have taken besides."""
    slept: list[float] = []
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=slept.append)
    monkeypatch.setattr("pccl.state.stream.time", clock)
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 << 10)
    reader = taken_slowly(far)
    began_s = time.monotonic()
    Stream(near, 10.0).send_bytes(bytes(SIZE), lambda: pace)
    took_s = time.monotonic() - began_s
    reader.join(10)
    near.close()
    far.close()
    return took_s, sum(slept)


def test_a_donor_that_keeps_a_pace_of_a_fifth_pauses_for_four_times_as_long_as_it_sends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert pauses_of(1.0, monkeypatch)[1] == 0
    took_s, paused_s = pauses_of(0.2, monkeypatch)
    assert 2.0 * took_s < paused_s <= 4.0 * took_s, "no pause is longer than half a second"


def test_a_stream_counts_what_has_come_also_of_what_broke_off() -> None:
    near, far = socket.socketpair()
    stream = Stream(near, 10.0)
    far.sendall(b"12345")
    stream.until(Deadline(0.05))
    with pytest.raises(StreamLost, match="too slow for the time"):
        far.sendall(b"6")
        time.sleep(0.1)
        stream.receive_into(memoryview(bytearray(9)))
    assert stream.received == 6
    near.close()
    far.close()
