"""Strangers on the ports of a run: dropped and counted, while everybody else goes on.

Two peers reduce without a pause; what they tell has their retries, which must stay 0.
"""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pccl.membership.messages import Hello, peer_codec
from pccl.membership.service_status import fetch_status_now
from pccl.transport.address import parse_addresses
from pccl.transport.framing import FIRST_FRAME_BYTES_MAX, frame
from pccl.transport.native_frames import Heartbeat, NativeHello, PeerBeat, encode
from tests.integration.peer_processes import PeerProcess, Run

PEER = Path(__file__).with_name("bad_input_peer.py")
DROPPED_S = 10.0  # the listeners themselves wait 5 s for a first frame
SHED_S = 20.0
CROWD = 200  # more than may be half open at once
DICE = random.Random(7)
Training = tuple[Run, list[PeerProcess]]


def u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def lane_hello(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "purpose": 1,
        "run_id": bytes(16),
        "peer_id": bytes(16),
        "incarnation": 1,
        "secret": bytes(16),
        "series": 0,
    }
    return encode(NativeHello(**(fields | changes)))


GARBAGE: dict[str, Callable[[], bytes]] = {
    "noise": lambda: DICE.randbytes(5000),
    "much noise": lambda: DICE.randbytes(1 << 20),
    "zeros": lambda: bytes(1 << 16),
    "a web request": lambda: b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    "a TLS greeting": lambda: bytes.fromhex("16030100c8010000c40303") + DICE.randbytes(200),
    "the largest length": lambda: u32((1 << 32) - 1) + bytes(100),
    "a large first frame": lambda: u32(FIRST_FRAME_BYTES_MAX + 1) + bytes(FIRST_FRAME_BYTES_MAX),
    "an empty frame": lambda: u32(0),
    "no message": lambda: frame(b"\x93\x01\x02\x03"),
    "endless nesting": lambda: frame(b"\x91" * 4000),
    "a promise of arrays": lambda: frame(b"\xdd\xff\xff\xff\xff"),
    "a promise of bytes": lambda: frame(b"\x92\x01\xc6\xff\xff\xff\xff"),
    "an unknown tag": lambda: frame(b"\x91\x7f"),
    "an unknown native frame": lambda: frame(b"\xc1\x63\x01"),
    "half a native hello": lambda: frame(lane_hello()[:20]),
    "an unknown native version": lambda: frame(b"\xc1\x01\x63" + lane_hello()[3:]),
    "a wrong secret": lambda: frame(lane_hello()),
    "a wrong secret for control": lambda: frame(lane_hello(purpose=2)),
    "a peer that was never admitted": lambda: frame(lane_hello(purpose=0, incarnation=77)),
    "a heartbeat of nobody": lambda: frame(encode(Heartbeat(1, 1, 1, 1, 1))),
    "a peer's beat of nobody": lambda: frame(encode(PeerBeat(1, 1, 1))),
    "a hello after a hello": lambda: 2 * frame(a_hello()),
    "a hello and noise": lambda: frame(a_hello()) + DICE.randbytes(5000),
}


def a_hello() -> bytes:
    return peer_codec.encode(
        Hello(1, b"", DICE.randbytes(16), 0, 0, 0, "127.0.0.1", 9, 1, 0, "here", 1)
    )


@pytest.fixture(scope="module")
def training() -> Iterator[Training]:
    """A run of two peers; at the end nobody has retried anything, and all end well."""
    with Run(PEER) as run:
        peers = started(run)
        yield run, peers
        peers[0].ask_to_end()
        for last in map(last_fact, peers):
            assert (last["retries"], last["contributors"]) == (0, 2), last


def started(run: Run) -> list[PeerProcess]:
    peers = run.start("train", 2)
    for peer in peers:
        peer.until("contributors", 2)
    return peers


def last_fact(peer: PeerProcess) -> dict[str, Any]:
    """Waits for a peer's end, which must be a good and silent one."""
    last: dict[str, Any] = {}
    while "done" not in (fact := peer.next_fact()):
        last = fact
    assert peer.end() == 0
    assert peer.errors() == ""
    return last


