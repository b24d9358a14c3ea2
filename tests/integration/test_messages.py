"""Messages between real processes: exact contents, mismatches, deadlines and kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.peer_processes import Run

PROGRAM = Path(__file__).with_name("message_peer.py")


@pytest.mark.parametrize(("program", "count"), [("exact", 2), ("exact", 4), ("anybody", 3)])
def test_what_is_received_is_what_was_sent(program: str, count: int) -> None:
    with Run(PROGRAM) as run:
        peers = run.start(program, count)
        assert all(peer.fact_with("done") for peer in peers)
        assert [peer.end() for peer in peers] == [0] * count


def test_what_does_not_fit_is_told_to_both_ends_with_both() -> None:
    with Run(PROGRAM) as run:
        peers = run.start("mismatch", 2)
        for sent, expected in (("f32[10]", "f32[11]"), ("i64[5]", "u64[5]"), ("f64[3", "f64[1]")):
            facts = [peer.fact_with("text") for peer in peers]
            assert facts[0]["text"] == facts[1]["text"]
            text = facts[0]["text"]
            assert f"sends {sent}" in text and f"receives {expected}" in text, text
            assert facts[0]["untouched"] and facts[1]["untouched"]
        assert all(peer.fact_with("done") for peer in peers)
        assert [peer.end() for peer in peers] == [0, 0]


@pytest.mark.parametrize("after", ["0.005", "0.02", "0.3"])
@pytest.mark.parametrize("role", ["sender", "receiver"])
def test_a_peer_killed_in_the_middle_of_a_message_is_lost_at_once_and_steps_go_on(
    monkeypatch: pytest.MonkeyPatch, role: str, after: str
) -> None:
    monkeypatch.setenv("PCCL_TEST_KILL", role)
    monkeypatch.setenv("PCCL_TEST_AFTER", after)
    with Run(PROGRAM) as run:
        peers = {peer.fact_with("rank")["rank"]: peer for peer in run.start("killed", 3)}
        facts = [peers[0].fact_with("lost") for _ in range(3)]
        # The large one may have been through before the kill.
        assert facts[0]["lost"] is None or facts[0]["retryable"]
        assert facts[1]["lost"] is not None and facts[2]["lost"] is None
        for rank in (0, 1):
            assert peers[rank].fact_with("done")["seconds"] < 20
            assert peers[rank].end() == 0


def test_a_message_whose_time_is_over_is_given_up_and_the_next_one_is_not_concerned() -> None:
    with Run(PROGRAM) as run:
        peers = {peer.fact_with("rank")["rank"]: peer for peer in run.start("late", 2)}
        texts = [peers[0].fact_with("text")["text"] for _ in range(4)]
        assert all(text is not None and "not done within 0.3 s" in text for text in texts)
        assert texts[0].startswith("send to rank 1, tag 1")
        assert texts[3].startswith("receive from any, tag 2")
        assert all(peer.fact_with("done") for peer in peers.values())
        assert [peer.end() for peer in peers.values()] == [0, 0]


def test_who_closes_right_after_a_receive_has_answered_and_whoever_waits_for_it_is_told() -> None:
    with Run(PROGRAM) as run:
        peers = {peer.fact_with("rank")["rank"]: peer for peer in run.start("closing", 3)}
        assert peers[0].fact_with("lost")["lost"] is not None
        assert all(peer.fact_with("done") for peer in peers.values())
        assert [peer.end() for peer in peers.values()] == [0, 0, 0]
