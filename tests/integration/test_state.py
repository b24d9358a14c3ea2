"""Shared state between real processes: equal bits, repairs, newcomers, faulty and dying sources."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.peer_processes import PeerProcess, Run
from tests.integration.state_facts import delay_s, longest_s
from tests.integration.state_peer import SIZE, add, fresh, hashed

PROGRAM = Path(__file__).with_name("state_peer.py")
LARGE_BYTES = 192 << 20
SIZE_BYTES = 12 << 20


def ends(peers: list[PeerProcess]) -> set[str]:
    found = {peer.fact_with("end")["end"] for peer in peers}
    assert [peer.end() for peer in peers] == [0] * len(peers), [p.errors() for p in peers]
    return found


def test_a_copy_that_was_silently_changed_is_repaired_and_named_on_all_members() -> None:
    with Run(PROGRAM) as run:
        peers = run.start("changed", 3)
        names = [peer.fact_with("peer")["peer"] for peer in peers]
        first = [peer.fact_with("synced") for peer in peers]
        assert all(fact["repaired"] == [] and fact["byte_count"] == 0 for fact in first)
        warnings = {peer.fact_with("warning")["warning"] for peer in peers}
        assert len(warnings) == 1 and "has been repaired" in warnings.pop()
        told = [peer.fact_with("repaired") for peer in peers]
        (odd,) = {tuple(fact["repaired"]) for fact in told}
        assert len(odd) == 1 and set(told[0]["sources"]) == set(names) - set(odd)
        for name, fact in zip(names, told, strict=True):
            if name in odd:  # one piece of one tensor, and no more
                assert (fact["byte_count"], fact["tensors"]) == (1 << 20, ["model"])
            else:
                assert fact["byte_count"] == 0
        again = [peer.fact_with("repaired") for peer in peers]
        assert all(fact["repaired"] == [] and fact["byte_count"] == 0 for fact in again)
        assert len(ends(peers)) == 1


@pytest.mark.parametrize("hashing", ["xxh3-128", "blake3"])
def test_among_as_many_of_each_the_lowest_rank_counts(
    monkeypatch: pytest.MonkeyPatch, hashing: str
) -> None:
    monkeypatch.setenv("PCCL_TEST_HASHING", hashing)
    with Run(PROGRAM) as run:
        facts = [peer.fact_with("own") for peer in run.start("tie", 4)]
        by_rank = {fact["rank"]: fact for fact in facts}
        assert {fact["end"] for fact in facts} == {by_rank[0]["own"]}
        assert len(facts[0]["received"]) == 3 and facts[0]["repaired"] == []
        assert all(fact["byte_count"] > SIZE_BYTES for rank, fact in by_rank.items() if rank)


def test_who_only_sends_counts_and_who_only_receives_does_not() -> None:
    with Run(PROGRAM) as run:
        peers = run.start("strategies", 3)
        assert all("nobody gives" in peer.fact_with("refused")["refused"] for peer in peers)
        assert len(ends(peers)) == 1


def test_another_layout_is_an_error_that_names_the_first_difference_and_the_others_go_on() -> None:
    with Run(PROGRAM) as run:
        peers = run.start("layouts", 3)
        facts = [peer.fact_with("rank") for peer in peers]
        odd = peers[2]
        if facts[2]["rank"] == 0:
            pytest.skip("it came first, so its layout counts")
        fact = odd.fact_with("refused")
        assert "'moments.first', f32[7, 3] here is f32[70001] there" in fact["refused"]
        assert fact["closed"]
        assert [peer.fact_with("contributors")["contributors"] for peer in peers[:2]] == [2, 2]


def faulty(
    monkeypatch: pytest.MonkeyPatch, fault: str, run: Run
) -> tuple[list[PeerProcess], list[str]]:
    monkeypatch.setenv("PCCL_TEST_FAULT", fault)
    peers = run.start("faulty", 3)
    return peers, [peer.fact_with("peer")["peer"] for peer in peers]


def test_a_source_that_sends_wrong_bytes_is_excluded_and_named_and_its_data_never_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Run(PROGRAM) as run:
        peers, names = faulty(monkeypatch, "odd", run)
        facts = [peer.fact_with("end") for peer in peers]
        assert len({fact["end"] for fact in facts}) == 1
        assert all(fact["struck"] == [names[1]] for fact in facts)
        assert facts[2]["byte_count"] < LARGE_BYTES + (16 << 20)
        assert [peer.end() for peer in peers] == [0, 0, 0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_source_that_dies_or_stops_in_the_middle_costs_seconds_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    with Run(PROGRAM) as run:
        peers, _ = faulty(monkeypatch, "slow", run)
        peers[1].fact_with("giving")
        peers[1].send(number)
        facts = [peers[i].fact_with("end") for i in (0, 2)]
        assert facts[0]["end"] == facts[1]["end"]
        if number is signal.SIGKILL:  # what a stopped one owes may be taken over before it is lost
            assert facts[1]["lost"] == 1
        assert facts[1]["byte_count"] >= LARGE_BYTES
        assert facts[1]["took_s"] < 30  # a stopped one holds up the last step until its lease ends
        assert [peers[i].end() for i in (0, 2)] == [0, 0]


def revisions(peer: PeerProcess) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    facts = peer.rest()
    assert peer.end() == 0, peer.errors()
    (end,) = [fact for fact in facts if "end" in fact]
    return [fact for fact in facts if "revision" in fact], end


@pytest.mark.parametrize("replay", ["yes", "no"])
def test_a_newcomer_comes_in_with_the_members_state_while_they_go_on(
    monkeypatch: pytest.MonkeyPatch, replay: str
) -> None:
    monkeypatch.setenv("PCCL_TEST_REPLAY", replay)
    monkeypatch.setenv("PCCL_TEST_STEPS", "1000")
    monkeypatch.setenv("PCCL_TEST_JOINED", "3")
    with Run(PROGRAM) as run:
        peers = run.start("trains", 2)
        peers[0].until("revision", 3)
        newcomer = run.start_newcomer("dawdler")
        fetched = newcomer.fact_with("fetched")["fetched"]
        peers[0].until("revision", fetched + 2)
        newcomer.say("go on")
        facts = [revisions(peer) for peer in (*peers, newcomer)]
        assert len({end["end"] for _, end in facts}) == 1
        assert len({end["root"] for _, end in facts}) == 1
        joined = facts[2][0]
        assert joined and joined[0]["contributors"] == 3
        assert joined[0]["revision"] > fetched + 2, "the members went on meanwhile"
        assert (facts[2][1]["applied"] > len(joined)) == (replay == "yes")
        of_members = {fact["revision"]: fact["now"] for fact in facts[1][0]}
        assert all(of_members[fact["revision"]] == fact["now"] for fact in joined)


def test_a_newcomer_whose_sources_keep_a_slow_pace_delays_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PCCL_TEST_SIZE", str(6 << 20))
    monkeypatch.setenv("PCCL_TEST_PACE", "0.02")
    monkeypatch.setenv("PCCL_TEST_STEPS", "1000")
    monkeypatch.setenv("PCCL_TEST_JOINED", "3")
    with Run(PROGRAM) as run:
        peers = run.start("trains", 2)
        peers[0].until("revision", 3)
        newcomer = run.start_newcomer("newcomer")
        newcomer.fact_with("peer")  # its first step comes next, and fetches before it begins
        told = [peers[0].next_fact() for _ in range(1 + peers[0]._facts.qsize())]
        began = max(fact.get("revision", 0) for fact in told)
        joined = newcomer.fact_with("revision")
        assert joined["contributors"] == 3 and joined["revision"] > began + 2, "members went on"
        facts = [revisions(peer) for peer in (*peers, newcomer)]
        assert len({end["end"] for _, end in facts}) == 1
        assert max(delay_s(of) for of, _ in facts[:2]) < 1.0, "hold_s at most"


def test_a_member_that_dies_while_it_gives_is_replaced_as_a_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PCCL_TEST_SIZE", str(8 << 20))
    monkeypatch.setenv("PCCL_TEST_PACE", "0.1")
    monkeypatch.setenv("PCCL_TEST_STEPS", "60")
    with Run(PROGRAM) as run:
        peers = run.start("trains", 3)
        peers[0].until("revision", 3)
        newcomer = run.start_newcomer("newcomer")
        newcomer.fact_with("peer")
        peers[1].until("revision", 12)
        peers[1].send(signal.SIGKILL)
        joined = newcomer.fact_with("revision")
        assert joined["contributors"] in (3, 4)
        facts = [revisions(peer)[1] for peer in (peers[0], peers[2], newcomer)]
        assert len({end["end"] for end in facts}) == 1


MB = 1_000_000


def throttled(
    monkeypatch: pytest.MonkeyPatch, *, rate: float, pace: float, hold_s: float = 1.0
) -> None:
    """12 MiB of 12 change with each step, and each member gives so many bytes a second."""
    named = {"RATE": rate, "PACE": pace, "HOLD": hold_s, "SIZE": SIZE, "REPLAY": "no"}
    for name, value in named.items():
        monkeypatch.setenv(f"PCCL_TEST_{name}", str(value))


def together(peers: list[PeerProcess]) -> list[list[dict[str, Any]]]:
    """Ends members that went on by themselves and hold the same; returns what each has told."""
    for peer in peers:
        peer.send(signal.SIGKILL)
    facts = [[fact for fact in peer.rest() if "revision" in fact] for peer in peers]
    assert all(fact["contributors"] == 2 for of in facts for fact in of)
    first, second = ({fact["revision"]: fact["now"] for fact in of} for of in facts)
    common = set(first) & set(second)
    assert len(common) > 20 and all(first[r] == second[r] for r in common)
    return facts


def test_a_newcomer_that_cannot_catch_up_stays_outside_and_says_which_pace_would_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    throttled(monkeypatch, rate=4 * MB, pace=1.0)
    monkeypatch.setenv("PCCL_TEST_STEPS", "1000")
    with Run(PROGRAM) as run:
        peers = run.start("trains", 2)
        peers[0].until("revision", 3)
        facts = (newcomer := run.start_newcomer("hopeless")).rest()
        assert newcomer.end() == 0, newcomer.errors()
        told = "".join(fact.get("warning", "") for fact in facts)
        assert "the state changes faster than it comes" in told and "apply=" in told, facts
        (fact,) = [fact for fact in facts if "gave_up" in fact]
        assert (fact["rank"], fact["entries"]) == (-1, 0) and fact["rounds"] >= 2
        assert 1 * MB < fact["pace"] < 9 * MB, "two members, each at 4 MB/s at most"
        # Twice what a step changes, in some more than a second; all of it where a round began anew.
        assert 1.8 * SIZE_BYTES < fact["needed"] < 3 * SIZE_BYTES
        assert f"{fact['needed'] / MB:.3g} MB/s would do" in fact["gave_up"]
        assert max(delay_s(of) for of in together(peers)) < 0.5, "nobody waits for it"


def test_members_wait_for_a_newcomer_s_last_difference_no_longer_than_hold_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Donors that pause nine tenths of their time could send more, a newcomer thinks; but the way
    # is as slow without pauses.
    throttled(monkeypatch, rate=4 * MB, pace=0.1)
    monkeypatch.setenv("PCCL_TEST_STEPS", "1000")
    with Run(PROGRAM) as run:
        peers = run.start("trains", 2)
        peers[0].until("revision", 3)
        newcomer = run.start_newcomer("hopeless")
        fact = newcomer.fact_with("gave_up")
        assert fact["entries"] >= 1 and fact["rank"] == -1
        assert newcomer.end() == 0, newcomer.errors()
        facts = together(peers)
        assert max(longest_s(of) for of in facts) > 0.9
        assert max(delay_s(of) for of in facts) < 1.9, "hold_s, and what leaving it out takes"


def test_a_donor_that_dies_as_it_gives_the_last_difference_costs_less_than_two_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    throttled(monkeypatch, rate=12 * MB, pace=1.0, hold_s=4.0)
    monkeypatch.setenv("PCCL_TEST_STEPS", "100")
    with Run(PROGRAM) as run:
        peers = run.start("trains", 3)
        peers[0].until("revision", 3)
        newcomer = run.start_newcomer("newcomer")
        peers[1].fact_with("holding")
        peers[1].send(signal.SIGKILL)
        joined = newcomer.fact_with("revision")
        assert joined["contributors"] == 3
        facts = [revisions(peer) for peer in (peers[0], peers[2], newcomer)]
    assert len({end["end"] for _, end in facts}) == 1
    assert max(delay_s(of) for of, _ in facts[:2]) < 2.0


def checkpointed(
    monkeypatch: pytest.MonkeyPatch, disks: Path, steps: int, copies: int | None
) -> None:
    monkeypatch.setenv("PCCL_TEST_DISKS", str(disks))
    monkeypatch.setenv("PCCL_TEST_STEPS", str(steps))
    if copies is not None:
        monkeypatch.setenv("PCCL_TEST_COPIES", str(copies))


def content_at(facts: list[dict[str, Any]], revision: int) -> str:
    return str(next(fact["now"] for fact in facts if fact.get("revision") == revision))


def on_disk(disks: Path, index: int) -> list[Path]:
    return sorted((disks / str(index)).glob("r*"))


def test_when_all_have_died_the_union_of_their_disks_comes_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpointed(monkeypatch, tmp_path, 1000, copies=1)
    with Run(PROGRAM) as run:
        peers = run.start("trains", 2)
        told: list[dict[str, Any]] = []
        while not told or told[-1].get("revision", 0) < 13:
            told.append(peers[0].next_fact())
        for peer in peers:
            peer.send(signal.SIGKILL)
    held = [
        {name for path in on_disk(tmp_path, index) for name in safetensors_of(path)}
        for index in range(2)
    ]
    assert held[0] and held[1] and not held[0] & held[1], "each holds a part only"
    newest = min(int(on_disk(tmp_path, index)[-1].name[1:13]) for index in range(2))
    monkeypatch.setenv("PCCL_TEST_STEPS", str(newest + 3))
    with Run(PROGRAM) as run:
        peers = run.start("trains", 2)
        facts = [peer.rest() for peer in peers]
        assert [peer.end() for peer in peers] == [0, 0], peers[0].errors()
        for of_peer in facts:
            assert of_peer[-1]["ended_at"] == newest + 3
            assert next(f["revision"] for f in of_peer if "revision" in f) == newest + 1
            (warning,) = [f["warning"] for f in of_peer if "warning" in f]
            assert f"goes on from revision {newest}" in warning and "lost" in warning
        assert facts[0][-1]["end"] == facts[1][-1]["end"]
    assert continues(content_at(told, newest), content_at(told, newest + 1), facts[0], newest)


def continues(at: str, after: str, facts: list[dict[str, Any]], revision: int) -> bool:
    """Says whether the run went on from the very content: its next revision is the same again."""
    return at != after and content_at(facts, revision + 1) == after


def safetensors_of(path: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(path / "tensors.safetensors")


def test_a_damaged_disk_is_helped_by_another_and_files_are_read_without_pccl(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpointed(monkeypatch, tmp_path, 10, copies=None)
    with Run(PROGRAM) as run:
        peers = run.start("trains", 2)
        facts = [peer.rest() for peer in peers]
        assert [peer.end() for peer in peers] == [0, 0]
    assert len(on_disk(tmp_path, 0)) == len(on_disk(tmp_path, 1)) == 2
    for path in on_disk(tmp_path, 0) + on_disk(tmp_path, 1):
        tensors = safetensors_of(path)
        assert tensors["model"].shape == (3 << 20,) and tensors["moments.first"].shape == (70_001,)
    for index, at in enumerate((6 << 20, -100)):  # within another tensor on each disk
        file = on_disk(tmp_path, index)[-1] / "tensors.safetensors"
        data = bytearray(file.read_bytes())
        data[at] ^= 4
        file.write_bytes(data)
    monkeypatch.setenv("PCCL_TEST_STEPS", "11")
    with Run(PROGRAM) as run:
        peers = run.start("trains", 2)
        again = [peer.rest() for peer in peers]
        assert [peer.end() for peer in peers] == [0, 0], peers[0].errors()
    assert any("is damaged" in f.get("warning", "") for of in again for f in of)
    assert all([f["revision"] for f in of if "revision" in f] == [11] for of in again)
    assert again[0][-1]["end"] == again[1][-1]["end"]
    assert facts[0][-1]["ended_at"] == 10


def test_when_the_only_checkpoint_is_damaged_the_run_begins_anew_with_nothing_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpointed(monkeypatch, tmp_path, 5, copies=None)
    with Run(PROGRAM) as run:
        peers = run.start("trains", 2)
        assert [peer.rest()[-1]["ended_at"] for peer in peers] == [5, 5]
    for index in range(2):
        (path,) = on_disk(tmp_path, index)
        data = bytearray((path / "tensors.safetensors").read_bytes())
        data[6 << 20] ^= 4  # the same tensor on both
        (path / "tensors.safetensors").write_bytes(data)
    monkeypatch.setenv("PCCL_TEST_STEPS", "1")
    with Run(PROGRAM) as run:
        again = [peer.rest() for peer in run.start("trains", 2)]
    for of_peer in again:
        assert any("none whole" in f.get("warning", "") for f in of_peer)
    begun = []
    for tensors in (fresh(0), fresh(1)):  # whoever was rank 0
        add(tensors, np.full(SIZE, 2, np.int32))
        begun.append(hashed(tensors))
    assert content_at(again[0], 1) == content_at(again[1], 1) and content_at(again[0], 1) in begun


def test_a_disk_that_takes_nothing_costs_checkpoints_and_is_reported_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpointed(monkeypatch, tmp_path, 12, copies=None)
    (tmp_path / "1").write_text("a file where a folder should be")
    with Run(PROGRAM) as run:
        peers = [run.start_one("small_disk", 0, 2), run.start_one("trains", 1, 2)]
        facts = [peer.rest() for peer in peers]
        assert [peer.end() for peer in peers] == [0, 0], peers[0].errors()
    for of_peer, reason in zip(facts, ("File too large", "File exists"), strict=True):
        warnings = [f["warning"] for f in of_peer if "warning" in f]
        told = [text for text in warnings if "takes no checkpoints" in text]
        assert len(told) == 1, "it is said once, however often it is tried"
        assert "training goes on" in told[0] and reason in told[0]
        (fact,) = [f for f in of_peer if "newest" in f]
        assert fact["newest"] is None and reason in fact["error"]
        assert of_peer[-1]["ended_at"] == 12
    assert not list((tmp_path / "0").iterdir()), "nothing half-written is left"
