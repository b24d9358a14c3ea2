"""What the coordinator finds out from heartbeats alone, with real engines behind them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.churn.compiled import compiled
from tests.integration.peer_processes import PeerProcess, Run

PEER = Path(__file__).with_name("ways_out_peer.py")
DEAF = Path(__file__).parents[1] / "churn" / "deaf.cpp"
STRAGGLER_S = 2.0
SLEEP_S = 12.0


def status(address: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "pccl", "status", address, "--json"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def error_of(peer: PeerProcess) -> dict[str, Any]:
    while "error" not in (fact := peer.next_fact()):
        assert "failure" not in fact, fact
    return fact


def test_a_straggler_is_excluded_told_so_and_comes_in_again() -> None:
    with Run(PEER) as run:
        peers = run.start(f"straggler={STRAGGLER_S}", 3)
        for peer in peers:
            peer.until("contributors", 3)
        peers[2].say(f"sleep {SLEEP_S}")
        began = time.monotonic()
        for peer in peers[:2]:
            peer.until("contributors", 2)
        assert STRAGGLER_S <= time.monotonic() - began < SLEEP_S
        assert error_of(peers[2])["error"] == "Excluded"
        for peer in peers:
            peer.until("contributors", 3)
        peers[0].say("end")
        assert [peer.end() for peer in peers] == [0, 0, 0]


def waits_of(address: str, peer: str) -> list[dict[str, Any]]:
    """Returns what a peer waits for others to post, as the coordinator's status has it."""
    told = status(address)["waits"]
    return [w for w in told if w["for"] == "post" and w["peer"].startswith(peer[:8])]


def test_a_slow_program_is_waited_for_where_nobody_minds_and_the_status_says_for_whom() -> None:
    with Run(PEER) as run:
        peers = run.start("straggler=60", 2)
        names = [peer.fact_with("peer")["peer"] for peer in peers]
        for peer in peers:
            peer.until("contributors", 2)
        peers[1].say("sleep 4")
        deadline = time.monotonic() + 20.0
        while not (waits := waits_of(run.address, names[0])):  # the slow one waits, too, at times
            assert time.monotonic() < deadline
        assert waits[0]["of"][0].startswith(names[1][:8])
        facts = [peer.until("contributors", 2) for peer in peers]
        assert [fact["retries"] for fact in facts] == [0, 0]
        peers[0].say("end")
        assert [peer.end() for peer in peers] == [0, 0]


def test_a_member_that_reads_nothing_any_more_is_left_out_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shim, trigger = compiled(DEAF, "deaf.so", ("-shared", "-fPIC")), tmp_path / "deaf"
    with Run(PEER) as run:
        peers = [run.start_one("group=0", index, 3) for index in range(2)]
        with monkeypatch.context() as patch:
            patch.setenv("LD_PRELOAD", str(shim))
            patch.setenv("DEAF_WHEN", str(trigger))
            deaf = run.start_one("group=0", 2, 3)
        for peer in (*peers, deaf):
            peer.until("contributors", 3)
        trigger.touch()
        # The step that it held up is run again, or was complete and is committed: both are right.
        for peer in peers:
            peer.until("contributors", 2)
        told = [fact for fact in deaf.rest() if "failure" in fact or "error" in fact]
        # Two connections tell it, of which the engine's, which knows no reason, may be quicker.
        assert told and told[-1]["failure"] == "Evicted", told
        assert "reads nothing of what was sent to it" in caplog.text
        peers[0].say("end")
        assert [peer.end() for peer in peers] == [0, 0]
