"""Sparse exchange between real processes: exact means, deaths, NaNs, tensors that do not fit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.integration.peer_processes import Run

PEER = Path(__file__).with_name("sparse_peer.py")


@pytest.mark.parametrize("how", ["sparse", "dense"])
def test_means_are_exact_and_alike_while_a_member_dies_and_another_comes(how: str) -> None:
    with Run(PEER) as run:
        peers = run.start(how, 3)
        for peer in peers:
            fact = peer.until("contributors", 3)
            assert fact["exact"] and fact["dense"] == (how == "dense"), fact
        peers[2].send(signal.SIGKILL)
        facts = [peer.until("contributors", 2) for peer in peers[:2]]
        assert facts[0]["step"] == facts[1]["step"] and facts[0]["digest"] == facts[1]["digest"]
        assert all(fact["exact"] for fact in facts)
        late = run.start_one(how, 3, 2)
        for peer in (*peers[:2], late):
            fact = peer.until("contributors", 3)
            assert fact["exact"], fact
        peers[0].ask_to_end()
        assert [peer.end() for peer in (*peers[:2], late)] == [0, 0, 0]
        told: dict[int, set[str]] = {}
        for peer in (*peers[:2], late):
            for fact in peer.rest():
                assert fact["exact"], fact
                told.setdefault(fact["step"], set()).add(fact["digest"])
        assert all(len(digests) == 1 for digests in told.values())


@pytest.mark.parametrize("way", ["nan=raise", "nan=raise,dense"])
def test_a_nan_raises_on_all_members_and_names_whose_it_is(way: str) -> None:
    with Run(PEER) as run:
        peers = [run.start_one(way, 0, 2), run.start_one(f"{way},victim", 1, 2)]
        victim = [peer.fact_with("peer")["peer"] for peer in peers][1]
        for peer in peers:
            raised = peer.fact_with("raised")["raised"]
            assert "Inf or a NaN" in raised and victim in raised
            assert peer.fact_with("after") == {"after": 2, "left_out": 0}
        assert [peer.end() for peer in peers] == [0, 0]


def test_a_nan_leaves_its_contributor_out_where_that_is_asked_for() -> None:
    how = "nan=drop_contributor"
    with Run(PEER) as run:
        peers = [run.start_one(how, 0, 2), run.start_one(f"{how},victim", 1, 2)]
        facts = [peer.fact_with("left_out") for peer in peers]
        assert facts[0] == {"left_out": 1, "finite": True, "sent_nothing": False}
        assert facts[1] == {"left_out": 1, "finite": True, "sent_nothing": True}
        assert [peer.end() for peer in peers] == [0, 0]


@pytest.mark.parametrize("shapes", [("64x64", "64x128"), ("64x64", "4096")])
def test_tensors_that_differ_are_an_error_on_all(shapes: tuple[str, str]) -> None:
    with Run(PEER) as run:
        peers = [run.start_one(f"odd={shape}", i, 2) for i, shape in enumerate(shapes)]
        for peer in peers:
            fact = peer.fact_with("error")
            assert fact["error"] == "DescriptorMismatch", fact
        assert [peer.end() for peer in peers] == [0, 0]
