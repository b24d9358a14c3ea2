"""Peers that leave, are left behind or left alone: real processes, every sum checked exactly."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.peer_processes import PeerProcess, Run

PROGRAM = Path(__file__).with_name("ways_out_peer.py")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples/leave.py"


def until_size(peers: list[PeerProcess], world: int) -> list[dict[str, Any]]:
    return [peer.until("world", world) for peer in peers]


def retries_until(peer: PeerProcess, world: int, then: int) -> list[int]:
    """Returns the retries of all steps up to `then` steps after the world has this size."""
    seen = []
    while True:
        fact = peer.fact_with("retries")
        seen.append(fact["retries"])
        if fact["world"] == world:
            return seen + [peer.fact_with("retries")["retries"] for _ in range(then)]


@pytest.mark.parametrize("how", ["leave", "sigterm"])
def test_a_peer_that_leaves_while_all_loop_aborts_nothing(how: str) -> None:
    with Run(PROGRAM) as run:
        peers = run.start("sigterm", 3)
        until_size(peers, 3)
        if how == "leave":
            peers[2].say("leave")
        else:
            peers[2].send(signal.SIGTERM)
        for peer in peers[:2]:
            assert not any(retries_until(peer, 2, then=20))
        while "left" not in (fact := peers[2].next_fact()):
            assert fact.get("retries", 0) == 0
        assert peers[2].fact_with("closed")["closed"]
        assert peers[2].end() == 0
        for peer in peers[:2]:
            assert not any(peer.fact_with("retries")["retries"] for _ in range(20))
        peers[0].say("end")
        assert [peer.end() for peer in peers[:2]] == [0, 0]


def test_half_of_the_peers_may_leave_at_once() -> None:
    with Run(PROGRAM) as run:
        peers = run.start("sigterm", 4)
        until_size(peers, 4)
        for peer in peers[2:]:
            peer.send(signal.SIGTERM)
        for peer in peers[:2]:
            assert not any(retries_until(peer, 2, then=5))
        assert [peer.end() for peer in peers[2:]] == [0, 0]
        peers[0].say("end")
        assert [peer.end() for peer in peers[:2]] == [0, 0]


def test_all_peers_may_leave_and_a_newcomer_begins_anew() -> None:
    with Run(PROGRAM) as run:
        peers = run.start("sigterm", 2)
        until_size(peers, 2)
        for peer in peers:
            peer.send(signal.SIGTERM)
        assert [peer.end() for peer in peers] == [0, 0]
        newcomer = run.start_newcomer("sigterm")
        assert newcomer.until("world", 1)["step"] == 0
        newcomer.say("end")
        assert newcomer.end() == 0


def test_a_leaver_that_is_killed_in_the_middle_costs_what_a_kill_costs() -> None:
    with Run(PROGRAM) as run:
        peers = run.start("sigterm", 3)
        until_size(peers, 3)
        peers[2].send(signal.SIGTERM)
        peers[2].send(signal.SIGKILL)
        until_size(peers[:2], 2)
        peers[0].say("end")
        assert [peer.end() for peer in peers[:2]] == [0, 0]


def test_a_stopped_peer_does_not_keep_a_leaver_beyond_its_deadline() -> None:
    with Run(PROGRAM) as run:
        peers = run.start("sigterm", 3)
        until_size(peers, 3)
        peers[1].send(signal.SIGSTOP)
        peers[2].send(signal.SIGTERM)
        until_size(peers[:1], 1)
        assert peers[2].end() == 0
        peers[1].send(signal.SIGCONT)
        peers[0].say("end")
        assert peers[0].end() == 0


def test_groups_sum_among_themselves_and_commit_together_when_one_peer_is_killed() -> None:
    with Run(PROGRAM) as run:
        peers = [run.start_one("group=0" if i % 2 == 0 else "group=1", i, 4) for i in range(4)]
        facts = until_size(peers, 4)
        assert all(len(fact["contributors"]) == 2 for fact in facts)
        assert facts[0]["contributors"] == facts[2]["contributors"]
        assert not set(facts[0]["contributors"]) & set(facts[1]["contributors"])
        peers[3].send(signal.SIGKILL)
        after = until_size(peers[:3], 3)
        assert [len(fact["contributors"]) for fact in after] == [2, 1, 2]
        steps = {fact["step"] for fact in after}
        assert len(steps) == 1  # the first step without it is the same in both groups
        for peer in peers[:2]:  # each group ends by itself
            peer.say("end")
        assert [peer.end() for peer in peers[:3]] == [0, 0, 0]


def test_a_straggler_is_excluded_and_comes_in_again_by_itself() -> None:
    with Run(PROGRAM) as run:
        peers = run.start("straggler=1", 3)
        until_size(peers, 3)
        peers[2].say("sleep 4")
        until_size(peers[:2], 2)
        assert peers[2].until("error", "Excluded")["text"]
        until_size(peers, 3)
        peers[0].say("end")
        assert [peer.end() for peer in peers] == [0, 0, 0]


def test_below_min_world_steps_raise_on_all_and_run_again_when_somebody_comes() -> None:
    with Run(PROGRAM) as run:
        how = "min_world=3,underflow=raise"
        peers = run.start(how, 3)
        until_size(peers, 3)
        peers[2].send(signal.SIGKILL)
        for peer in peers[:2]:
            assert "min_world" in peer.until("error", "WorldTooSmall")["text"]
        newcomer = run.start_newcomer(how)
        for peer in (*peers[:2], newcomer):
            while peer.next_fact().get("world") != 3:
                pass
        newcomer.say("end")
        assert [peer.end() for peer in (*peers[:2], newcomer)] == [0, 0, 0]


def test_below_min_world_a_run_may_go_on_alone() -> None:
    with Run(PROGRAM) as run:
        peers = run.start("min_world=2,underflow=alone", 2)
        until_size(peers, 2)
        peers[1].send(signal.SIGKILL)
        until_size(peers[:1], 1)
        peers[0].say("end")
        assert peers[0].end() == 0


def test_a_leave_below_min_world_lets_the_others_wait_with_nothing_aborted() -> None:
    with Run(PROGRAM) as run:
        peers = run.start("min_world=2,sigterm", 2)
        until_size(peers, 2)
        peers[1].send(signal.SIGTERM)
        assert peers[1].end() == 0
        newcomer = run.start_newcomer("min_world=2")
        newcomer.until("world", 2)
        newcomer.say("end")
        seen = []
        while "closed" not in (fact := peers[0].next_fact()):
            seen.append(fact["retries"])
        assert not any(seen)
        assert [peers[0].end(), newcomer.end()] == [0, 0]


def test_the_example_of_leaving_runs() -> None:
    ended = subprocess.run(
        [sys.executable, str(EXAMPLE), "--together"], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ": left after step" in ended.stdout and ended.stdout.count(": done after step 59") == 2
