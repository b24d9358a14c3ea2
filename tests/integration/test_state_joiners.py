"""Newcomers of a shared state whose members lie, die or stop, or wait for them."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.peer_processes import PeerProcess, Run
from tests.integration.state_facts import delay_s, longest_s
from tests.integration.state_kinds import HALT_S
from tests.integration.state_peer import SIZE

PROGRAM = Path(__file__).with_name("state_peer.py")
MB = 1_000_000
LEASE_S = 3.0  # of a run on one machine


def settings(monkeypatch: pytest.MonkeyPatch, **named: Any) -> None:
    for name, value in {"STEPS": 1000, "JOINED": 3, "SIZE": SIZE, **named}.items():
        monkeypatch.setenv(f"PCCL_TEST_{name}", str(value))


def ended(peers: list[PeerProcess]) -> list[list[dict[str, Any]]]:
    """Waits for their ends, which are alike; returns what each has told."""
    facts = [peer.rest() for peer in peers]
    assert [peer.end() for peer in peers] == [0] * len(peers), [p.errors() for p in peers]
    assert len({of[-1]["end"] for of in facts}) == 1
    return facts


def test_a_member_that_claims_a_revision_of_its_own_is_named_and_neither_fetched_nor_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings(monkeypatch, LIAR=0, JOINED=4)
    with Run(PROGRAM) as run:
        peers = run.start("trains", 3)
        liar = peers[0].fact_with("peer")["peer"]
        peers[1].until("revision", 3)
        began_s = time.monotonic()
        newcomer = run.start_newcomer("newcomer")
        warning = newcomer.fact_with("warning")["warning"]
        assert f"peer {liar} is excluded as a source of state: it claims revision" in warning
        joined = newcomer.fact_with("revision")
        assert joined["contributors"] == 4 and joined["revision"] < 10**6
        assert time.monotonic() - began_s < 30
        told = ended([*peers, newcomer])
        assert not any("asked_to_give" in fact for fact in told[0])


def beside_a_dawdler(run: Run) -> tuple[list[PeerProcess], PeerProcess, list[dict[str, Any]]]:
    """Two members that go on beside a newcomer that has fetched the state and waits for a word."""
    peers = run.start("trains", 2)
    peers[0].until("revision", 3)
    newcomer = run.start_newcomer("dawdler")
    fetched = newcomer.fact_with("fetched")["fetched"]
    return peers, newcomer, [peers[0].until("revision", fetched + 2)]


@pytest.mark.parametrize("where", ["halt in apply", "halt as it hashes", "keep the GIL"])
def test_members_wait_no_longer_than_hold_s_whatever_a_newcomer_is_at(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    settings(monkeypatch, HALTS=78, RATE=3 * MB)  # so replaying takes less time than fetching
    with Run(PROGRAM) as run:
        peers, newcomer, facts = beside_a_dawdler(run)
        newcomer.say(where)
        told = ended([*peers, newcomer])
    assert any("halting" in fact for fact in told[2])
    held_s = max(delay_s([*facts, *of]) for of in told[:2])
    assert held_s < 1.0 + HALT_S / 2, "hold_s, and what it takes to leave it out again"
    joined = next(fact for fact in told[2] if "revision" in fact)
    assert joined["contributors"] == 3, "it came in later"


def test_members_wait_for_a_newcomer_that_is_stopped_in_its_first_step_no_longer_than_its_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings(monkeypatch, HALTS=78)
    with Run(PROGRAM) as run:
        peers, stopped, facts = beside_a_dawdler(run)
        stopped.say("halt as it hashes")
        stopped.fact_with("halting")
        stopped.send(signal.SIGSTOP)  # no thread of its own can look at a clock any more
        newcomer = run.start_newcomer("newcomer")
        told = ended([*peers, newcomer])
    assert max(longest_s([*facts, *of]) for of in told[:2]) > 0.5, "they have waited for it"
    assert max(delay_s([*facts, *of]) for of in told[:2]) < LEASE_S + 1.0
    assert next(f for f in told[2] if "revision" in f)["contributors"] == 3


def in_the_middle(run: Run, program: str, donors: int) -> tuple[list[PeerProcess], PeerProcess]:
    """Members that train, and a newcomer to which some pieces of many have come from them."""
    peers = run.start("trains", donors)
    for peer in peers:
        peer.until("revision", 3)
    newcomer = run.start_newcomer(program)
    newcomer.fact_with("peer")
    until_s = time.monotonic() + 30
    while not any("giving" in peer.fact_within(0.02) for peer in peers):
        assert time.monotonic() < until_s, "nothing is given"
    return peers, newcomer


def test_a_newcomer_whose_donors_all_die_in_the_middle_goes_on_with_those_that_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings(monkeypatch, RATE=3 * MB, HOLD=20)
    with Run(PROGRAM) as run:
        peers, newcomer = in_the_middle(run, "newcomer", 2)
        for peer in peers:
            peer.send(signal.SIGKILL)
        others = run.start("trains", 2)
        joined = newcomer.fact_with("revision")
        assert joined["contributors"] == 3
        ended([*others, newcomer])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_newcomer_whose_donors_are_all_gone_for_good_says_so_within_its_time(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    settings(monkeypatch, RATE=3 * MB, PACE=1, REPLAY="no")
    with Run(PROGRAM) as run:
        peers, newcomer = in_the_middle(run, "hopeless", 2)
        began_s = time.monotonic()
        for peer in peers:
            peer.send(number)
        told = newcomer.fact_with("gave_up")
        assert time.monotonic() - began_s < 30, "it has fifteen from its first question on"
        assert "what has come is kept" in told["gave_up"] and told["rounds"] == 0
        assert newcomer.end() == 0, newcomer.errors()


def test_a_newcomer_whose_only_donor_is_stopped_in_the_middle_goes_on_when_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings(monkeypatch, RATE=4 * MB, HOLD=20, JOINED=2)
    with Run(PROGRAM) as run:
        (peer,), newcomer = in_the_middle(run, "newcomer", 1)
        peer.send(signal.SIGSTOP)
        time.sleep(3.0)  # longer than a newcomer waits for a source that moves nothing
        assert newcomer.process.poll() is None
        peer.send(signal.SIGCONT)
        joined = newcomer.fact_with("revision")
        assert joined["contributors"] == 2
        ended([peer, newcomer])


def test_a_newcomer_whose_only_donor_gives_a_byte_a_second_says_so_within_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings(monkeypatch, PACE=1, REPLAY="no", DRIPS=1)
    with Run(PROGRAM) as run:
        (peer,) = run.start("trains", 1)
        facts = [peer.until("revision", 3)]
        began_s = time.monotonic()
        newcomer = run.start_newcomer("hopeless")
        told = newcomer.fact_with("gave_up")
        assert time.monotonic() - began_s < 30, "it has fifteen seconds from its first question on"
        assert 0 < told["pace"] < 10 and told["needed"] > SIZE * 4 / 20
        assert "of peer" in told["gave_up"] and "bytes/s" in told["gave_up"], told
        assert newcomer.end() == 0, newcomer.errors()
        peer.send(signal.SIGKILL)
        assert delay_s([*facts, *peer.rest()]) < 1.0, "nobody has waited for it"
