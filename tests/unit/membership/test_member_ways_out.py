"""How a peer goes: planned out, excluded and back, or over when nobody answers."""

from __future__ import annotations

import pytest

from pccl.membership import member_events as e
from pccl.membership import messages as m
from pccl.membership.member import GOODBYE_S, Ended
from pccl.transport import engine_events as n
from tests.unit.membership.test_member import MEMBERS, Story, admitted, install, sent


def attached() -> Story:
    story = Story()
    story.attach()
    return story


def test_a_wish_to_go_is_told_and_told_again_to_whoever_comes_next() -> None:
    story = attached()
    assert sent(story.tell(e.Drain(30.0, "spot notice"))) == [m.Drain(30.0, "spot notice")]
    story.tell(e.Disconnected("the connection ended"))
    story.pass_time(10.0)
    story.connect()
    assert sent(story.hear(admitted(2))) == [m.Drain(20.0, "spot notice")]


def test_only_a_shorter_time_is_told_anew() -> None:
    story = attached()
    story.tell(e.Drain(30.0, "first"))
    assert story.tell(e.Drain(40.0, "second")) == []
    assert sent(story.tell(e.Drain(5.0, "third"))) == [m.Drain(5.0, "third")]


def test_who_asks_before_it_is_attached_is_heard_later() -> None:
    story = Story()
    story.pass_time(0.0)
    story.connect()
    assert story.tell(e.Drain(30.0, "")) == []
    assert m.Drain(30.0, "") in sent(story.hear(admitted()))


def test_the_end_of_who_asked_to_go_is_that_it_left() -> None:
    for end in (e.Received(m.Evicted(1, "left the run")), n.NativeEvicted("left the run")):
        story = attached()
        story.tell(e.Drain(30.0, ""))
        (failed, _) = story.tell(end)
        assert failed == e.FailEngine("left", "left the run")
        assert story.machine.ended == Ended("left", "left the run")


def test_goodbye_says_up_to_which_step_all_is_decided() -> None:
    story = attached()
    story.tell(e.Drain(30.0, ""))
    story.hear(m.Activate(1, 5, (), 7, ""))
    story.tell(n.ViewLeft(5, 7))
    assert sent(story.tell(e.Leave("done", 7))) == [m.Leaving("done", 7)]
    story.tell(e.Disconnected("closed"))
    assert story.machine.ended is not None and story.machine.ended.code == "left"


def test_a_coordinator_that_does_not_act_in_time_is_left_alone() -> None:
    story = attached()
    story.tell(e.Drain(5.0, "spot notice"))
    assert sent(story.pass_time(5.0)) == [m.Leaving("spot notice")]
    story.pass_time(GOODBYE_S)
    assert story.machine.ended is not None and story.machine.ended.code == "left"


def test_without_a_coordinator_the_deadline_ends_it() -> None:
    story = attached()
    story.tell(e.Disconnected("the connection ended"), e.Drain(5.0, "spot notice"))
    effects = story.pass_time(6.0)
    assert e.FailEngine("left", "spot notice") in effects
    assert story.machine.deadline_s is None


def test_a_view_without_this_peer_is_in_force_and_older_words_have_no_effect() -> None:
    story = attached()
    told = m.Activate(1, 5, (), 7, "")
    assert story.hear(told) == [e.ActivateView(told)]
    assert story.tell(n.ViewLeft(5, 7)) == []
    assert story.hear(told, m.Hold(1, 5), m.ViewPlan(1, 5, ())) == []


def test_an_exclusion_is_carried_out_once_and_confirmed_whenever_it_is_told() -> None:
    story = attached()
    story.hear(install(3))
    story.tell(n.ViewInstalled(3))
    told = m.Excluded(1, 4, "too slow")
    assert story.hear(told) == [e.ExcludeEngine(told)]
    assert sent(story.tell(n.EngineExcluded(4))) == [m.Installed(4)]
    assert story.hear(told) == [e.Send(m.Installed(4))]


def test_who_was_excluded_waits_at_an_entry_and_is_installed_anew() -> None:
    story = attached()
    story.hear(install(3))
    story.tell(n.ViewInstalled(3))
    story.hear(m.Excluded(1, 4, "too slow"))
    story.tell(n.EngineExcluded(4))
    assert sent(story.tell(n.EntryReached("step", 9))) == [m.AtEntry("step", 9)]
    assert story.hear(install(5)) == [e.InstallView(install(5))]
    assert sent(story.tell(n.ViewInstalled(5))) == [m.Installed(5)]


@pytest.mark.parametrize("generation", [1, 2])
def test_an_exclusion_by_an_older_coordinator_has_no_effect(generation: int) -> None:
    story = attached()
    story.hear(m.Install(2, 3, MEMBERS, False, 0, (), ()))
    story.tell(n.ViewInstalled(3))
    effects = story.hear(m.Excluded(generation, 4, ""))
    assert (effects == []) == (generation == 1)
