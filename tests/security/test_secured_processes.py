"""Peers as processes with nothing but a ticket: results are exact while one dies and one joins, and
who carries every byte of it, between peers and to the coordinator, learns nothing."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from pccl.membership.service import CoordinatorThread
from tests.integration.peer_processes import PeerProcess
from tests.security.laboratory import Laboratory, eventually, laboratory, native_has_tls
from tests.security.secured_peer import needles
from tests.security.wiretap import Wiretap

__all__ = ["laboratory"]
PROGRAM = Path(__file__).with_name("secured_peer.py")
FOUNDERS = 3
PEERS = 4


def story(stack: ExitStack, monkeypatch: pytest.MonkeyPatch, address: str) -> list[Wiretap]:
    """Three begin, one is killed, a fourth joins, all end well; returns who heard it all."""
    door = stack.enter_context(Wiretap(int(address.rpartition(":")[2])))
    taps = [stack.enter_context(Wiretap()) for _ in range(PEERS)]
    ports = ",".join(f"{tap.target}:{tap.port}" for tap in taps)
    monkeypatch.setenv("PCCL_TEST_PORTS", ports)

    def start(index: int) -> PeerProcess:
        peer = PeerProcess(f"127.0.0.1:{door.port}", "loop", index, FOUNDERS, PROGRAM)
        stack.callback(peer.discard)
        return peer

    peers = [start(index) for index in range(FOUNDERS)]
    for peer in peers:
        peer.until("contributors", FOUNDERS)
    killed = peers.pop()
    killed.send(signal.SIGKILL)
    for peer in peers:
        peer.until("contributors", FOUNDERS - 1)
    peers.append(start(FOUNDERS))
    for peer in peers:
        assert peer.until("contributors", FOUNDERS)["exact"]
    peers[0].ask_to_end()
    for peer in peers:
        facts = peer.rest()
        assert facts and all(fact["exact"] for fact in facts if "exact" in fact)
        assert peer.end() == 0, peer.errors()
    return [door, *taps]


def found_in(taps: list[Wiretap]) -> set[bytes]:
    heard = [one for tap in taps for one in tap.heard()]
    assert sum(map(len, heard)) > 1 << 20, "the tensors came this way"
    assert all(any(map(len, tap.heard())) for tap in taps[:1]), "and so did the coordinator's words"
    return {needle for needle in needles(PEERS) for one in heard if needle in one}


@pytest.mark.skipif(not native_has_tls(), reason="the native core has no TLS here")
def test_a_run_by_tickets_survives_a_death_and_who_relays_all_its_bytes_learns_nothing(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        thread = stack.enter_context(laboratory.coordinator())
        monkeypatch.setenv("PCCL_TICKET", laboratory.ticket(uses=PEERS).text)
        taps = story(stack, monkeypatch, thread.address)
        assert found_in(taps) == set()
        # None of these connections began with anything but TLS, at either end.
        firsts = {one[:1] for tap in taps for one in tap.heard() if one}
        assert firsts == {b"\x16"}
        eventually(lambda: len(laboratory.audit("admitted")) == PEERS)


def test_who_relays_the_bytes_of_a_run_without_tickets_finds_all_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the test above looks for is there to be found, if nothing is encrypted."""
    monkeypatch.delenv("PCCL_TICKET", raising=False)
    with ExitStack() as stack:
        thread = CoordinatorThread()
        stack.callback(thread.stop)
        taps = story(stack, monkeypatch, thread.start().address)
        found = found_in(taps)
        assert found >= {needles(PEERS)[0], needles(PEERS)[-1]}
