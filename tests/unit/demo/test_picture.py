"""The picture is drawn from any run, whole or broken."""

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from pccl.demo.picture import draw, mean_losses, one_report_per_step
from pccl.demo.story import Plan, Story
from tests.unit.demo.demo_stories import a_good_run, meet, step_done

PLAN = Plan(peers=2, steps=20, kill_at=5, join_at=8)


@pytest.mark.parametrize("begun", [True, False])
def test_a_run_becomes_a_png_whether_or_not_it_ever_began(tmp_path: Path, begun: bool) -> None:
    story = a_good_run(PLAN) if begun else Story(PLAN)

    draw(story, tmp_path / "demo.png")

    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_the_mean_is_over_those_who_contributed_and_the_time_is_the_slowest_peers() -> None:
    story = Story(PLAN)
    story.start(0.0)
    names = meet(story, 1.0)
    story.handle("peer 0", step_done(1, names, loss=4.0, step_s=0.2), 1.0)
    story.handle("peer 1", step_done(1, names, loss=5.0, step_s=0.3), 1.0)
    story.handle("peer 0", step_done(2, ["peer 0"], loss=3.0, step_s=0.1, epoch=2), 2.0)

    assert mean_losses(story) == {1: 4.5, 2: 3.0}
    assert [done.step_s for done in one_report_per_step(story)] == [0.3, 0.1]
