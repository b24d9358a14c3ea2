"""Bad input from peers: every mistake is an error on whoever it concerns, and on nobody else.

Peers are processes; all they print is read, so a library that prints or ends its host fails here.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.bad_input_peer import MISMATCHES
from tests.integration.peer_processes import PeerProcess, Run

PEER = Path(__file__).with_name("bad_input_peer.py")
SETTLED_S = 0.3  # a peer enters its wait right after it has said that it will


@pytest.fixture
def run() -> Iterator[Run]:
    with Run(PEER) as run:
        yield run


def end_silently(peers: list[PeerProcess]) -> None:
    """All end by themselves, with success, and have printed nothing but their facts."""
    for peer in peers:
        assert peer.fact_with("done")
        assert peer.end() == 0
        assert peer.errors() == ""


@pytest.mark.parametrize("program", ["mismatch", "lonely mismatch"])
@pytest.mark.parametrize("count", [2, 3])
def test_different_operations_are_an_error_on_all_peers_that_names_both(
    run: Run, program: str, count: int
) -> None:
    peers = run.start(program, count)
    names = [peer.fact_with("peer")["peer"][:8] for peer in peers]
    for kind in MISMATCHES:
        if kind == "tag" and program != "mismatch":
            continue
        facts = [peer.fact_with("kind") for peer in peers]
        assert [fact["kind"] for fact in facts] == [kind] * count
        for fact in facts:
            assert fact["error"] == "DescriptorMismatch", fact
            assert fact["kept"], fact
            assert names[0] in fact["text"], fact
            assert any(name in fact["text"] for name in names[1:]), fact
            for word in words_of(kind):
                assert word in fact["text"], (word, fact)
        told = {fact["text"].replace(" (this process)", "") for fact in facts}
        assert len(told) == 1  # but for which of both each of them is
        for name, fact in zip(names, facts, strict=True):
            named = f"peer {name} " in fact["text"]
            assert (f"peer {name} (this process) posted" in fact["text"]) == named, fact
    end_silently(peers)


def words_of(kind: str) -> list[str]:
    """What a text must have of both descriptors."""
    return {
        "size": ["f32[4]", "f32[5]"],
        "large size": ["f32[262144]", "f32[1048576]"],
        "dtype": ["i64[4]", "f32[4]"],
        "same bytes": ["i32[4]", "f32[4]"],
        "large dtype": ["i32[1048576]", "f32[1048576]"],
        "op": ["max", "sum"],
        "tag": ["tag 7", "tag 8", "f32[4]"],
        "algorithm": ["direct", "ring"],
    }[kind]


def test_a_missing_operation_is_an_error_on_all_peers(run: Run) -> None:
    peers = run.start("missing", 3)
    names = [peer.fact_with("peer")["peer"][:8] for peer in peers]
    for peer in peers:
        fact = peer.fact_with("kind")
        assert fact["kept"] and names[0] in fact["text"] and "nothing" in fact["text"]
        assert "f64[4]" in fact["text"]
    end_silently(peers)


def test_a_fork_can_use_nothing_and_harms_nobody(run: Run) -> None:
    peers = run.start("fork", 2)
    end_silently(peers)


@pytest.mark.parametrize("form", ["step", "work", "await", "wait_for"])
def test_ctrl_c_in_any_wait_ends_it_and_the_others_go_on(
    run: Run, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PCCL_TEST_WAIT", form)
    peers = run.start("interrupt", 3)
    for peer in peers:
        peer.fact_with("ready")
    time.sleep(SETTLED_S)
    peers[0].send(signal.SIGINT)
    assert peers[0].fact_with("error") == {"error": "KeyboardInterrupt", "closed": True}
    for peer in peers[1:]:
        peer.ask_to_end()
    end_silently(peers)


def test_ctrl_c_at_the_gate_closes_the_communicator(run: Run) -> None:
    (peer,) = run.start("gate", 1)
    peer.fact_with("ready")
    time.sleep(SETTLED_S)
    peer.send(signal.SIGINT)
    assert peer.fact_with("closed")["closed"]
    end_silently([peer])


def test_ctrl_c_while_connecting_leaves_nothing_behind() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        peer = PeerProcess(f"127.0.0.1:{mute.getsockname()[1]}", "connecting", 0, 1, PEER)
        try:
            peer.fact_with("ready")
            time.sleep(SETTLED_S)
            peer.send(signal.SIGINT)
            assert peer.fact_with("error") == {"error": "KeyboardInterrupt", "threads": []}
            end_silently([peer])
        finally:
            peer.discard()
