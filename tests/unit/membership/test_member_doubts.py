"""The member machine: when it does not believe in its connection, or in a refusal."""

from __future__ import annotations

import pytest

from pccl.membership import member_events as e
from pccl.membership import messages as m
from pccl.membership.member import NATIVE_DOWN_MAX_S, Phase
from pccl.transport import engine_events as n
from tests.unit.membership.test_member import MEMBERS, Story, admitted, install


def test_a_connection_whose_native_twin_stays_away_is_not_believed() -> None:
    story = Story()
    story.attach()
    story.tell(n.NativeLink(True, 1), n.NativeLink(False, 1))
    assert e.HangUp() not in story.pass_time(NATIVE_DOWN_MAX_S - 0.1)
    assert story.machine.phase is Phase.ATTACHED
    assert [*story.pass_time(0.2), *story.pass_time(0.2)] == [e.HangUp(), e.Dial()]
    story.connect()
    story.hear(admitted(generation=2))
    assert story.machine.phase is Phase.ATTACHED


def test_a_native_connection_that_comes_back_in_time_changes_nothing() -> None:
    story = Story()
    story.attach()
    story.tell(n.NativeLink(True, 1), n.NativeLink(False, 1))
    story.pass_time(NATIVE_DOWN_MAX_S - 0.1)
    story.tell(n.NativeLink(True, 1))
    assert e.HangUp() not in story.pass_time(60.0)


def test_after_a_coordinators_restart_the_native_connection_has_all_its_time_again() -> None:
    story = Story()
    story.attach()
    story.tell(n.NativeLink(True, 1), n.NativeLink(False, 1), e.Disconnected("gone"))
    story.pass_time(NATIVE_DOWN_MAX_S - 1.0)
    story.connect()
    story.hear(admitted(generation=2))
    assert e.HangUp() not in story.pass_time(NATIVE_DOWN_MAX_S - 0.1)
    story.tell(n.NativeLink(True, 1))
    assert e.HangUp() not in story.pass_time(60.0)


def test_a_coordinator_that_is_stopped_keeps_both_connections_and_its_members() -> None:
    story = Story()
    story.attach()
    story.tell(n.NativeLink(True, 1))
    assert e.HangUp() not in story.pass_time(30.0)  # its kernel acknowledges all the while
    assert story.machine.phase is Phase.ATTACHED


def test_a_greeting_alone_binds_nobody_to_a_coordinator() -> None:
    story = Story()
    story.attach()
    story.tell(n.NativeLink(True, 1), n.NativeFollows(1))
    story.tell(e.Disconnected("gone"), n.NativeLink(False, 1))
    story.pass_time(0.15)
    story.connect()
    story.hear(admitted(generation=9))  # a copy of the journal that was restarted often
    story.tell(n.NativeLink(True, 9), e.Disconnected("it is outdated"))
    story.pass_time(0.15)
    (hello,) = [x.message for x in story.connect() if isinstance(x, e.Send)]
    assert isinstance(hello, m.Hello) and hello.generation == 1
    assert e.HangUp() not in story.hear(admitted(generation=2))
    assert story.machine.phase is Phase.ATTACHED


@pytest.mark.parametrize(
    "order",
    [
        m.Hold(9, 4, "step"),
        m.Activate(9, 4, MEMBERS, 5, "", False),
        m.CancelPlan(9, 4),
        install(4, generation=9),
        m.Excluded(9, 4, "it was slow"),
    ],
)
def test_any_order_binds_to_the_coordinator_that_gave_it(order: m.CoordinatorMessageBody) -> None:
    story = Story()
    story.attach()
    story.tell(e.Disconnected("gone"))
    story.pass_time(0.15)
    story.connect()
    story.hear(admitted(generation=9))
    story.hear(order)
    story.tell(e.Disconnected("reset"))
    story.pass_time(0.15)
    story.connect()
    assert story.hear(admitted(generation=8)) == [e.HangUp()]


def test_whoever_finds_a_newer_coordinator_first_takes_the_other_connection_along() -> None:
    for news in (n.NativeLink(True, 2), n.NativeFollows(2)):
        story = Story()
        story.attach()
        story.tell(n.NativeLink(True, 1))
        assert e.HangUp() in story.tell(news)


def test_who_is_refused_because_its_last_life_is_not_over_tries_again() -> None:
    story = Story()
    story.pass_time(0.0)
    story.connect()
    story.hear(m.Refused("namesake", "a living peer has the same peer id"))
    assert e.Dial() in story.pass_time(1.0)
    story.connect()
    story.hear(admitted())
    assert story.machine.phase is Phase.ATTACHED
