"""Addresses where no coordinator of this protocol is: an error that says so, in time."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import pccl
from pccl.membership.messages import (
    PROTOCOL_VERSION,
    Hello,
    Refused,
    coordinator_codec,
    peer_codec,
)
from pccl.transport.framing import Framer, frame
from tests.integration.peer_processes import Run

TIMEOUT_S = 1.5
MARGIN_S = 3.0  # hanging up, on a loaded machine


def fails(address: str, timeout_s: float = TIMEOUT_S) -> str:
    """Connecting is a ConnectError in time, and leaves no thread behind; returns its text."""
    threads = threading.active_count()
    begin = time.monotonic()
    with pytest.raises(pccl.ConnectError) as caught:
        pccl.connect(address, timeout_s=timeout_s)
    assert time.monotonic() - begin < timeout_s + MARGIN_S
    assert threading.active_count() <= threads
    assert isinstance(caught.value, ConnectionError)
    return str(caught.value)


def test_what_refuses_is_logged_once_while_connect_still_waits(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pccl.connecting.WAIT_QUIET_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        address = f"127.0.0.1:{bound.getsockname()[1]}"
    text = fails(address)
    said = [record.getMessage() for record in caplog.records if record.name == "pccl.face"]
    assert said == [
        f"not admitted for 0.5 s: no coordinator has answered yet ({address}: connection refused)"
    ]
    assert f"{address}: connection refused" in text and "`pccl coordinator` running" in text


@contextlib.contextmanager
def listener(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """A port that treats every connection by `behave`, and keeps it open until the end."""
    ended = threading.Event()
    kept: list[socket.socket] = []

    def serve() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                kept.append(connection)
                behave(connection)

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            ended.set()
            thread.join()
            for connection in kept:
                connection.close()


def test_where_nothing_listens_the_error_names_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    assert address in fails(address)


def test_an_unknown_host_is_an_error_in_time() -> None:
    assert "no-such-host.invalid" in fails("no-such-host.invalid:48148")


@pytest.mark.parametrize(
    "address", ["", "nowhere", "host:", ":1", "host:0", "h:99999", "h:x", "[::1"]
)
def test_what_is_no_address_is_a_usage_error(address: str) -> None:
    with pytest.raises(pccl.UsageError):
        pccl.connect(address, timeout_s=TIMEOUT_S)


@pytest.mark.parametrize(
    "arguments",
    [
        {"min_world": 0},
        {"min_world": 1 << 20},
        {"lanes": -1},
        {"lanes": 1000},
        {"listen": "0.0.0.0:0"},  # other machines could reach it
        {"listen": "nonsense"},
        {"step_timeout_s": 0},
        {"coordinator_grace_s": float("nan")},
    ],
)
def test_arguments_of_connect_without_meaning_are_usage_errors(arguments: dict[str, Any]) -> None:
    with pytest.raises(pccl.UsageError):
        pccl.connect("127.0.0.1:1", timeout_s=TIMEOUT_S, **arguments)


def reset(connection: socket.socket) -> None:
    at_once = struct.pack("ii", 1, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    connection.close()


ANSWERS: dict[str, Callable[[socket.socket], None]] = {
    "nothing": lambda connection: None,
    "hangs up": lambda connection: connection.close(),
    "resets": reset,
    "a web server": lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "a mail server": lambda connection: connection.sendall(b"220 mail ESMTP\r\n"),
    "zeros": lambda connection: connection.sendall(bytes(4096)),
    "a huge frame": lambda connection: connection.sendall(b"\xff\xff\xff\x7f" + bytes(4096)),
    "half a frame": lambda connection: connection.sendall(b"\x10\0\0\0\x93"),
    "no message": lambda connection: connection.sendall(frame(b"\x93\x01\x02\x03")),
    "a message of peers": lambda connection: connection.sendall(frame(a_hello())),
    "a native frame": lambda connection: connection.sendall(frame(b"\xc1\x02\x01" + bytes(8))),
}


def a_hello(protocol: int = PROTOCOL_VERSION) -> bytes:
    hello = Hello(protocol, b"", bytes(16), 0, 0, 0, "127.0.0.1", 9, 1, 0, "here", 1)
    return peer_codec.encode(hello)


@pytest.mark.parametrize("kind", ANSWERS)
def test_what_is_no_coordinator_is_a_clear_error_in_time(kind: str) -> None:
    with listener(ANSWERS[kind]) as address:
        text = fails(address)
        assert address in text
        assert "coordinator" in text


def test_a_coordinator_of_another_version_refuses_with_both_versions() -> None:
    refusal = Refused("protocol", "this coordinator speaks version 2, the peer version 1")

    def refuse(connection: socket.socket) -> None:
        connection.sendall(frame(coordinator_codec.encode(refusal)))

    with listener(refuse) as address:
        begin = time.monotonic()
        assert "version 2" in fails(address, 20)
        assert time.monotonic() - begin < MARGIN_S  # trying again would change nothing


def test_a_peer_of_another_version_is_refused_and_told_both() -> None:
    with Run() as run, socket.create_connection(split(run.address), 5) as connection:
        connection.sendall(frame(a_hello(PROTOCOL_VERSION + 98)))
        message = coordinator_codec.decode(read_frame(connection))
        assert isinstance(message, Refused)
        assert message.code == "protocol"
        assert str(PROTOCOL_VERSION + 98) in message.text
        assert connection.recv(1) == b""  # and it hangs up


def test_a_run_that_this_peer_does_not_belong_to_refuses_it() -> None:
    with Run() as run, socket.create_connection(split(run.address), 5) as connection:
        hello = peer_codec.decode(a_hello())
        assert isinstance(hello, Hello)
        connection.sendall(frame(peer_codec.encode(replace(hello, run_id=bytes(16)))))
        message = coordinator_codec.decode(read_frame(connection))
        assert isinstance(message, Refused) and message.code == "run"


def test_a_peer_is_no_coordinator() -> None:
    with Run() as run, pccl.connect(run.address, timeout_s=20) as comm:
        comm.all_reduce(np.ones(4))
        address = f"127.0.0.1:{comm._session.engine.port}"
        assert address in fails(address)
        assert comm.all_reduce(np.ones(4)).retries == 0


def test_of_several_addresses_one_that_answers_is_enough() -> None:
    with (
        Run() as run,
        listener(ANSWERS["nothing"]) as mute,
        pccl.connect(f"127.0.0.1:1,{mute},{run.address}", timeout_s=20) as comm,
    ):
        assert comm.all_reduce(np.ones(4)).world_size == 1


def test_a_refused_process_prints_nothing_by_itself() -> None:
    program = (
        "import sys, pccl\n"
        "try: pccl.connect('127.0.0.1:1', timeout_s=0.5)\n"
        "except pccl.ConnectError: sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"", b"")


def split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def read_frame(connection: socket.socket) -> bytes:
    framer = Framer()
    while (body := framer.next_message()) is None:
        framer.feed(read(connection, 1))  # not a byte of what comes after
    return body


def read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        assert more, "the connection ended early"
        data += more
    return data
