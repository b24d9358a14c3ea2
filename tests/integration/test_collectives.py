"""All collectives end to end: real processes, the real engine, mismatches and kills."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.integration.peer_processes import Run

PROGRAM = Path(__file__).with_name("collective_peer.py")
BOUND = ("reduce_scatter", "all_gather", "gather", "scatter", "all_to_all")


@pytest.mark.parametrize("program", ["exact", "uneven", "dtypes"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_results_are_exact_on_every_peer(program: str, count: int) -> None:
    with Run(PROGRAM) as run:
        peers = run.start(program, count)
        assert all(peer.fact_with("done") for peer in peers)
        assert [peer.end() for peer in peers] == [0] * count


def test_peers_with_seats_are_ranked_by_them_however_they_came() -> None:
    with Run(PROGRAM) as run:
        peers = run.start("seated", 4)
        assert [peer.end() for peer in peers] == [0] * 4


def test_operations_that_do_not_fit_together_are_told_to_all_with_both_and_inputs_stay() -> None:
    with Run(PROGRAM) as run:
        peers = run.start("mismatch", 3)
        for _ in range(7):
            facts = [peer.fact_with("kind") for peer in peers]
            for fact in facts:
                assert fact["text"] is not None, fact
                assert fact["text"].count("peer ") >= 2 and fact["text"].count("posted ") >= 2, fact
                assert fact["kept"], fact
            assert len({fact["kind"] for fact in facts}) == 1
        assert all(peer.fact_with("done") for peer in peers)


@pytest.mark.parametrize("count", [2, 3])
def test_arguments_that_do_not_fit_the_view_are_refused_and_the_run_goes_on(count: int) -> None:
    with Run(PROGRAM) as run:
        peers = run.start("misfit", count)
        for peer in peers:
            told = peer.fact_with("told")["told"]
            assert len(told) == 8 and "the root" in told[7]
            assert "divisible" in told[0] and "divisible" in told[1] and "no rank" in told[2]
        assert [peer.end() for peer in peers] == [0] * count


def kill(
    monkeypatch: pytest.MonkeyPatch, kind: str, how: str, root: str
) -> list[dict[str, object]]:
    monkeypatch.setenv("PCCL_TEST_KILL", f"{kind} {how} {root}")
    with Run(PROGRAM) as run:
        peers = run.start("killed", 3)
        facts = [peer.fact_with("ended") for peer in peers[:2]]
        assert all(peer.fact_with("done") for peer in peers[:2])
        assert [peer.end() for peer in peers[:2]] == [0, 0]
    assert facts[0]["ended"] == facts[1]["ended"]
    return facts


@pytest.mark.parametrize("kind", BOUND)
def test_a_peer_killed_before_it_posts_ends_what_depends_on_it_for_all(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for fact in kill(monkeypatch, kind, "idle", "alive"):
        assert fact["ended"] == "ViewChanged" and fact["kept"]
        assert str(fact["lost"])[:8] in str(fact["text"])


@pytest.mark.parametrize("kind", ["broadcast", "reduce", "barrier"])
def test_what_does_not_depend_on_the_killed_peer_runs_again_without_it(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for fact in kill(monkeypatch, kind, "idle", "alive"):
        assert fact["ended"] == "committed" and fact["contributors"] == 2 and fact["right"]


@pytest.mark.parametrize("kind", ["broadcast", "reduce"])
def test_a_root_killed_before_it_posts_ends_the_step_for_all(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for fact in kill(monkeypatch, kind, "idle", "lost"):
        assert fact["ended"] == "ViewChanged" and fact["kept"]


@pytest.mark.parametrize("root", ["alive", "lost"])
@pytest.mark.parametrize("kind", [*BOUND, "broadcast", "reduce", "barrier"])
def test_a_peer_killed_right_after_it_posted_leaves_the_others_of_one_mind(
    monkeypatch: pytest.MonkeyPatch, kind: str, root: str
) -> None:
    for fact in kill(monkeypatch, kind, "posted", root):
        assert fact["kept"] if fact["ended"] == "ViewChanged" else fact["right"]


def test_what_depends_on_the_members_follows_them_while_they_are_killed_and_join() -> None:
    with Run(PROGRAM) as run:
        peers = run.start("changing", 3)
        witness = peers[0]
        for _ in range(3):
            witness.until("size", 3)
            peers.append(run.start_newcomer("changing"))
            witness.until("size", 4)
            peers.pop(1).send(signal.SIGKILL)
        witness.until("size", 3)
        witness.ask_to_end()
        assert all(peer.fact_with("done") for peer in peers)
        assert [peer.end() for peer in peers] == [0, 0, 0]
