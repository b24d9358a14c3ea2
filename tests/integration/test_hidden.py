"""Peers that nobody can dial: they dial, two of them meet at a third, and they die like others."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.integration.peer_processes import Run

PROGRAM = Path(__file__).with_name("hidden_peer.py")


@pytest.mark.parametrize("hidden", ["0", "1", "0,1", "1,2"])
def test_peers_that_nobody_can_dial_take_part_and_every_sum_is_exact(
    monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    monkeypatch.setenv("PCCL_TEST_HIDDEN", hidden)
    monkeypatch.setenv("PCCL_TEST_UNTIL", "3")
    with Run(PROGRAM) as run:
        facts = [peer.rest() for peer in run.start("trains", 3)]
        assert [peer.end() for peer in run.peers] == [0, 0, 0], run.peers[0].errors()
        for told in facts:
            assert [fact["last"] for fact in told if "last" in fact] == [7] * 30


def test_one_of_two_that_met_dies_and_another_comes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCCL_TEST_HIDDEN", "0,2,3")
    monkeypatch.setenv("PCCL_TEST_UNTIL", "4")
    with Run(PROGRAM) as run:
        peers = run.start("trains", 3)
        for peer in peers:
            peer.until("sum", 7)
        peers[2].send(signal.SIGKILL)
        for peer in peers[:2]:
            peer.until("sum", 3)
        living = [*peers[:2], *(run.start_one("trains", index, 1) for index in (3, 4))]
        facts = [peer.rest() for peer in living]
        assert [peer.end() for peer in living] == [0] * 4, peers[0].errors()
        for told in facts:
            assert [fact["last"] for fact in told if "last" in fact] == [1 | 2 | 8 | 16] * 30