def status(run: Run) -> dict[str, Any]:
    return fetch_status_now(parse_addresses(run.address), timeout_s=10)


def ports(run: Run) -> list[int]:
    return [port_of(one["address"]) for one in status(run)["members"]]


def dropped_by_coordinator(run: Run) -> int:
    document = status(run)
    counters = document["counters"]
    told = document["connections"]["dropped"] + counters["dropped_frames"] + counters["refused"]
    return int(told)


def newest(peer: PeerProcess, key: str) -> int:
    """What a peer tells from now on; what it told before is skipped."""
    while peer._facts.qsize():
        peer.fact_with(key)
    return int(peer.fact_with(key)[key])


def send(port: int, data: bytes) -> None:
    """Sends and waits until the other end hangs up, which it must."""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.settimeout(DROPPED_S)
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
            while connection.recv(4096):
                pass


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_at_the_coordinator_is_dropped_and_counted(training: Training, kind: str) -> None:
    run, peers = training
    before, steps = dropped_by_coordinator(run), newest(peers[0], "steps")
    send(port_of(run.address), GARBAGE[kind]())
    assert dropped_by_coordinator(run) > before
    assert newest(peers[0], "steps") > steps
    assert status(run)["world_size"] == 2


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_at_a_peer_is_dropped_and_counted(training: Training, kind: str) -> None:
    run, peers = training
    before = [newest(peer, "dropped") for peer in peers]
    for port in ports(run):
        send(port, GARBAGE[kind]())
    assert all(newest(peer, "dropped") > n for peer, n in zip(peers, before, strict=True))
    assert status(run)["world_size"] == 2


def test_a_crowd_that_says_nothing_is_shed_and_a_newcomer_gets_in() -> None:
    with Run(PEER) as run, contextlib.ExitStack() as crowd:
        peers = started(run)
        before = [newest(peer, "dropped") for peer in peers]
        for port in (port_of(run.address), *ports(run)):
            for _ in range(CROWD):
                crowd.enter_context(socket.create_connection(("127.0.0.1", port), 5))
        # Where members are, peers have room for more than this; but not for long.
        until_s = time.monotonic() + SHED_S
        while not all(newest(p, "dropped") > n for p, n in zip(peers, before, strict=True)):
            assert time.monotonic() < until_s, "nobody was shed"
            time.sleep(0.1)
        newcomer = run.start_newcomer("train")  # it speaks, and gets a silent one's place
        newcomer.until("contributors", 3)
        newcomer.ask_to_end()
        for last in map(last_fact, (*peers, newcomer)):
            assert (last["retries"], last["contributors"]) == (0, 3), last
        drops = status(run)["connections"]["dropped_by_reason"]
        assert drops["half_open"] > 0


LATER: dict[str, Callable[[], bytes]] = {
    "nothing more": lambda: b"",
    "noise": lambda: DICE.randbytes(1 << 16),
    "zeros": lambda: bytes(1 << 16),
    "the largest length": lambda: b"\xff" * (1 << 16),
    "a hello again": lambda: frame(lane_hello()),
}


@pytest.mark.parametrize("claim", ["a member", "a stranger"])
@pytest.mark.parametrize("purpose", [1, 2])
def test_who_knows_a_secret_and_sends_garbage_harms_nobody(claim: str, purpose: int) -> None:
    with Run(PEER) as run:
        peers = run.start("train", 2)
        victim, other = (peer.fact_with("secret") for peer in peers)
        for peer in peers:
            peer.until("contributors", 2)
        for later in LATER.values():
            before = newest(peers[0], "steps")
            hello = lane_hello(
                purpose=purpose,
                run_id=bytes.fromhex(victim["run_id"]),
                secret=bytes.fromhex(victim["secret"]),
                peer_id=bytes.fromhex(other["peer"]) if claim == "a member" else bytes(16),
                incarnation=other["incarnation"] if claim == "a member" else 99,
            )
            with socket.create_connection(("127.0.0.1", victim["port"]), 5) as connection:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(frame(hello) + later())
                time.sleep(0.2)
                assert newest(peers[0], "steps") > before
        peers[0].ask_to_end()
        for last in map(last_fact, peers):
            assert last["contributors"] == 2, last


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])
