"""A run is called good only if everything that the demo promises held."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pccl.demo.report import checks_table, judge, losses, summary_table, write_json
from pccl.demo.run import Children
from pccl.demo.screen import PlainLines, picture_of
from pccl.demo.story import Plan, Story
from tests.unit.demo.demo_stories import a_good_run

PLAN = Plan(peers=4, steps=40, kill_at=10, join_at=15)


def failed(story: Story) -> list[str]:
    return [check.name for check in judge(story) if not check.good]


def text_of(*things: object) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    for thing in things:
        console.print(thing)
    return console.export_text()


def test_a_good_run_passes_every_check() -> None:
    story = a_good_run(PLAN)

    assert failed(story) == []
    assert len(judge(story)) == 7
    assert losses(story) == (5.5, 2.05)


def test_one_different_parameter_hash_fails_the_run() -> None:
    story = a_good_run(PLAN)
    peer = story.peers["peer 2"]
    assert peer.done is not None
    peer.done = replace(peer.done, digest="cd" * 32)

    assert failed(story) == ["their parameters are equal, bit for bit"]


@pytest.mark.parametrize(("end", "good"), [(5.5 * 0.7 - 1e-6, True), (5.5 * 0.7 + 1e-6, False)])
def test_the_loss_bar_is_seven_tenths_of_the_start(end: float, good: bool) -> None:
    story = a_good_run(PLAN)
    for peer in story.peers.values():
        if peer.done is not None:
            peer.done = replace(peer.done, held_out_loss=end)

    expected = [] if good else ["the held-out loss is at most 0.7 x its start"]
    assert failed(story) == expected


def test_a_peer_that_was_told_other_contributors_fails_the_run() -> None:
    story = a_good_run(PLAN)
    history = story.peers["peer 1"].history  # the killed one: what it was told counts too
    history[-1] = replace(history[-1], contributors=("00000001",))

    assert failed(story) == ["all peers were told the same contributors"]


def test_a_newcomer_that_never_contributes_fails_the_run() -> None:
    story = a_good_run(PLAN)
    story.peers["peer 4"].history.clear()

    assert failed(story) == ["peer 4 joined and took part"]


def test_a_problem_on_the_way_fails_a_run_that_ends_well() -> None:
    story = a_good_run(PLAN)
    story.problems.append("peer 2 had finished, but ended with signal 11")

    assert failed(story) == ["nothing else went wrong"]


def test_a_run_without_kill_and_join_is_not_asked_for_them() -> None:
    story = a_good_run(Plan(peers=2, steps=10, kill_at=None, join_at=None))

    assert failed(story) == []
    assert len(judge(story)) == 5


def test_a_run_that_never_began_is_reported_and_not_good() -> None:
    story = Story(PLAN)
    story.start(0.0)

    assert len(failed(story)) == 6
    assert "starting" in text_of(summary_table(story), checks_table(judge(story)))


def test_the_tables_fit_80_columns_and_name_every_peer() -> None:
    story = a_good_run(PLAN)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary_table(story))

    text = console.export_text()

    assert "…" not in text
    for name, state in (("peer 0", "done"), ("peer 1", "killed"), ("peer 4", "done")):
        assert any(name in line and state in line for line in text.splitlines())


def test_the_record_has_every_step_of_every_peer(tmp_path: Path) -> None:
    story = a_good_run(PLAN)

    write_json(tmp_path / "demo.json", story, judge(story), {"steps": 40})

    record = json.loads((tmp_path / "demo.json").read_text())
    assert record["good"] is True
    assert record["killed"] == {"peer": "peer 1", "after_step": 10}
    assert record["joined"] == {"peer": "peer 4", "after_step": 20}
    assert [len(peer["steps"]) for peer in record["peers"]] == [40, 10, 40, 40, 20]


def test_the_live_screen_shows_each_peers_state() -> None:
    story = a_good_run(PLAN)

    text = text_of(picture_of(story, {"peer 1": 4711}, 30.0))

    killed = next(line for line in text.splitlines() if "killed" in line and "peer 1" in line)
    assert "4711" in killed
    assert "peer 4 (new)" in text
    assert "step 40/40" in text


def test_plain_lines_tell_every_event_once(tmp_path: Path) -> None:
    story = a_good_run(PLAN)
    console = Console(width=100, record=True, file=io.StringIO())
    lines = PlainLines(console)
    children = Children(tmp_path)

    lines.update(story, children, 20.0)
    lines.update(story, children, 20.1)

    text = console.export_text()
    assert text.count("SIGKILL") == 1
    assert all(text.count(line.text) >= 1 for line in story.log)
    assert len(text.splitlines()) == len(story.log) + 1  # and one of progress
