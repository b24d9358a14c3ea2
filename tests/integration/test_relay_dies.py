"""A relay that dies, or is stopped, in the middle of what it carries: what goes through it ends in
bounded time and goes on by another one, and every bit is right."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.peer_processes import PeerProcess, Run
from tests.integration.relay_peer import STATE_ELEMENTS

PROGRAM = Path(__file__).with_name("relay_peer.py")
BOUND_S = 30.0  # a lease, a flush, and three relays that do not answer; machines are busy
STATE_BYTES = 8 * STATE_ELEMENTS
BEGUN_BYTES = STATE_BYTES // 8
ENDS = pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])


def after(peer: PeerProcess, wanted: Any) -> dict[str, Any]:
    """Returns the first fact of a peer, from now on, that is as wanted, and looks at all others."""
    end_s = time.monotonic() + BOUND_S
    while True:
        fact = peer.fact_with("sum")
        assert fact["sum"] > 0, f"a wrong sum: {fact}"
        if wanted(fact):
            return fact
        assert time.monotonic() < end_s, f"in {BOUND_S:g} s it has not come to that: {fact}"


@ENDS
def test_lanes_through_a_relay_that_ends_in_a_step_go_on_by_another(
    monkeypatch: pytest.MonkeyPatch, end: signal.Signals
) -> None:
    monkeypatch.setenv("PCCL_TEST_HIDDEN", "0,1")
    with Run(PROGRAM) as run:
        peers = run.start("trains", 4)
        relays = {2: peers[2], 3: peers[3]}
        first = {i: after(peer, lambda fact: fact["members"] == 4) for i, peer in relays.items()}
        assert sorted(fact["tunnels"] for fact in first.values()) == [0, 1]
        carrier = max(first, key=lambda i: first[i]["tunnels"])
        other = 5 - carrier
        after(relays[carrier], lambda fact: fact["relayed"] > first[carrier]["relayed"])
        took_s = after(peers[0], lambda fact: True)["took_s"]
        time.sleep(took_s / 2)  # they are never out of a step for long
        relays[carrier].send(end)
        left = 0b1111 ^ 1 << carrier
        for peer in (peers[0], peers[1], relays[other]):
            hit = after(peer, lambda fact: fact["members"] == 3)
            assert hit["sum"] == left
        before = after(relays[other], lambda fact: fact["tunnels"] == 1)["relayed"]
        after(relays[other], lambda fact: fact["relayed"] > before)
        for peer in (peers[0], peers[1]):
            assert after(peer, lambda fact: fact["took_s"] < 5)["sum"] == left


@ENDS
def test_a_state_through_a_relay_that_ends_comes_by_another_and_only_the_rest_of_it(
    monkeypatch: pytest.MonkeyPatch, end: signal.Signals
) -> None:
    """Neither who has it nor who wants it can be dialled, and nobody else has it."""
    monkeypatch.setenv("PCCL_TEST_HIDDEN", "0,3")
    monkeypatch.setenv("PCCL_TEST_RATE", str(STATE_BYTES / 6))
    with Run(PROGRAM) as run:
        donor = run.start_one("holds", 0, 1)
        after(donor, lambda fact: True)
        relays = {i: run.start_one("carries", i, 1) for i in (1, 2)}
        after(donor, lambda fact: fact["members"] == 3)
        newcomer = run.start_one("comes", 3, 1)
        carrier = 0
        while not carrier:
            for i, relay in relays.items():
                if relay.fact_with("sum")["relayed"] > BEGUN_BYTES:
                    carrier = i
        relays[carrier].send(end)
        began_s = time.monotonic()
        assert newcomer.fact_with("exact")["exact"] is True
        assert time.monotonic() - began_s < BOUND_S
        together = 0b1111 ^ 1 << carrier
        last = after(relays[3 - carrier], lambda fact: fact["sum"] == together)
        assert last["relayed"] < STATE_BYTES, "it was fetched from the beginning"
        slowest_s = 0.0
        while (fact := donor.fact_with("sum"))["sum"] != together:
            slowest_s = max(slowest_s, fact["took_s"])
        assert slowest_s < BOUND_S / 2, "a step has waited for the newcomer"
