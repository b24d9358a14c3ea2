"""Members that go: planned out without an abort, flushed out when there is no time for that."""

from __future__ import annotations

import json

import pytest

from pccl.membership.messages import (
    Activate,
    Admitted,
    AtEntry,
    CancelPlan,
    Drain,
    Evicted,
    Hold,
    HoldFrom,
    Install,
    Leaving,
    LinksUp,
    StatusReply,
    StatusRequest,
    StepOutcome,
    Underflow,
    ViewPlan,
    World,
)
from pccl.transport.native_frames import Flush
from tests.unit.membership.hub import FakePeer, Hub, opened


def state_of(hub: Hub, peer: FakePeer, by: FakePeer) -> str | None:
    by.say(StatusRequest())
    document = json.loads(by.got(StatusReply).json)
    known = [*document["members"], *document["learners"]]
    return next((p["state"] for p in known if p["incarnation"] == peer.incarnation), None)


def flushes(*peers: FakePeer) -> list[bool]:
    return [peer.last(Flush) is not None for peer in peers]


def test_a_member_that_drains_is_planned_out_and_nothing_is_aborted() -> None:
    hub = Hub()
    members = [a, b, leaver] = hub.members(3)
    epoch = hub.plan_out(members, leaver, step=7)
    a.switch(epoch, 7)
    b.switch(epoch, 7)
    for peer in members:
        peer.beat(watermark=7)
    assert a.got(World).members == 2
    leaver.say(Leaving("enough", 7))
    assert leaver.got(Evicted).text == "left the run"
    hub.kill(leaver)
    assert flushes(a, b) == [False, False]
    assert a.last(Install) is None


def test_no_links_are_opened_for_a_leave() -> None:
    hub = Hub()
    members = hub.members(3)
    hub.plan_out(members, members[2], step=1)
    assert all(peer.last(ViewPlan) is None for peer in members)


def test_members_switch_at_the_greatest_step_that_anybody_holds_from() -> None:
    hub = Hub()
    a, b, leaver = hub.members(3)
    leaver.say(Drain(30.0, ""))
    epoch = a.got(Hold).epoch
    for peer, step in ((a, 4), (b, 9), (leaver, 5)):
        peer.say(HoldFrom(epoch, step))
    told = leaver.got(Activate)
    assert told.step == 9
    assert [m.peer_id for m in told.members] == [a.peer_id, b.peer_id]


def test_several_leavers_go_in_one_change() -> None:
    hub = Hub()
    members = [a, b, c, d] = hub.members(4)
    c.say(Drain(30.0, ""))
    epoch = c.got(Hold).epoch
    d.say(Drain(30.0, ""))
    for peer in members:
        peer.say(HoldFrom(epoch, 3))
    first = a.got(Activate)
    assert len(first.members) == 3
    for peer in (a, b, d):
        peer.switch(epoch, 3)
    for peer in members:
        peer.beat(watermark=3)
    second = a.got(Hold)
    assert second.epoch > epoch
    for peer in (a, b, d):
        peer.say(HoldFrom(second.epoch, 5))
    assert {m.peer_id for m in a.got(Activate).members} == {a.peer_id, b.peer_id}


def test_leavers_that_ask_before_a_plan_begins_share_it() -> None:
    hub = Hub()
    members = [a, b, c, d] = hub.members(4)
    a.lose(agent=True)  # so nobody can be asked to hold for now
    c.say(Drain(30.0, ""))
    d.say(Drain(30.0, ""))
    a.hello()
    epoch = a.got(Hold).epoch
    for peer in members:
        peer.say(HoldFrom(epoch, 3))
    assert {m.peer_id for m in a.got(Activate).members} == {a.peer_id, b.peer_id}


def test_a_leaver_is_held_until_all_others_have_decided_its_last_step() -> None:
    hub = Hub()
    members = [a, b, leaver] = hub.members(3)
    epoch = hub.plan_out(members, leaver, step=7)
    a.beat(watermark=7)
    leaver.say(Leaving("enough", 7))
    assert leaver.last(Evicted) is None  # b may still wait for its DONE
    b.beat(watermark=7)
    assert leaver.got(Evicted).text == "left the run"
    a.switch(epoch, 7)
    b.switch(epoch, 7)
    assert flushes(a, b) == [False, False]


def test_a_leaver_that_is_not_needed_may_die_before_the_others_have_switched() -> None:
    hub = Hub()
    members = [a, b, leaver] = hub.members(3)
    epoch = hub.plan_out(members, leaver, step=7)
    a.beat(watermark=7)
    b.beat(watermark=7)
    hub.kill(leaver)
    hub.pass_time(2.0, beating=[a, b])
    a.switch(epoch, 7)
    b.switch(epoch, 7)
    assert flushes(a, b) == [False, False]
    assert a.got(World).members == 2


