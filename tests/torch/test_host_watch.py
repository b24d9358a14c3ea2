"""Rank 0's coordinator is given up for silence, and for nothing that a living one does."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from pccl.base.config import ControlLimits
from pccl.membership.agent_security import open_for_status
from pccl.membership.standing import Standing
from pccl.pytorch import host_watch, hosting
from pccl.pytorch.host_watch import HostWatch
from pccl.session import Session
from pccl.transport.address import Address, parse_address
from pccl.transport.channel import Channel
from pccl.transport.join_ticket import JoinTicket
from tests.security.laboratory import Laboratory, eventually, laboratory

__all__ = ["laboratory"]
ONE = ControlLimits(asking_connections_max=1)


class Waiting:
    """A session whose operation does not end, and the run of it."""

    closed = False

    def __init__(self, attached: bool = True) -> None:
        self.lost: list[str] = []
        self.standing = Standing(attached=attached)
        self.agent = self
        self.left = False

    def wait_until(self, holds: Callable[[Standing], bool], timeout_s: float) -> bool:
        begin_s = time.monotonic()
        while not (found := holds(self.standing)) and time.monotonic() < begin_s + timeout_s:
            time.sleep(0.01)
        return found

    def look_again(self) -> None: ...

    def in_flight(self) -> frozenset[object]:
        return frozenset([1])

    def lose_host(self, what: str, reason: str) -> None:
        self.lost.append(f"{what}: {reason}")

    def host_is_in(self) -> bool:
        return not self.left


@contextmanager
def watching(
    address: Address, ticket: JoinTicket | None = None, waiting: Waiting | None = None
) -> Iterator[list[str]]:
    waiting = waiting or Waiting()
    watch = HostWatch(waiting, cast(Session, waiting), (address,), "a group", ticket)
    try:
        yield waiting.lost
    finally:
        watch.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_watch, "LOOK_S", (0.05, 0.1))
    monkeypatch.setattr(host_watch, "ANSWER_S", 0.5)
    monkeypatch.setattr(host_watch, "SILENCE_S", 1.5)


@contextmanager
def held_place(address: str, ticket: JoinTicket) -> Iterator[None]:
    """The only connection that may ask is taken, so whoever else asks is refused."""

    async def hold() -> Channel:
        where = [parse_address(address)]
        channel, _ = await open_for_status(where, ticket, timeout_s=10, rng=random.Random(1))
        assert await channel.receive(10)
        return channel

    with asyncio.Runner() as runner:
        channel = runner.run(hold())
        yield
        channel.abort()


def test_a_coordinator_that_refuses_to_answer_lives(laboratory: Laboratory, quick: None) -> None:
    with laboratory.coordinator(limits=ONE) as coordinator:
        ticket = laboratory.ticket()
        with (
            held_place(coordinator.address, ticket),
            watching(parse_address(coordinator.address), ticket) as lost,
        ):
            refused = len(laboratory.audit("refused"))
            eventually(lambda: len(laboratory.audit("refused")) > refused + 10)
            time.sleep(3.0)
            assert not lost


def test_a_coordinator_lives_that_says_that_the_ticket_is_over(
    laboratory: Laboratory, quick: None
) -> None:
    """As it does when a group is older than the ticket that its ranks came by."""
    with laboratory.coordinator() as coordinator:
        ticket = laboratory.ticket()
        laboratory.ca.ledger.revoke(ticket.token_id.hex(), int(time.time()), "")
        with watching(parse_address(coordinator.address), ticket) as lost:
            eventually(lambda: len(laboratory.audit("refused")) > 10)
            time.sleep(3.0)
            assert not lost


def test_a_crowd_at_the_port_that_passes_is_not_the_end_of_it(
    laboratory: Laboratory, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first connections are closed at once, as a port without a place for them does."""
    monkeypatch.setattr(host_watch, "SILENCE_S", 10.0)
    with socket.create_server(("127.0.0.1", 0)) as port:

        def turn_away() -> None:
            for _ in range(8):
                port.accept()[0].close()

        crowd = threading.Thread(target=turn_away, daemon=True)
        crowd.start()
        address = Address("127.0.0.1", port.getsockname()[1])
        with watching(address, laboratory.ticket()) as lost:
            crowd.join(20)
            assert not crowd.is_alive() and not lost


def test_one_that_says_nothing_is_given_up_in_time(quick: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = Address("127.0.0.1", silent.getsockname()[1])
        with watching(address) as lost:
            eventually(lambda: bool(lost), 10)
            assert len(lost) == 1 and "is stopped: no answer for 1.5 s" in lost[0]


def test_one_whose_connection_ends_and_whose_port_refuses_is_given_up_at_once() -> None:
    waiting = Waiting(attached=False)
    with socket.create_server(("127.0.0.1", 0)) as port:
        address = Address("127.0.0.1", port.getsockname()[1])
        with watching(address, waiting=waiting) as lost:
            time.sleep(1.5)
            assert not lost, "somebody listens: it may be about to answer"
            port.close()
            eventually(lambda: bool(lost), 5)
            assert len(lost) == 1 and "has ended: nobody listens" in lost[0]


def test_one_that_has_left_may_end() -> None:
    waiting = Waiting(attached=False)
    waiting.left = True
    with socket.create_server(("127.0.0.1", 0)) as port:
        address = Address("127.0.0.1", port.getsockname()[1])
    with watching(address, waiting=waiting) as lost:
        time.sleep(1.5)
        assert not lost


def test_a_coordinator_that_retires_and_refuses_to_say_who_is_in_stays_for_its_time(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosting, "RETIRE_S", 2.0)
    with laboratory.coordinator(limits=ONE) as coordinator:
        ticket = laboratory.ticket()
        stops: list[float] = []

        def stop(stop: Any = coordinator.stop) -> None:
            stops.append(time.monotonic())
            stop()

        monkeypatch.setattr(coordinator, "stop", stop)
        with held_place(coordinator.address, ticket):
            begin_s = time.monotonic()
            hosting.retire(hosting.Hosted(coordinator, ticket, None))
            hosting.join_retired()
        assert len(stops) == 1 and stops[0] - begin_s >= 1.9
