"""The ways to a member: which are tried, in which order, and how long one in vain may take."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from pccl.base.clock import Deadline
from pccl.membership.messages import MemberInfo
from pccl.state.relaying import RELAY_S, reach
from pccl.state.stream import Identity, Stream, StreamLost
from pccl.transport import native_frames as nf

ME, HIDDEN = b"m" * 16, MemberInfo(b"h" * 16, 3, b"s" * 16, "198.51.100.7", 0, 0, 0)
STALL_S = 1.0
Answer = Callable[[Stream], None]


@contextmanager
def relays(*answers: Answer) -> Iterator[tuple[Identity, list[int]]]:
    """So many members that can be dialled and answer so, in the order in which they are asked;
    yields who dials, and the numbers of those that were dialled."""
    dialled: list[int] = []
    ends: list[Stream] = []
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in answers]
    infos = [
        MemberInfo(
            bytes((ME[0] ^ HIDDEN.peer_id[0] ^ number,)) * 16,
            number,
            b"r" * 16,
            "127.0.0.1",
            listener.getsockname()[1],
            0,
            0,
        )
        for number, listener in enumerate(listeners)
    ]

    def serve(number: int) -> None:
        with contextlib.suppress(OSError, StreamLost):
            while True:
                sock, _ = listeners[number].accept()
                dialled.append(number)
                stream = Stream(sock, 10)
                ends.append(stream)
                hello, order = nf.decode(stream.receive()), nf.decode(stream.receive())
                assert isinstance(hello, nf.NativeHello) and isinstance(order, nf.RelayFrame)
                assert (hello.purpose, hello.secret) == (nf.Purpose.RELAY, b"r" * 16)
                assert (order.peer, order.incarnation) == (HIDDEN.peer_id, HIDDEN.incarnation)
                assert order.call and not order.answers
                answers[number](stream)

    for number in range(len(answers)):
        threading.Thread(target=serve, args=(number,), daemon=True).start()
    try:
        yield Identity(b"i" * 16, ME, 1, relays=lambda: infos[::-1]), dialled
    finally:
        for stream in ends:
            stream.close()
        for listener in listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def refuses(stream: Stream) -> None:
    stream.send(nf.encode(nf.RefusedFrame(nf.RefusalCode.UNREACHABLE, "no word with that peer")))
    stream.close()


def leads_there(stream: Stream) -> None:
    stream.send(nf.encode(nf.Welcome()))
    hello = nf.decode(stream.receive())
    assert isinstance(hello, nf.NativeHello)
    assert (hello.purpose, hello.secret) == (nf.Purpose.STREAM, HIDDEN.secret)
    stream.send(nf.encode(nf.Welcome()))
    stream.send(b"the member")


def leads_nowhere(stream: Stream) -> None:
    stream.send(nf.encode(nf.Welcome()))
    stream.close()


def leads_to_nonsense(stream: Stream) -> None:
    stream.send(nf.encode(nf.Welcome()))
    stream.receive()
    stream.send(b"\xc1 is no frame of ours")


def is_mute(_: Stream) -> None:
    pass


def test_a_relay_that_refuses_is_passed_over_at_once() -> None:
    with relays(refuses, leads_there) as (identity, dialled):
        began_s = time.monotonic()
        stream = reach(HIDDEN, identity, STALL_S)
        assert time.monotonic() - began_s < RELAY_S / 2
        assert stream.receive() == b"the member" and stream.by_third
        stream.close()
        assert dialled == [0, 1]


def test_a_relay_that_says_nothing_costs_its_own_time_and_no_more() -> None:
    with relays(is_mute, leads_there) as (identity, dialled):
        began_s = time.monotonic()
        stream = reach(HIDDEN, identity, STALL_S)
        assert RELAY_S * 0.9 < time.monotonic() - began_s < RELAY_S + 2
        assert stream.receive() == b"the member"
        stream.close()
        assert dialled == [0, 1]


def test_a_relay_that_said_nothing_is_asked_last_from_then_on() -> None:
    with relays(is_mute, leads_there, leads_there) as (identity, dialled):
        reach(HIDDEN, identity, STALL_S).close()
        began_s = time.monotonic()
        reach(HIDDEN, identity, STALL_S).close()
        assert time.monotonic() - began_s < RELAY_S / 2
        assert dialled == [0, 1, 1]


def test_however_many_relays_lead_nowhere_one_that_works_is_come_to() -> None:
    with relays(*[refuses] * 4, leads_there) as (identity, dialled):
        with pytest.raises(StreamLost):
            reach(HIDDEN, identity, STALL_S)
        reach(HIDDEN, identity, STALL_S).close()
        assert dialled == [0, 1, 2, 3, 4]
        reach(HIDDEN, identity, STALL_S).close()
        assert dialled[-1] == 4, "and it is remembered"


def test_nothing_is_waited_for_beyond_the_deadline() -> None:
    with relays(is_mute, is_mute, leads_there) as (identity, dialled):
        began_s = time.monotonic()
        with pytest.raises(StreamLost, match="too slow for the time there was"):
            reach(HIDDEN, identity, STALL_S, Deadline(0.5))
        assert 0.4 < time.monotonic() - began_s < 1.5
        assert dialled == [0]


def test_a_relay_that_answers_nonsense_for_the_member_costs_its_tries_alone() -> None:
    with relays(leads_to_nonsense, leads_there) as (identity, dialled):
        reach(HIDDEN, identity, STALL_S).close()
        assert dialled == [0, 0, 1]


def test_a_way_that_ends_before_it_leads_there_is_tried_once_more() -> None:
    with relays(leads_nowhere) as (identity, dialled):
        with pytest.raises(StreamLost, match="cannot be dialled, nor met at a relay"):
            reach(HIDDEN, identity, STALL_S)
        assert dialled == [0, 0]


def test_a_process_that_can_be_dialled_is_its_own_relay_first() -> None:
    with relays(leads_there, leads_there) as (identity, dialled):
        own = replace(identity, peer_id=identity.relays()[0].peer_id)
        stream = reach(HIDDEN, own, STALL_S)
        stream.close()
        assert not stream.by_third and dialled == [1]


def test_without_a_relay_nothing_is_waited_for() -> None:
    began_s = time.monotonic()
    with pytest.raises(StreamLost, match="no member is there that both could dial"):
        reach(HIDDEN, Identity(b"i" * 16, ME, 1), STALL_S)
    assert time.monotonic() - began_s < 0.5


def test_a_member_that_refuses_a_dial_is_not_looked_for_elsewhere() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        gone = replace(HIDDEN, host="127.0.0.1", port=closed.getsockname()[1])
    with relays(leads_there) as (identity, dialled):
        with pytest.raises(StreamLost, match="cannot be reached"):
            reach(gone, identity, STALL_S)
        assert dialled == []
