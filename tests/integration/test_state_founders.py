"""A sync in which who was elected gives nothing: it is left out where nothing is lost with it, and
the others go on; else what it holds stays, and who has not got it does not.

Invariant of every story: what members hold in the end is one founder's content, bit for bit, and
never parts of two.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pccl
from pccl.membership.service import CoordinatorThread
from pccl.state import opening
from pccl.state.kept import Pin
from pccl.state.layout import Leaf
from pccl.state.stream import Identity, StreamLost
from pccl.state.tensors import Bytes
from tests.integration.peer_processes import Run
from tests.integration.state_peer import fresh, hashed

PROGRAM = Path(__file__).with_name("founder_peer.py")
WAIT_S = 60.0
SIZE = 1 << 20  # of int32: four pieces
LEASE_S = 3.0


class Refuses(pccl.SharedState):
    """Does not give."""

    def pin(self, *, precious: bool = False) -> Pin:
        raise pccl.UsageError("this founder gives nothing")


class RefusesAtFirst(pccl.SharedState):
    """Does not give yet."""

    until_s = 0.0

    def pin(self, *, precious: bool = False) -> Pin:
        self.until_s = self.until_s or time.monotonic() + 2.0
        if time.monotonic() < self.until_s:
            raise pccl.UsageError("this founder gives nothing yet")
        return super().pin(precious=precious)


class Silent(pccl.SharedState):
    """Does not answer either."""

    over = threading.Event()

    def pin(self, *, precious: bool = False) -> Pin:
        self.over.wait(WAIT_S)
        return super().pin(precious=precious)


class Damaged(pccl.SharedState):
    """One of its pieces is not what was hashed."""

    def read(self, pin: Pin, leaf: Leaf, scratch: Bytes | None) -> Bytes | None:
        found = super().read(pin, leaf, scratch)
        return found if found is None or leaf.offset == 0 else found ^ np.uint8(1)


KINDS: dict[str, type[pccl.SharedState]] = {
    "refuses": Refuses,
    "is silent": Silent,
    "is damaged": Damaged,
}


def content(seed: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.random.default_rng(seed).integers(0, 1 << 30, SIZE, dtype=np.int32)


@pytest.fixture
def address() -> Iterator[str]:
    thread = CoordinatorThread().start()
    Silent.over.clear()
    yield thread.address
    Silent.over.set()
    thread.stop()


class Founder:
    """One founder of three, in a thread; what rank r holds follows from r."""

    def __init__(
        self, address: str, kinds: dict[int, type[pccl.SharedState]], **named: Any
    ) -> None:
        self._address, self._kinds = address, kinds
        self._seeds: dict[int, int] = named.get("seeds", {})
        self._revisions: dict[int, int] = named.get("revisions", {})
        self._strategies: dict[int, Any] = named.get("strategies", {})
        self._timeout_s: float = named.get("timeout_s", 30.0)
        self.rank = -1
        self.peer: pccl.Peer
        self.result: pccl.SyncResult | None = None
        self.error: pccl.PcclError | None = None
        self.total = self.took_s = 0.0
        self.closed = False

    def run(self) -> Founder:
        with pccl.connect(self._address, min_world=2, timeout_s=WAIT_S) as comm:
            comm.wait_for(3)
            comm.barrier()
            self.rank, self.peer = comm.rank, comm.peer_id
            self.model = content(self._seeds.get(comm.rank, comm.rank))
            state = self._kinds.get(comm.rank, pccl.SharedState)({"model": self.model})
            if (revision := self._revisions.get(comm.rank, 0)) > 0:
                state.restored(revision, 1)
            began_s = time.monotonic()
            try:
                strategy = self._strategies.get(comm.rank, "popular")
                self.result = comm.sync(state, strategy, timeout_s=self._timeout_s)
                total = np.ones(3)
                comm.all_reduce(total)
                self.total = float(total[0])
            except pccl.PcclError as error:
                self.error = error
            self.took_s = time.monotonic() - began_s
            self.closed = comm.closed
        return self

    def holds(self, seed: int) -> bool:
        return bool((self.model == content(seed)).all())


def found(
    address: str, kinds: dict[int, type[pccl.SharedState]] | None = None, **named: Any
) -> list[Founder]:
    """Returns three founders after their sync, by rank."""
    with ThreadPoolExecutor(3) as pool:
        futures: list[Future[Founder]] = [
            pool.submit(Founder(address, kinds or {}, **named).run) for _ in range(3)
        ]
        return sorted((future.result(WAIT_S) for future in futures), key=lambda one: one.rank)


@pytest.mark.parametrize("kind", KINDS)
def test_an_elected_founder_that_gives_nothing_is_named_and_the_next_one_counts(
    address: str, kind: str
) -> None:
    founders = found(address, {0: KINDS[kind]}, timeout_s=12.0)
    assert [one.error for one in founders] == [None] * 3
    for one in founders:
        assert one.result is not None
        assert one.result.passed_over == (founders[0].peer,)
        assert one.result.sources == (founders[1].peer,)
        assert one.holds(1), "bit for bit, and nothing of the first one's pieces"
        assert one.total == 3 and one.took_s < 12


def test_of_two_that_give_nothing_both_are_passed_over(address: str) -> None:
    founders = found(address, {0: Refuses, 1: Damaged})
    assert [one.error for one in founders] == [None] * 3
    passed = {one.result.passed_over for one in founders if one.result is not None}
    assert passed == {(founders[0].peer, founders[1].peer)}
    assert all(one.holds(2) and one.total == 3 for one in founders)


@pytest.mark.parametrize("kind", [Refuses, Damaged])
def test_a_newer_state_than_all_others_hold_is_not_passed_over_and_all_keep_what_they_had(
    address: str, kind: type[pccl.SharedState]
) -> None:
    founders = found(address, {2: kind}, revisions={2: 7})
    assert [type(one.error) for one in founders] == [pccl.StepFailed] * 3
    assert all("could not be brought to all" in str(one.error) for one in founders)
    assert all(one.holds(one.rank) and not one.closed for one in founders)


def test_three_tries_take_time_so_who_refuses_for_two_seconds_is_not_passed_over(
    address: str,
) -> None:
    founders = found(address, {0: RefusesAtFirst})
    assert [one.error for one in founders] == [None] * 3
    for one in founders:
        assert one.result is not None and one.result.passed_over == ()
        assert one.holds(0) and one.total == 3 and one.took_s > 2.0


def synced(comm: pccl.Communicator, state: pccl.SharedState) -> pccl.SyncResult | pccl.PcclError:
    result: pccl.SyncResult | pccl.PcclError
    try:
        result = comm.sync(state, timeout_s=30.0)
    except pccl.PcclError as error:
        result = error
    return result


def test_what_a_run_has_learnt_stays_though_more_newcomers_cannot_fetch_it(address: str) -> None:
    def enters() -> pccl.Communicator:
        return pccl.connect(address, min_world=1, timeout_s=WAIT_S)

    class RefusesSoon(pccl.SharedState):
        refuses = False

        def pin(self, *, precious: bool = False) -> Pin:
            if self.refuses:
                raise pccl.UsageError("this member gives nothing")
            return super().pin(precious=precious)

    with ThreadPoolExecutor(3) as pool, enters() as veteran, enters() as second, enters() as third:
        model = np.full(SIZE, 7, np.int32)
        state = RefusesSoon({"model": model})
        veteran.sync(state)
        with veteran.step("train") as step:
            step.all_reduce(np.ones(4))
        with state.update(step):
            model += 1
        state.refuses = True
        fresh = [pccl.SharedState({"model": np.zeros(SIZE, np.int32)}) for _ in range(2)]
        strangers = [
            pool.submit(synced, comm, one) for comm, one in zip((second, third), fresh, strict=True)
        ]
        time.sleep(1.5)  # both wait at the entry
        kept = synced(veteran, state)
        ends = [one.result(WAIT_S) for one in strangers]
        assert isinstance(kept, pccl.SyncResult) and kept.passed_over == ()
        assert kept.revision == state.revision == 1 and (model == 8).all()
        assert not veteran.closed
        assert all(isinstance(end, pccl.StepFailed) and "left the run" in str(end) for end in ends)


def test_who_comes_between_two_tries_counts_and_decides_as_the_others(address: str) -> None:
    """Two hold the same and give nothing; of the two that want it, one comes after a try."""
    refused = threading.Event()

    class RefusesAloud(Refuses):
        def pin(self, *, precious: bool = False) -> Pin:
            refused.set()
            return super().pin(precious=precious)

    def enter(kind: type[pccl.SharedState], seed: int, late: bool) -> tuple[Any, bytes, pccl.Peer]:
        if late:
            assert refused.wait(WAIT_S)
        with pccl.connect(address, min_world=2, timeout_s=WAIT_S) as comm:
            if not late:
                comm.wait_for(3)
                comm.barrier()
            model = content(seed)
            result = synced(comm, kind({"model": model}))
            if isinstance(result, pccl.SyncResult):
                comm.barrier()
            end = result, model.tobytes(), comm.peer_id
        return end

    kinds = (RefusesAloud, RefusesAloud, pccl.SharedState, pccl.SharedState)
    with ThreadPoolExecutor(4) as pool:
        ends = [
            one.result(WAIT_S)
            for one in [
                pool.submit(enter, kind, (5, 5, 1, 2)[i], i == 3) for i, kind in enumerate(kinds)
            ]
        ]
    assert all(isinstance(result, pccl.SyncResult) for result, _, _ in ends), ends
    over = {peer for _, _, peer in ends[:2]}
    assert [set(result.passed_over) for result, _, _ in ends] == [over] * 4
    assert len({result.sources for result, _, _ in ends}) == 1
    held = {model for _, model, _ in ends}
    assert len(held) == 1 and held <= {content(1).tobytes(), content(2).tobytes()}


def test_where_the_only_one_that_may_give_gives_nothing_it_is_an_error_on_all(
    address: str,
) -> None:
    founders = found(address, {1: Refuses}, strategies={0: "receive_only", 2: "receive_only"})
    assert [type(one.error) for one in founders] == [pccl.StepFailed] * 3
    assert all("could not be brought to all" in str(one.error) for one in founders)
    assert all(one.holds(one.rank) and not one.closed for one in founders)


def test_who_alone_cannot_be_given_what_most_hold_leaves_and_the_others_go_on(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off = set[bytes]()

    def reach_unless_cut_off(member: Any, identity: Identity, *others: Any) -> Any:
        cut_off.add(identity.peer_id)
        raise StreamLost("cannot be reached: there is a wall")

    monkeypatch.setattr(opening, "reach", reach_unless_cut_off)
    founders = found(address, seeds={0: 5, 1: 5})
    odd, others = founders[2], founders[:2]
    assert isinstance(odd.error, pccl.StepFailed) and odd.closed and "a wall" in str(odd.error)
    assert cut_off == {bytes(odd.peer)}, "nobody else dials anybody"
    assert all(one.error is None and one.total == 2 and one.holds(5) for one in others)


def test_a_founder_that_is_stopped_as_it_is_elected_is_left_out_within_its_lease() -> None:
    with Run(PROGRAM) as run:
        peers = run.start("founds", 3)
        elected = peers[2]  # of the highest revision
        elected.fact_with("asked")
        elected.send(signal.SIGSTOP)
        began_s = time.monotonic()
        told = [peer.fact_with("end") for peer in peers[:2]]
        assert time.monotonic() - began_s < 4 * LEASE_S
        assert told[0]["end"] == told[1]["end"] and told[0]["members"] == 2
        assert told[0]["end"] in (hashed(fresh(0)), hashed(fresh(1))), "the lower rank's"
        assert [peer.end() for peer in peers[:2]] == [0, 0], peers[0].errors()
