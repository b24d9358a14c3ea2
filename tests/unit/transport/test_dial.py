"""Dialling: which address, how often, how long, and what a failure says."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket

import pytest

from pccl.base.errors import ConnectError
from pccl.transport.address import Address
from pccl.transport.dial import Backoff, dial, explain, probe


def free_port() -> int:
    """A port nobody listens on: it was given to a socket that is closed again."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_delays_double_to_their_limit_and_are_spread_by_half() -> None:
    backoff = Backoff(random.Random(1), first_s=0.1, max_s=2.0)
    delays = [backoff.next_delay_s() for _ in range(8)]
    for delay_s, full_s in zip(delays, [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0], strict=True):
        assert full_s / 2 <= delay_s <= full_s
    backoff.reset()
    assert backoff.next_delay_s() <= 0.1


def test_the_same_seed_gives_the_same_delays() -> None:
    first, second = (Backoff(random.Random(7)) for _ in range(2))
    assert [first.next_delay_s() for _ in range(9)] == [second.next_delay_s() for _ in range(9)]


def test_the_first_address_that_answers_is_taken() -> None:
    async def story() -> tuple[Address, Address]:
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        async with server:
            alive = Address("127.0.0.1", server.sockets[0].getsockname()[1])
            dead = Address("127.0.0.1", free_port())
            channel, chosen = await dial([dead, alive], timeout_s=5, rng=random.Random(1))
            await channel.finish(1.0)
            return chosen, alive

    chosen, alive = asyncio.run(story())
    assert chosen == alive


def test_when_nobody_answers_the_error_names_every_address_and_why() -> None:
    dead = [Address("127.0.0.1", free_port()), Address("::1", free_port())]
    failures: list[str] = []
    with pytest.raises(ConnectError) as caught:
        asyncio.run(dial(dead, timeout_s=0.3, rng=random.Random(1), on_failure=failures.append))
    assert f"{dead[0]}: connection refused" in str(caught.value)
    assert str(dead[1]) in str(caught.value)
    assert "pccl coordinator" in str(caught.value)
    assert len(failures) >= 2, "it tried again until the time was over"


def test_one_round_is_enough_where_the_caller_says_so() -> None:
    failures: list[str] = []
    dead = [Address("127.0.0.1", free_port())]
    with pytest.raises(ConnectError):
        asyncio.run(
            dial(
                dead,
                timeout_s=60,
                rng=random.Random(1),
                rounds_max=1,
                on_failure=failures.append,
            )
        )
    assert len(failures) == 1


def test_a_refused_dial_proves_death_and_an_accepted_one_life() -> None:
    async def story() -> tuple[bool, bool]:
        dead = await probe("127.0.0.1", free_port(), timeout_s=1)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            alive = await probe("127.0.0.1", listener.getsockname()[1], timeout_s=1)
        return dead, alive

    assert asyncio.run(story()) == (False, True)


@pytest.mark.parametrize(
    ("number", "alive"),
    [
        (errno.ECONNREFUSED, False),
        (errno.ECONNRESET, False),
        (errno.ENETUNREACH, True),
        (errno.EHOSTUNREACH, True),
        (errno.ETIMEDOUT, True),
        (errno.EMFILE, True),
        (errno.EADDRNOTAVAIL, True),
    ],
)
def test_only_the_word_of_the_host_itself_proves_death(
    monkeypatch: pytest.MonkeyPatch, number: int, alive: bool
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(asyncio, "open_connection", fail)
    assert asyncio.run(probe("10.0.0.9", 4000, timeout_s=1)) is alive


def test_a_dial_that_is_not_answered_proves_nothing() -> None:
    async def story() -> bool:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            address = listener.getsockname()
            # A full backlog: the kernel answers no more handshakes.
            fillers = [socket.socket() for _ in range(4)]
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(address)
            try:
                return await probe("127.0.0.1", address[1], timeout_s=0.2)
            finally:
                for filler in fillers:
                    filler.close()

    assert asyncio.run(story()) is True


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "connection refused"),
        (TimeoutError(), "no answer"),
        (socket.gaierror(-2, "Name or service not known"), "unknown host name"),
        (OSError(101, "Network is unreachable"), "network is unreachable"),
        (OSError("odd"), "odd"),
    ],
)
def test_errors_are_explained_in_words(error: OSError, words: str) -> None:
    assert explain(error) == words
