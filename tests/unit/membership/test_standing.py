"""What a newcomer's own process can say of what it waits for."""

from __future__ import annotations

from dataclasses import replace

from pccl.membership import member_events as e
from pccl.membership import messages as m
from pccl.membership.standing import why_it_waits
from tests.unit.membership.test_member import Story, admitted


def test_a_newcomer_that_is_refused_for_now_says_why() -> None:
    story = Story()
    assert "not tried yet" in why_it_waits(story.machine)
    story.pass_time(0.0)
    story.connect()
    story.hear(m.Refused("crowded", "64 newcomers have not set up their engine yet"))
    assert "64 newcomers" in why_it_waits(story.machine)


def test_a_newcomer_says_how_many_are_missing_for_a_first_view() -> None:
    story = Story()
    story.pass_time(0.0)
    story.connect()
    story.hear(replace(admitted(), min_world=4), m.World(2, 0, 0))
    said = why_it_waits(story.machine)
    assert "2 peers are admitted" in said and "at least 4" in said


def test_a_newcomer_says_what_the_coordinator_says_of_its_entry() -> None:
    story = Story()
    story.attach()
    story.hear(m.World(3, 2, 5))
    assert "the 2 members have not come" in why_it_waits(story.machine)
    story.hear(m.World(3, 2, 5, "waits at 'eval', which no member has begun lately"))
    assert why_it_waits(story.machine) == (
        "this process waits at 'eval', which no member has begun lately"
    )
    story.tell(e.Disconnected("reset by peer"))
    assert "reset by peer" in why_it_waits(story.machine)
