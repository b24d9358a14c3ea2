"""A newcomer whose script is another one is put out, and the members go on as if it had not come.

Peers are processes.  Members check every sum against the contributors, and that no step is missing
or doubled; all they print is read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.newcomer_peer import KINDS
from tests.integration.peer_processes import PeerProcess, Run

PEER = Path(__file__).with_name("newcomer_peer.py")
POSTED = {  # by the newcomer
    "dtype": "f64[1000]",
    "size": "i64[999]",
    "op": "max",
    "collective": "broadcast",
    "nothing": "nothing",
}


@pytest.fixture
def run() -> Iterator[Run]:
    with Run(PEER) as run:
        yield run


def name_of(peer: PeerProcess) -> str:
    return str(peer.fact_with("peer")["peer"])[:8]


def found(run: Run, count: int) -> list[PeerProcess]:
    """Starts the first members of a run, and waits until it is under way."""
    members = run.start("member", count)
    for peer in members:
        name_of(peer)
        peer.until("members", count)
    return members


def end(members: list[PeerProcess]) -> list[dict[str, Any]]:
    """All members end with one history, without any error."""
    members[0].ask_to_end()
    facts = [peer.fact_with("steps") for peer in members]
    for peer in members:
        assert peer.end() == 0, peer.errors()
        assert peer.errors() == ""
    assert len({fact["history"] for fact in facts}) == 1, facts
    return facts


def told_out(peer: PeerProcess, name: str) -> str:
    """The newcomer is told what it called and what they did, and which of both it is."""
    fact = peer.next_fact()
    assert fact.get("error") == "DescriptorMismatch", (fact, peer.errors())
    assert fact["kept"], fact
    assert f"peer {name} (this process) posted" in fact["text"], fact
    assert "put out" in fact["text"], fact
    assert peer.end() == 0 and peer.errors() == ""
    return str(fact["text"])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in POSTED])
def test_a_newcomer_that_calls_something_else_goes_and_no_member_notices(
    run: Run, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    members = found(run, 3)
    with caplog.at_level(logging.WARNING, "pccl"):
        newcomer = run.start_one(kind, 3, 3)
        name = name_of(newcomer)
        text = told_out(newcomer, name)
        facts = end(members)
    assert POSTED[kind] in text and "i64[1000]" in text, text
    assert all(fact["retries"] >= 1 for fact in facts), facts
    assert f"peer {name}" in caplog.text and "does not fit in" in caplog.text


def test_one_member_is_enough_to_stand_against_several_newcomers(run: Run) -> None:
    members = found(run, 1)
    newcomers = [run.start_one("dtype", index, 1) for index in (1, 2)]
    for peer in newcomers:
        told_out(peer, name_of(peer))
    end(members)


def test_of_two_newcomers_at_once_the_one_that_fits_stays(run: Run) -> None:
    members = found(run, 3)
    unfit, fit = run.start_one("op", 3, 3), run.start_one("fits", 4, 3)
    told_out(unfit, name_of(unfit))
    name_of(fit)
    fit.until("members", 4)
    for peer in members:
        peer.until("members", 4)
    end(members)
    assert fit.fact_with("steps") and fit.end() == 0


@pytest.mark.parametrize("how", ["dies", "stops"])
def test_a_newcomer_that_differs_and_is_gone_costs_the_members_no_step(run: Run, how: str) -> None:
    members = found(run, 3)
    name_of(newcomer := run.start_one(how, 3, 3))
    newcomer.fact_with("gone")
    facts = end(members)
    assert all(fact["retries"] >= 1 for fact in facts), facts


def test_founders_that_differ_are_all_told(run: Run) -> None:
    peers = [run.start_one("member", 0, 3), run.start_one("member", 1, 3)]
    peers.append(run.start_one("dtype", 2, 3))
    names = [name_of(peer) for peer in peers]
    for own, peer in zip(names, peers, strict=True):
        fact = peer.next_fact()
        assert fact.get("error") == "DescriptorMismatch" and fact["kept"], fact
        assert names[2] in fact["text"] and "put out" not in fact["text"], fact
        assert ("(this process)" in fact["text"]) == (f"peer {own} " in fact["text"]), fact
        assert peer.end() == 0


def test_members_that_differ_when_they_are_new_no_more_are_all_told(run: Run) -> None:
    """That they came in one after the other makes nobody right."""
    members = found(run, 2)
    later = run.start_one("changes", 2, 2)
    names = [name_of(later)]
    for peer in [*members, later]:
        fact = peer.fact_with("error")
        assert fact["error"] == "DescriptorMismatch", fact
        assert names[0] in fact["text"] and "put out" not in fact["text"], fact
