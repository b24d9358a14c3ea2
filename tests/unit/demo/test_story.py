"""What happens when in a demo run, told without a process."""

import pytest

from pccl.demo.events import Done, Exited, Failed, Ready
from pccl.demo.story import End, Go, Kill, Launch, Plan, State, Story
from tests.unit.demo.demo_stories import a_good_run, meet, step_done

PLAN = Plan(peers=3, steps=20, kill_at=5, join_at=8)
FOUNDERS = ["peer 0", "peer 1", "peer 2"]


def running_story() -> Story:
    story = Story(PLAN)
    story.start(0.0)
    meet(story, 1.0)
    return story


def test_nobody_connects_before_all_founders_are_ready() -> None:
    story = Story(PLAN)
    launched = story.start(0.0)
    assert launched == [Launch(name, shard, False) for shard, name in enumerate(FOUNDERS)]

    assert story.handle("peer 2", Ready(), 1.0) == []
    assert story.handle("peer 0", Ready(), 1.5) == []
    assert story.handle("peer 1", Ready(), 2.0) == [Go(name) for name in FOUNDERS]


def test_one_peer_is_killed_once_at_the_chosen_step() -> None:
    story = running_story()
    for number in range(1, 5):
        for name in FOUNDERS:
            assert story.handle(name, step_done(number, FOUNDERS), 2.0) == []

    assert story.handle("peer 2", step_done(5, FOUNDERS), 3.0) == [Kill("peer 1")]
    assert story.handle("peer 0", step_done(5, FOUNDERS), 3.0) == []
    assert story.killed_at == 5
    assert story.peers["peer 1"].state is State.KILLED
    # It has told of step 4 only: the step is the run's, not its own.
    assert story.log[-1].text == "peer 1 is killed with SIGKILL as the run is at step 5"


def test_the_end_of_the_killed_peer_is_no_problem_and_what_it_had_said_counts() -> None:
    story = running_story()
    story.handle("peer 0", step_done(5, FOUNDERS), 3.0)

    assert story.handle("peer 1", step_done(5, FOUNDERS), 3.0) == []
    assert story.handle("peer 1", Exited(-9), 3.1) == []

    assert story.problems == []
    assert [done.step for done in story.peers["peer 1"].history] == [5]


def test_the_gap_is_from_the_kill_to_the_first_step_without_the_killed_peer() -> None:
    story = running_story()
    story.handle("peer 0", step_done(5, FOUNDERS), 3.0)
    story.handle("peer 0", step_done(6, FOUNDERS), 3.2)
    assert story.recovered_after_s is None

    story.handle("peer 2", step_done(7, ["peer 0", "peer 2"], epoch=2), 3.5)

    assert story.recovered_after_s == pytest.approx(0.5)


def test_a_newcomer_is_started_at_the_chosen_step_and_connects_when_it_is_ready() -> None:
    story = running_story()
    story.handle("peer 0", step_done(5, FOUNDERS), 3.0)
    two = ["peer 0", "peer 2"]

    assert story.handle("peer 0", step_done(8, two, epoch=2), 4.0) == [Launch("peer 3", 3, True)]
    assert story.handle("peer 2", step_done(8, two, epoch=2), 4.0) == []
    assert story.handle("peer 3", Ready(), 9.0) == [Go("peer 3")]


def test_a_whole_run_ends_without_a_problem_when_the_last_process_is_gone() -> None:
    story = a_good_run(PLAN)

    assert story.over
    assert story.problems == []
    assert {name: peer.state for name, peer in story.peers.items()} == {
        "peer 0": State.DONE,
        "peer 1": State.KILLED,
        "peer 2": State.DONE,
        "peer 3": State.DONE,
    }
    assert (story.killed_at, story.joined_at) == (5, 13)


def test_a_peer_that_dies_unasked_is_a_problem_but_the_others_go_on() -> None:
    story = running_story()
    story.handle("peer 0", step_done(1, FOUNDERS), 2.0)

    assert story.handle("peer 2", Exited(-11), 2.5) == []

    assert story.problems == ["peer 2 died unasked with signal 11"]
    assert story.peers["peer 2"].state is State.FAILED
    assert not story.over


def test_a_failure_before_the_first_step_ends_the_run_at_once() -> None:
    story = running_story()

    assert story.handle("peer 0", Failed("no coordinator"), 2.0) == [End()]
    assert not story.set_up
    assert story.problems == ["peer 0 failed: no coordinator"]


def test_silence_ends_the_run_with_the_reason() -> None:
    story = running_story()
    story.handle("peer 0", step_done(1, FOUNDERS), 2.0)
    assert story.on_deadline(story.deadline_s - 0.1) == []

    assert story.on_deadline(story.deadline_s) == [End()]
    assert story.problems == ["waited too long for a step after step 1"]
    assert story.on_deadline(story.deadline_s + 1.0) == []  # it ended once


def test_a_peer_that_does_not_finish_after_the_others_is_not_waited_for_without_end() -> None:
    story = running_story()
    story.handle("peer 0", step_done(20, ["peer 0", "peer 2"]), 9.0)
    story.handle("peer 0", Done(20, 2.0, "ab"), 10.0)
    story.handle("peer 0", Exited(0), 10.0)
    story.handle("peer 2", step_done(20, ["peer 0", "peer 2"]), 11.0)

    assert story.deadline_s == 40.0
    assert story.on_deadline(40.0) == [End()]


def test_the_coordinators_end_is_the_end_of_the_run() -> None:
    story = running_story()

    assert story.on_coordinator_exit(1, 2.0) == [End()]
    assert story.problems == ["the coordinator ended with exit code 1"]


@pytest.mark.parametrize(
    ("peers", "steps", "kill_at", "join_at", "reason"),
    [
        (0, 20, None, None, "--peers is 0"),
        (1, 20, 5, None, "needs a second peer"),
        (2, 1, None, None, "--steps is 1"),
        (2, 20, 20, None, "--kill-at is 20"),
        (2, 20, None, 0, "--join-at is 0"),
        (2, 20, 9, 8, "comes before"),
    ],
)
def test_an_impossible_plan_is_refused_with_the_option_to_change(
    peers: int, steps: int, kill_at: int | None, join_at: int | None, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        Plan(peers=peers, steps=steps, kill_at=kill_at, join_at=join_at)
