"""Receivers and publishers of weights that end in the middle of anything leave nothing behind.

What is cut off while its TLS begins, or is about to end, must have ended before its event loop
does: else a transport closes by itself on a loop that is not there any more.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pccl.transport.tls import server_context
from pccl.weights import Publisher, Receiver
from tests.security.laboratory import Laboratory, laboratory
from tests.security.strangers import enrol

__all__ = ["laboratory"]

RECEIVERS = 60
CLOSE_S = 3.0  # of END_S for a transport, and what a busy machine adds


def sockets() -> int:
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # it listed the folder
            found += os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
    return found


@contextmanager
def nothing_is_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Within it no loop or transport complains, and no socket stays."""
    before = sockets()
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        yield
        gc.collect()
        end_s = time.monotonic() + CLOSE_S
        while sockets() > before and time.monotonic() < end_s:
            time.sleep(0.01)
    assert not [str(one.message) for one in warned]
    assert not [r.getMessage() for r in caplog.records if r.name in ("asyncio", "pccl.weights")]
    assert sockets() <= before


def test_receivers_that_end_at_any_moment_leave_no_transport_behind(
    laboratory: Laboratory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dice, state = random.Random(6), {"a": np.zeros(1000)}
    with laboratory.coordinator():
        ticket = laboratory.ticket(uses=5).text
        where = laboratory.address
        with (
            nothing_is_left(caplog),
            Publisher(ticket=ticket, coordinator=where) as publisher,
        ):
            publisher.publish({"a": np.arange(1000.0)})
            for number in range(RECEIVERS):
                kept = tmp_path / f"key{number % 4}"
                receiver = Receiver(
                    publisher.address, ticket=ticket, coordinator=where, identity=kept
                )
                time.sleep(dice.random() * 0.02)
                if dice.random() < 0.3:
                    assert receiver.pull(state, timeout_s=20).revision == 1
                    assert (state["a"] == np.arange(1000.0)).all()
                receiver.close()
            caplog.clear()  # a publisher may say whom it has lost
        assert not [r for r in caplog.records if r.name == "asyncio"]


class Listener:
    """Takes connections and treats each as `treat` does, until the test ends."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.taken = threading.Semaphore(0)
        self._context = context
        self._kept: list[socket.socket] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                if self._context is not None:
                    connection = self._context.wrap_socket(connection, server_side=True)
                self._kept.append(connection)
                self.taken.release()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)
        for connection in self._kept:
            connection.close()


@pytest.mark.parametrize("shakes_hands", [False, True])
def test_a_receiver_ends_at_once_whose_publisher_says_nothing(
    laboratory: Laboratory, caplog: pytest.LogCaptureFixture, shakes_hands: bool
) -> None:
    """In the first story its handshake hangs, in the second nobody answers its goodbye."""
    with laboratory.coordinator(), nothing_is_left(caplog):
        material = enrol(laboratory.address, laboratory.ticket()).material
        assert material is not None
        context = server_context(material, strangers=False)
        mute = Listener(context if shakes_hands else None)
        ticket = laboratory.ticket().text
        receiver = Receiver(mute.address, ticket=ticket, coordinator=laboratory.address)
        assert mute.taken.acquire(timeout=10)
        began_s = time.monotonic()
        receiver.close()
        assert time.monotonic() - began_s < CLOSE_S
        mute.close()
