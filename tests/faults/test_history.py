"""The campaign's own checks, shown what they must find."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults import values
from tests.faults.history import Commit, History, check
from tests.faults.report import passed, quantile
from tests.faults.scenarios import Figures

A, B, C = "aa" * 16, "bb" * 16, "cc" * 16


def history(peer: str, *changes: dict[str, Any]) -> History:
    """Three steps of a sound run; each change is of one of them, by its place."""
    made = History(Path(peer), peer=peer)
    commit = Commit(0.0, 7, 2, (A, B), "d", 0, 0)
    made.commits = [replace(commit, at=float(i), step=7 + i, epoch=2 + i) for i in range(3)]
    for change in changes:
        place = change.pop("place")
        made.commits[place] = replace(made.commits[place], **change)
    return made


def test_a_sound_run_has_no_contradictions() -> None:
    assert check([history(A), history(B)], world_min=2) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"place": 1, "wrong": 3}, "not the sum"),
        ({"place": 1, "digest": "e"}, "digest"),
        ({"place": 1, "contributors": (A, B, C)}, "contributors"),
        ({"place": 2, "contributors": (A, C)}, "not among"),
        ({"place": 2, "contributors": (B, B, A)}, "twice"),
        ({"place": 2, "contributors": (B,)}, "fewer"),
        ({"place": 1, "epoch": 4}, "epoch"),
        ({"place": 2, "epoch": 1}, "followed by 1"),
        ({"place": 2, "step": 10}, "followed by 10"),
    ],
)
def test_every_kind_of_contradiction_is_found(change: dict[str, Any], word: str) -> None:
    found = check([history(A), history(B, dict(change))], world_min=2)
    assert any(word in sentence for sentence in found), found


def test_sums_of_other_sets_of_peers_are_other_sums() -> None:
    peers = [bytes([i]) * 16 for i in range(1, 6)]
    whole = values.expected_sum(peers[:4], 9, 100)
    assert (whole == sum(values.contribution(p, 9, 100) for p in peers[:4])).all()
    for others in (peers[:3], peers[1:5], [*peers[:3], peers[2]], peers):
        assert np.count_nonzero(whole == values.expected_sum(others, 9, 100)) < 5
    stale = whole - values.contribution(peers[0], 9, 100) + values.contribution(peers[0], 8, 100)
    assert not (whole == stale).any()


def test_half_a_line_of_a_killed_process_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "peer.jsonl"
    path.write_text(json.dumps({"at": 1.0, "ready": True}) + '\n{"at": 2.0, "adm')
    one = History(path)
    one.poll()
    assert (one.ready, one.peer) == (True, "")
    with path.open("a") as file:
        file.write('itted": true, "peer": "ff"}\n')
    one.poll()
    assert one.peer == "ff"


def test_the_gap_ends_with_the_first_commit_without_the_victim() -> None:
    one = history(A, {"place": 2, "contributors": (A, C)})
    after = one.first_commit(0.5, without=[B])
    assert after is not None and after.step == 9
    following = one.first_commit(0.5)
    assert following is not None and following.step == 8
    assert one.first_commit(2.5) is None


def test_a_bar_that_is_missed_fails_the_campaign() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([3.0, 1.0, 2.0], 1.0) == 3.0
    assert passed(Figures(kill_gaps_s=[0.05] * 99 + [5.0]))
    assert not passed(Figures(kill_gaps_s=[0.2] * 100))
    assert not passed(Figures(kill_gaps_s=[0.05] * 98 + [5.0] * 2))
    assert not passed(Figures(violations=["something"]))
    assert passed(Figures("ucx", kill_gaps_s=[0.9] * 99 + [5.0]))
    assert not passed(Figures("ucx", kill_gaps_s=[0.9] * 98 + [1.1] * 2))