def test_a_leaver_that_dies_while_it_is_needed_is_flushed_out_within_heartbeats() -> None:
    hub = Hub()
    members = [a, b, leaver] = hub.members(3)
    hub.plan_out(members, leaver, step=7)
    for peer in members:
        peer.beat(watermark=6)
    hub.kill(leaver)
    assert flushes(a, b) == [False, False]  # what they decided meanwhile, they will say
    hub.pass_time(0.5, beating=[])
    a.beat(watermark=6)
    b.beat(watermark=6)
    assert flushes(a, b) == [True, True]
    for peer in (a, b):
        peer.report(opened(6, peer.epoch), watermark=6)
    assert [d.outcome for d in a.install().decisions] == [StepOutcome.RETRY]


def test_a_leaver_whose_last_step_is_decided_in_the_next_heartbeats_is_not_missed() -> None:
    hub = Hub()
    members = [a, b, leaver] = hub.members(3)
    hub.plan_out(members, leaver, step=7)
    hub.kill(leaver)
    for peer in (a, b):
        peer.beat(watermark=7)
    hub.pass_time(1.0, beating=[])
    for peer in (a, b):
        peer.beat(watermark=7)
    assert flushes(a, b) == [False, False]


def test_a_deadline_that_is_near_costs_a_flush_at_once_and_no_detection() -> None:
    hub = Hub()
    a, b, leaver = hub.members(3)
    a.lose(agent=True)  # nobody can be asked to hold
    leaver.say(Drain(2.0, "the machine goes away"))
    hub.pass_time(0.9, beating=[a, b, leaver])
    assert flushes(a, b, leaver) == [False, False, False]
    hub.pass_time(0.35, beating=[a, b, leaver])
    assert flushes(a, b, leaver) == [True, True, True]
    for peer in (a, b, leaver):
        peer.report(watermark=0)
    assert leaver.got(Evicted).text == "left the run"
    assert {m.peer_id for m in b.install().members} == {a.peer_id, b.peer_id}


def test_no_time_at_all_is_a_flush_at_once() -> None:
    hub = Hub()
    a, leaver = hub.members(2)
    leaver.say(Drain(0.0, ""))
    assert flushes(a, leaver) == [True, True]


def test_a_repeated_drain_does_not_move_the_deadline() -> None:
    hub = Hub()
    a, leaver = hub.members(2)
    a.lose(agent=True)
    leaver.say(Drain(3.0, ""))
    hub.pass_time(1.5, beating=[a, leaver])
    leaver.say(Drain(3.0, ""))
    hub.pass_time(1.0, beating=[a, leaver])
    assert flushes(a) == [True]


def test_a_hold_that_fails_is_tried_again_while_there_is_time() -> None:
    hub = Hub()
    members = [a, b, leaver] = hub.members(3)
    leaver.say(Drain(30.0, ""))
    first = a.got(Hold).epoch
    hub.pass_time(1.25, beating=members)  # b does not answer
    assert b.last(CancelPlan) is not None
    hub.pass_time(1.25, beating=members)
    assert a.got(Hold).epoch > first
    assert flushes(*members) == [False, False, False]


def test_a_leave_comes_before_a_join_that_is_still_opening_links() -> None:
    hub = Hub()
    a, _, leaver = hub.members(3)
    joiner = hub.learner()
    joiner.say(AtEntry("step", 0))
    joining = joiner.got(ViewPlan).epoch
    leaver.say(Drain(30.0, ""))
    assert a.last(CancelPlan) == CancelPlan(1, joining)
    assert a.last(Hold) is not None and joiner.last(Hold) is None


def test_who_drains_while_a_join_is_activated_is_planned_out_after_it() -> None:
    hub = Hub()
    members = [a, b] = hub.members(2)
    joiner = hub.learner()
    joiner.say(AtEntry("step", 0))
    epoch = joiner.got(ViewPlan).epoch
    for peer in (*members, joiner):
        peer.say(LinksUp(epoch))
    for peer in members:
        peer.say(HoldFrom(epoch, 4))
    b.say(Drain(30.0, ""))
    for peer in members:
        peer.switch(epoch, 4)
    joiner.install()
    held = a.got(Hold)
    assert held.epoch > epoch
    for peer in (*members, joiner):
        peer.say(HoldFrom(held.epoch, 6))
    assert {m.peer_id for m in a.got(Activate).members} == {a.peer_id, joiner.peer_id}


def test_a_newcomer_that_drains_is_let_go_at_once() -> None:
    hub = Hub()
    hub.members(1)
    learner = hub.learner()
    learner.say(AtEntry("step", 0))
    learner.say(Drain(30.0, ""))
    assert learner.got(Evicted).text == "left the run"


