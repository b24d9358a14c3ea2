"""Who carries every byte of a run hears nothing of it, whatever it is: dense, coded and sparse
sums, messages, a newcomer's state, weights in full and their changes.

Checkpoints are written to the member's own disk and never travel.  The same bytes of a run without
tickets are found, each of them: so the search can fail.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest

import pccl
from pccl.membership.service import CoordinatorThread
from pccl.transport.address import parse_address
from pccl.transport.identity import Role
from pccl.weights import Publisher, Receiver
from tests.security.laboratory import Laboratory, laboratory, native_has_tls
from tests.security.wiretap import Wiretap

__all__ = ["laboratory"]
WAIT_S = 60.0
SIZE = 1 << 16
DENSE, SPARSE = np.float32(1234567.0), np.float32(7654321.0)
DICE = np.random.default_rng(7)
STATE, WEIGHTS, CHANGES, MESSAGE = (DICE.integers(0, 256, SIZE, np.uint8) for _ in range(4))
NEXT_WEIGHTS = np.where(np.arange(SIZE) < SIZE // 2, WEIGHTS, CHANGES)
STEP = "a step by a name that nobody else has heard"
NEEDLES = {
    "a contribution": np.full(8, DENSE).tobytes(),
    "a sum": np.full(8, 2 * DENSE).tobytes(),
    "a coded contribution": b"\x7f" * 48,
    "a sparse contribution": np.full(8, SPARSE).tobytes(),
    "a message": MESSAGE[1000:1048].tobytes(),
    "the state": STATE[1000:1048].tobytes(),
    "weights": WEIGHTS[1000:1048].tobytes(),
    "changes of weights": CHANGES[-1048:-1000].tobytes(),
    "the name of a step": STEP.encode(),
}


def together(*programs: Callable[[], None]) -> None:
    """Runs each on a thread of its own; raises what any of them raised."""
    failures: list[BaseException] = []

    def run(program: Callable[[], None]) -> None:
        try:
            program()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(one,), daemon=True) for one in programs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAIT_S)
        assert not thread.is_alive(), "a peer hangs"
    if failures:
        raise failures[0]


class Tapped:
    """Ways to make peers, publishers and receivers that are reached through taps alone."""

    def __init__(self, stack: ExitStack, address: str, tickets: Callable[[Role], str]) -> None:
        self._stack = stack
        self._tickets = tickets
        self._door = stack.enter_context(Wiretap(parse_address(address).port))
        self.taps = [self._door]

    @property
    def coordinator(self) -> str:
        return f"127.0.0.1:{self._door.port}"

    def tap(self, target: int = 0) -> Wiretap:
        self.taps.append(self._stack.enter_context(Wiretap(target)))
        return self.taps[-1]

    def peer(self, **arguments: Any) -> pccl.Communicator:
        tap = self.tap()
        return pccl.connect(
            self.coordinator,
            ticket=self._tickets(Role.TRAINER),
            listen=f"127.0.0.1:{tap.target}",
            advertise=f"127.0.0.1:{tap.port}",
            shared_memory=False,
            timeout_s=WAIT_S,
            **arguments,
        )

    def of_weights(self, role: Role) -> dict[str, Any]:
        return {"ticket": self._tickets(role), "coordinator": self.coordinator}


def sums(peer: pccl.Communicator, other_rank: int) -> None:
    """Dense, coded and sparse, and a message, between two; each result is exact."""
    dense, coded = np.full(SIZE, DENSE), np.full(SIZE, np.float32(3.0))
    with peer.step("sums") as step:
        step.all_reduce(dense)
        step.all_reduce(coded, codec="int8")
    assert (dense == 2 * DENSE).all() and np.allclose(coded, 6.0)
    sparse = np.zeros((64, 64), np.float32)
    sparse[:1] = SPARSE
    found = peer.sparse_all_reduce([sparse], top_k=64, value_bits=32)
    assert (np.asarray(found.mean[0])[:1] == SPARSE).all()
    if peer.rank == 0:
        peer.send(MESSAGE, other_rank)
    else:
        into = np.empty_like(MESSAGE)
        peer.recv(into, other_rank)
        assert (into == MESSAGE).all()


def newcomers(tapped: Tapped) -> None:
    """A member with a state, and one that comes later and is given it; then both sum."""
    joined = threading.Event()

    def first() -> None:
        state = pccl.SharedState({"weights": STATE.copy()})
        with tapped.peer(state=state) as peer:
            while True:
                alone = np.ones(4, np.float32)
                with peer.step(STEP) as step:
                    step.all_reduce(alone)
                joined.set()
                if len(step.outcome.contributors) == 2:
                    break
            sums(peer, 1 - peer.rank)
            peer.barrier()

    def second() -> None:
        assert joined.wait(WAIT_S)
        mine = np.zeros_like(STATE)
        with tapped.peer(state=pccl.SharedState({"weights": mine})) as peer:
            one = np.ones(4, np.float32)
            with peer.step(STEP) as step:
                step.all_reduce(one)
            assert (mine == STATE).all(), "it has the member's state"
            sums(peer, 1 - peer.rank)
            peer.barrier()

    together(first, second)


def weights(tapped: Tapped) -> None:
    """An anchor and what changed, to one receiver from the publisher and to one from the other."""
    with Publisher(fan_out=1, **tapped.of_weights(Role.TRAINER)) as publisher:
        door = tapped.tap(parse_address(publisher.address).port)
        publisher.publish({"weights": WEIGHTS})
        with ExitStack() as stack:
            targets = []
            for _ in range(2):
                tap = tapped.tap()
                made = Receiver(
                    f"127.0.0.1:{door.port}",
                    listen=f"127.0.0.1:{tap.target}",
                    **tapped.of_weights(Role.RECEIVER),
                )
                made._fetcher._port = tap.port  # what it tells the publisher
                targets.append((stack.enter_context(made), {"weights": np.zeros_like(WEIGHTS)}))
            for receiver, into in targets:
                receiver.pull(into, timeout_s=WAIT_S)
                assert (into["weights"] == WEIGHTS).all()
            publisher.publish({"weights": NEXT_WEIGHTS})
            for receiver, into in targets:
                receiver.pull(into, timeout_s=WAIT_S, at_least=2)
                assert (into["weights"] == NEXT_WEIGHTS).all()


def heard(tapped: Tapped) -> set[str]:
    newcomers(tapped)
    weights(tapped)
    streams = [one for tap in tapped.taps for one in tap.heard()]
    assert sum(map(len, streams)) > 8 * SIZE, "all of it came this way"
    return {what for what, bytes_ in NEEDLES.items() if any(bytes_ in one for one in streams)}


@contextmanager
def tapped_run(address: str, tickets: Callable[[Role], str]) -> Iterator[Tapped]:
    with ExitStack() as stack:
        yield Tapped(stack, address, tickets)


@pytest.mark.skipif(not native_has_tls(), reason="the native core has no TLS here")
def test_of_a_run_by_tickets_nothing_is_heard(laboratory: Laboratory) -> None:
    with laboratory.coordinator() as thread:
        ticket = {
            role: laboratory.ticket(role, uses=8).text for role in (Role.TRAINER, Role.RECEIVER)
        }
        with tapped_run(thread.address, ticket.__getitem__) as tapped:
            assert heard(tapped) == set()
            firsts = {one[:1] for tap in tapped.taps for one in tap.heard() if one}
            assert firsts == {b"\x16", b"P"}, "TLS, and the preface of a state stream"


def test_of_a_run_without_tickets_everything_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PCCL_TICKET", raising=False)
    thread = CoordinatorThread().start()
    try:
        with tapped_run(thread.address, lambda role: "") as tapped:
            assert heard(tapped) == set(NEEDLES)
    finally:
        thread.stop()
