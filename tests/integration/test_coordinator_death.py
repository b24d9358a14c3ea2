"""The coordinator dies, stops, comes back, loses its journal: what peers notice of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.coordinator_processes import (
    CoordinatorProcess,
    free_address,
    journal_option,
    looping_peers,
)
from tests.integration.peer_processes import PeerProcess

STOP_S = 5.0  # well above the lease
ADVANCE = 200  # steps


def advance(peer: PeerProcess, by: int = ADVANCE) -> list[int]:
    """Lets a peer go on for so many steps; returns how often each was retried."""
    facts = [peer.fact_with("step")]
    while facts[-1]["step"] < facts[0]["step"] + by:
        facts.append(peer.fact_with("step"))
    return [fact["retries"] for fact in facts]


def status(address: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "pccl", "status", address, "--json"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    document: dict[str, object] = json.loads(done.stdout)
    return document


def attached(address: str, count: int) -> dict[str, object]:
    """Waits until so many members are attached; returns the status."""
    deadline = time.monotonic() + 20.0
    while True:
        document = status(address)
        members = document["members"]
        assert isinstance(members, list)
        if [member["state"] for member in members] == ["member"] * count:
            return document
        assert time.monotonic() < deadline, document
        time.sleep(0.1)


def end(peers: list[PeerProcess]) -> None:
    peers[0].ask_to_end()
    assert [peer.end() for peer in peers] == [0] * len(peers)


def test_a_killed_coordinator_that_is_started_again_on_its_journal_aborts_nothing(
    tmp_path: Path,
) -> None:
    address = free_address()
    options = ("--listen", address, *journal_option(tmp_path))
    coordinator = CoordinatorProcess(*options).ready()
    try:
        with looping_peers(address, 2) as peers:
            epoch = status(address)["epoch"]
            coordinator.kill()
            assert set(advance(peers[0])) == {0}
            coordinator = CoordinatorProcess(*options).ready()
            document = attached(address, 2)
            assert (document["epoch"], document["generation"]) == (epoch, 2)
            assert set(advance(peers[1], 2 * ADVANCE)) == {0}
            end(peers)
    finally:
        coordinator.discard()


@pytest.mark.parametrize("stop_s", [STOP_S, pytest.param(30.0, marks=pytest.mark.slow)])
def test_a_coordinator_stopped_for_longer_than_the_lease_evicts_nobody(stop_s: float) -> None:
    address = free_address()
    coordinator = CoordinatorProcess("--listen", address).ready()
    try:
        with looping_peers(address, 3) as peers:
            coordinator.process.send_signal(signal.SIGSTOP)
            time.sleep(stop_s)
            coordinator.process.send_signal(signal.SIGCONT)
            time.sleep(1.0)
            document = attached(address, 3)
            counters = document["counters"]
            assert isinstance(counters, dict)
            assert (counters["evictions"], counters["flushes"]) == (0, 0)
            assert set(advance(peers[0])) == {0}
            end(peers)
    finally:
        coordinator.discard()


def test_a_second_coordinator_on_the_same_journal_is_refused(tmp_path: Path) -> None:
    options = ("--listen", "127.0.0.1:0", *journal_option(tmp_path))
    first = CoordinatorProcess(*options).ready()
    try:
        code, errors = CoordinatorProcess(*options).end()
        assert code == 2
        words = " ".join(errors.split())
        assert f"in use by another coordinator (pid {first.process.pid}); stop that one" in words
        assert "Traceback" not in errors
    finally:
        first.discard()


@pytest.mark.parametrize("kind", ["torn", "garbage", "folder"])
def test_a_journal_that_cannot_be_read_ends_the_start_in_plain_words(
    kind: str, tmp_path: Path
) -> None:
    options = ("--listen", "127.0.0.1:0", *journal_option(tmp_path))
    path = tmp_path / "run.db"
    if kind == "folder":
        path.mkdir()
    else:
        CoordinatorProcess(*options).ready().kill()
        whole = path.read_bytes()
        path.write_bytes(whole[:700] if kind == "torn" else b"garbage " * 1000)
        for tail in tmp_path.glob("run.db-*"):
            tail.unlink()
    code, errors = CoordinatorProcess(*options).end()
    assert code == 2 and "run.db" in errors and "Traceback" not in errors
    assert kind == "folder" or "pccl coordinator adopt --journal" in errors.replace("\n", " ")


def test_a_lost_journal_is_adopted_from_the_living_and_no_committed_step_is_lost(
    tmp_path: Path,
) -> None:
    address = free_address()
    options = ("--listen", address, *journal_option(tmp_path))
    coordinator = CoordinatorProcess(*options).ready()
    try:
        with looping_peers(address, 3) as peers:
            coordinator.kill()
            for file in tmp_path.glob("run.db*"):
                file.unlink()
            assert set(advance(peers[0])) == {0}  # they go on meanwhile
            # Somebody starts a new coordinator there by mistake: nobody is sent away.
            coordinator = CoordinatorProcess(*options, "-v").ready()
            time.sleep(2.0)
            coordinator.process.send_signal(signal.SIGTERM)
            code, said = coordinator.end()
            assert code == 0 and "pccl coordinator adopt" in said
            for file in tmp_path.glob("run.db*"):
                file.unlink()

            coordinator = CoordinatorProcess("adopt", *options, "--wait", "20")
            assert "missing: 0" in coordinator.line("adopted run")
            coordinator.ready()
            document = attached(address, 3)
            assert document["world_size"] == 3
            generation = document["generation"]
            assert isinstance(generation, int) and generation > 1024
            retries = [sum(advance(peer, 2 * ADVANCE)) for peer in peers]
            assert max(retries) <= 2, retries  # the one step that was open when they were asked
            end(peers)
    finally:
        coordinator.discard()


@pytest.mark.parametrize("stays_s", [4.0, pytest.param(34.0, marks=pytest.mark.slow)])
def test_a_coordinator_on_an_old_copy_of_the_journal_ends_nobody_and_is_replaced_without_loss(
    stays_s: float, tmp_path: Path
) -> None:
    address, copy = free_address(), tmp_path / "copy"
    options = ("--listen", address, *journal_option(tmp_path))
    coordinator = CoordinatorProcess(*options).ready()
    peers: list[PeerProcess] = []
    try:
        with looping_peers(address, 2) as first:
            peers += first
            coordinator.kill()
            copy.mkdir()
            for file in tmp_path.glob("run.db*"):
                shutil.copy(file, copy / file.name)
            coordinator = CoordinatorProcess(*options).ready()
            peers.append(PeerProcess(address, "loop", 2, 3))  # the copy does not know it
            epoch = peers[0].until("contributors", 3)["epoch"]
            coordinator.kill()
            coordinator = CoordinatorProcess(*options).ready()
            assert attached(address, 3)["generation"] == 3
            coordinator.kill()

            old = ("--listen", address, *journal_option(copy))
            coordinator = CoordinatorProcess(*old).ready()
            time.sleep(stays_s)  # above the grace for peers without their agent, if it is slow
            document = status(address)
            assert document["generation"] == 2 and "is an old copy" in str(document["outdated"])
            coordinator.process.send_signal(signal.SIGTERM)
            code, said = coordinator.end()
            assert code == 0 and said.count("pccl coordinator adopt") == 1, said

            coordinator = CoordinatorProcess(*options).ready()
            document = attached(address, 3)
            assert (document["epoch"], document["outdated"]) == (epoch, None)
            end(peers)
            for peer in peers:
                steps = [fact for fact in peer.rest() if "step" in fact]
                assert {fact["retries"] for fact in steps} == {0}
                assert steps[-1]["epoch"] == epoch
    finally:
        coordinator.discard()
        for peer in peers:
            peer.discard()


def test_a_journal_that_holds_a_run_is_not_adopted_over(tmp_path: Path) -> None:
    options = ("--listen", free_address(), *journal_option(tmp_path))
    coordinator = CoordinatorProcess(*options).ready()
    status(options[1])  # it answers once its run is durable
    coordinator.kill()
    code, errors = CoordinatorProcess("adopt", *options).end()
    assert code == 2 and "--force" in errors and "Traceback" not in errors
    code, errors = CoordinatorProcess("adopt", *options, "--force", "--wait", "0.2").end()
    assert code == 2 and "no peer testified" in errors


def test_a_recorded_run_is_replayed_to_the_same_state(tmp_path: Path) -> None:
    address, recording = free_address(), tmp_path / "flight"
    coordinator = CoordinatorProcess("--listen", address, "--record", str(recording)).ready()
    try:
        with looping_peers(address, 3) as peers:
            peers[2].send(signal.SIGKILL)
            peers[0].until("contributors", 2)
            end(peers[:2])
        status(address)
        coordinator.process.send_signal(signal.SIGTERM)
        assert coordinator.end()[0] == 0
    finally:
        coordinator.discard()
    assert recording.stat().st_mode & 0o777 == 0o600
    for show in ((), ("--show", "effects"), ("--show", "state"), ("--until", "1")):
        done = subprocess.run(
            [sys.executable, "-m", "pccl", "replay", str(recording), *show],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONHASHSEED": "7"},
        )
        assert done.returncode == 0, (show, done.stdout[-2000:], done.stderr)
        assert "the same effects as recorded" in done.stdout