@pytest.mark.parametrize("policy", [Underflow.WAIT, Underflow.RAISE])
def test_a_leave_below_min_world_leads_to_a_paused_view_and_aborts_nothing(
    policy: Underflow,
) -> None:
    hub = Hub(min_world=3, on_underflow=int(policy))
    members = [a, b, leaver] = hub.members(3)
    leaver.say(Drain(30.0, ""))
    epoch = a.got(Hold).epoch
    for peer in members:
        peer.say(HoldFrom(epoch, 5))
    told = a.got(Activate)
    assert (told.step, told.paused, told.raises) == (5, True, policy is Underflow.RAISE)
    for peer in (a, b):
        peer.switch(epoch, 5)
    for peer in members:
        peer.beat(watermark=5)
    assert flushes(*members) == [False, False, False]
    a.say(StatusRequest())
    assert json.loads(a.got(StatusReply).json)["paused"]
    hub.join([a, b], hub.learner(), step=5)
    a.say(StatusRequest())
    assert not json.loads(a.got(StatusReply).json)["paused"]


def test_members_that_may_go_on_alone_are_not_held_for_a_leave() -> None:
    hub = Hub(min_world=2, on_underflow=int(Underflow.ALONE))
    members = [a, leaver] = hub.members(2)
    epoch = hub.plan_out(members, leaver, step=5)
    a.switch(epoch, 5)
    for peer in members:
        peer.beat(watermark=5)
    assert a.got(World).members == 1
    assert flushes(a) == [False]


def test_when_all_members_drain_they_finish_and_the_run_begins_anew() -> None:
    hub = Hub()
    members = [a, b] = all_draining(hub)
    told = a.got(Activate)
    assert (told.members, told.step) == ((), 5)
    a.beat(watermark=5)
    a.say(Leaving("", 5))
    assert a.last(Evicted) is None  # b may need its last DONE
    b.beat(watermark=5)
    b.say(Leaving("", 5))
    assert a.got(Evicted).text == b.got(Evicted).text == "left the run"
    assert flushes(*members) == [False, False]
    newcomer = hub.learner()
    assert newcomer.got(Admitted).lineage == 2
    newcomer.say(AtEntry("step", 0))
    assert newcomer.got(ViewPlan).members[0].first_step == 0


def all_draining(hub: Hub) -> list[FakePeer]:
    """Two members, both told to run up to step 5 and go."""
    members = hub.members(2)
    for peer in members:
        peer.say(Drain(30.0, ""))
    hub.pass_time(2.25, beating=members)  # the plan that was made for the first alone is over
    epoch = members[1].got(Hold).epoch
    for peer in members:
        peer.say(HoldFrom(epoch, 5))
    return members


def test_of_two_that_both_leave_one_may_die_and_the_other_finishes_without_it() -> None:
    hub = Hub()
    a, b = all_draining(hub)
    hub.kill(b)
    hub.pass_time(0.5, beating=[a])
    a.report(opened(4, a.epoch), watermark=4)
    told = a.install()
    assert [m.peer_id for m in told.members] == [a.peer_id]
    assert [d.outcome for d in told.decisions] == [StepOutcome.RETRY]
    epoch = a.got(Hold).epoch  # and goes by another plan
    a.say(HoldFrom(epoch, 5))
    assert a.got(Activate).members == ()


def test_of_two_that_have_both_gone_one_that_dies_ends_the_run() -> None:
    hub = Hub()
    a, b = all_draining(hub)
    a.epoch = a.got(Activate).epoch
    hub.kill(b)
    hub.pass_time(0.5, beating=[a])
    a.report(opened(4, 1), watermark=4)
    assert a.got(Evicted).text == "left the run"
    assert hub.learner().got(Admitted).lineage == 2


def test_the_status_names_the_state_of_who_goes() -> None:
    hub = Hub()
    members = [a, b, leaver] = hub.members(3)
    epoch = hub.plan_out(members, leaver, step=7)
    assert state_of(hub, leaver, a) == "draining"
    for peer in (a, b):
        peer.switch(epoch, 7)
    for peer in members:
        peer.beat(watermark=7)
    assert state_of(hub, leaver, a) == "left"
    leaver.say(Leaving("", 7))
    assert state_of(hub, leaver, a) is None


def test_who_left_and_does_not_close_is_let_go_when_its_time_is_over() -> None:
    hub = Hub()
    members = [a, b, leaver] = hub.members(3)
    epoch = hub.plan_out(members, leaver, step=7)
    for peer in (a, b):
        peer.switch(epoch, 7)
    for peer in members:
        peer.beat(watermark=7)
    hub.pass_time(31.0, beating=members)
    assert leaver.last(Evicted) is not None
    assert flushes(a, b) == [False, False]
