"""Planned views: how newcomers come in, and what happens when they cannot."""

from __future__ import annotations

from pccl.membership.events import Persist
from pccl.membership.messages import (
    Activate,
    AtEntry,
    CancelPlan,
    Evicted,
    Hold,
    HoldFrom,
    Install,
    Installed,
    Leaving,
    LinksFailed,
    LinksUp,
    Switched,
    ViewPlan,
)
from pccl.membership.record import VIEWS_MAX
from pccl.transport.native_frames import Flush
from tests.unit.membership.hub import FakePeer, Hub, opened


def test_the_first_view_forms_at_once_when_everybody_waits_at_the_same_entry() -> None:
    hub = Hub(min_world=2)
    a, b = hub.learner(), hub.learner()
    a.say(AtEntry("step", 0))
    assert a.last(ViewPlan) is None
    b.say(AtEntry("step", 0))
    for peer in (a, b):
        peer.say(LinksUp(peer.got(ViewPlan).epoch))
    install = a.got(Install)
    assert install.epoch == 1 and not install.paused
    assert [m.first_step for m in install.members] == [0, 0]
    assert [m.incarnation for m in install.members] == [1, 2]


def test_the_first_view_waits_a_moment_for_those_that_are_still_on_their_way() -> None:
    hub = Hub(min_world=2)
    a, b, slow = hub.learner(), hub.learner(), hub.learner()
    a.say(AtEntry("step", 0))
    b.say(AtEntry("step", 0))
    hub.pass_time(0.75, beating=[a, b, slow])
    assert a.last(ViewPlan) is None
    hub.pass_time(0.5, beating=[a, b, slow])
    assert len(a.got(ViewPlan).members) == 2


def test_a_first_view_goes_on_without_the_one_whose_links_stay_down() -> None:
    hub = Hub(min_world=2)
    a, b, c = hub.learner(), hub.learner(), hub.learner()
    for peer in (a, b, c):
        peer.say(AtEntry("step", 0))
    first = a.got(ViewPlan).epoch
    b.say(LinksUp(first))
    for _ in range(6):
        hub.pass_time(1.0, beating=[a, b, c])
        for peer in (a, b):
            peer.say(AtEntry("step", 0))
        a.say(LinksUp(first))
    plan = a.got(ViewPlan)
    assert plan.epoch > first and {m.incarnation for m in plan.members} == {1, 2}


def test_a_joiner_enters_at_the_first_step_with_its_name_and_nothing_is_flushed() -> None:
    hub = Hub()
    a, b = hub.members(2)
    joiner = hub.learner()
    joiner.say(AtEntry("outer", 0))
    epoch = joiner.got(ViewPlan).epoch
    assert a.last(Hold) is None  # nothing is promised while links open
    for peer in (joiner, a, b):
        peer.say(LinksUp(epoch))
    assert joiner.last(Hold) is None  # only members are asked to hold
    a.say(HoldFrom(epoch, 10))
    b.say(HoldFrom(epoch, 12))
    activate = a.got(Activate)
    assert (activate.epoch, activate.step, activate.name) == (epoch, 12, "outer")
    assert joiner.last(Install) is None
    b.say(Switched(epoch, 15))
    install = joiner.got(Install)
    assert [m.first_step for m in install.members] == [0, 0, 15]
    assert a.last(Install) is None  # its open steps go on; it enters by itself
    a.say(Switched(epoch, 15))
    assert a.got(Install).members == install.members
    assert a.last(Flush) is None


def test_joiners_of_one_name_come_in_together_and_others_after_them() -> None:
    hub = Hub()
    (a,) = hub.members(1)
    inner, outer, outer_too = hub.learner(), hub.learner(), hub.learner()
    blocker = hub.learner()
    blocker.say(AtEntry("outer", 0))
    for peer, entry in ((inner, "inner"), (outer, "outer"), (outer_too, "outer")):
        hub.pass_time(0.1, beating=[a])
        peer.say(AtEntry(entry, 0))
    epoch = blocker.got(ViewPlan).epoch
    for peer in (a, blocker):
        peer.say(LinksUp(epoch))
    a.say(HoldFrom(epoch, 3))
    a.say(Switched(epoch, 3))
    a.epoch = epoch
    blocker.install()
    assert {m.incarnation for m in inner.got(ViewPlan).members} == {1, 5, 2}
    assert outer.last(ViewPlan) is None


def test_a_joiner_whose_links_fail_is_left_out_and_tried_again_later() -> None:
    hub = Hub()
    a, b = hub.members(2)
    joiner = hub.learner()
    joiner.say(AtEntry("step", 0))
    epoch = a.got(ViewPlan).epoch
    a.say(LinksUp(epoch))
    b.say(LinksFailed(epoch, (joiner.peer_id,)))
    assert a.got(CancelPlan).epoch == epoch
    hub.pass_time(0.75, beating=[a, b, joiner])
    joiner.say(AtEntry("step", 0))
    assert a.last(ViewPlan) is None
    hub.pass_time(0.5, beating=[a, b, joiner])
    assert a.got(ViewPlan).epoch > epoch


def test_a_plan_whose_members_alone_stay_late_is_made_anew_and_keeps_no_newcomer_waiting() -> None:
    hub = Hub()
    a, b = hub.members(2)
    joiner = hub.learner()
    epochs = set[int]()
    for _ in range(60):  # 15 s; its link to the newcomer was lost before it heard of the plan
        joiner.say(AtEntry("step", 0))
        for peer in (a, joiner):
            plan = peer.last(ViewPlan)
            if plan is not None:
                epochs.add(plan.epoch)
                peer.say(LinksUp(plan.epoch))
        hub.pass_time(0.25, beating=[a, b, joiner])
    cancelled = {m.epoch for m in b.inbox if isinstance(m, CancelPlan)}
    assert len(epochs) == 2 and cancelled == {min(epochs)}
    b.say(LinksUp(max(epochs)))
    assert b.got(Hold).epoch == max(epochs)


def test_a_member_that_is_a_little_late_with_its_links_costs_no_plan() -> None:
    hub = Hub()
    a, b = hub.members(2)
    joiner = hub.learner()
    joiner.say(AtEntry("step", 0))
    epoch = joiner.got(ViewPlan).epoch
    for peer in (a, joiner):
        peer.say(LinksUp(epoch))
    hub.pass_time(7.0, beating=[a, b, joiner])
    b.say(LinksUp(epoch))
    assert b.last(CancelPlan) is None and b.got(Hold).epoch == epoch


def test_who_has_lost_a_link_that_was_up_is_not_counted_as_ready() -> None:
    hub = Hub()
    a, b = hub.members(2)
    joiner = hub.learner()
    joiner.say(AtEntry("step", 0))
    epoch = joiner.got(ViewPlan).epoch
    for peer in (a, joiner):
        peer.say(LinksUp(epoch))
    a.say(LinksFailed(epoch, (b.peer_id,)))  # two members: nothing that a plan could do without
    b.say(LinksUp(epoch))
    assert a.last(Hold) is None and a.last(CancelPlan) is None
    a.say(LinksUp(epoch))
    assert a.got(Hold).epoch == epoch


def test_a_joiner_that_dies_while_links_open_cancels_the_plan_only() -> None:
    hub = Hub()
    (a,) = hub.members(1)
    joiner = hub.learner()
    joiner.say(AtEntry("step", 0))
    epoch = a.got(ViewPlan).epoch
    hub.kill(joiner)
    assert a.got(CancelPlan).epoch == epoch
    assert a.last(Flush) is None


def test_members_do_not_hold_for_long_for_one_that_does_not_answer() -> None:
    hub = Hub()
    a, b = hub.members(2)
    joiner = hub.learner()
    joiner.say(AtEntry("step", 0))
    epoch = a.got(ViewPlan).epoch
    for peer in (a, b, joiner):
        peer.say(LinksUp(epoch))
    a.say(HoldFrom(epoch, 4))
    hub.pass_time(1.0, beating=[a, b, joiner])
    assert a.got(CancelPlan).epoch == epoch


def test_late_answers_to_an_abandoned_plan_have_no_effect() -> None:
    hub = Hub()
    (a,) = hub.members(1)
    joiner = hub.learner()
    joiner.say(AtEntry("step", 0))
    old = a.got(ViewPlan).epoch
    a.say(LinksFailed(old, (joiner.peer_id,)))
    hub.pass_time(1.25, beating=[a, joiner])
    joiner.say(AtEntry("step", 0))
    new = a.got(ViewPlan).epoch
    for peer in (a, joiner):
        peer.say(LinksUp(old))
    a.say(HoldFrom(old, 2))
    assert a.last(Hold) is None and a.last(Activate) is None and new > old


def test_a_joiner_that_dies_after_activation_costs_one_flush_and_does_not_come_in() -> None:
    hub = Hub()
    a, b = hub.members(2)
    joiner = hub.learner()
    joiner.say(AtEntry("step", 0))
    epoch = a.got(ViewPlan).epoch
    for peer in (a, b, joiner):
        peer.say(LinksUp(epoch))
    for peer in (a, b):
        peer.say(HoldFrom(epoch, 4))
    hub.kill(joiner)
    a.epoch = epoch
    a.report(opened(4, epoch), watermark=4, switched=4)
    b.report(opened(3, 1, complete=True), watermark=3)
    install = a.got(Install)
    assert install.epoch > epoch and len(install.members) == 2
    assert [(d.step, d.outcome) for d in install.decisions] == [(3, 1), (4, 2)]


def test_a_joiner_already_installed_keeps_its_place_through_a_flush() -> None:
    hub = Hub()
    a, b = hub.members(2)
    joiner = hub.learner()
    joiner.say(AtEntry("step", 0))
    epoch = a.got(ViewPlan).epoch
    for peer in (a, b, joiner):
        peer.say(LinksUp(epoch))
    for peer in (a, b):
        peer.say(HoldFrom(epoch, 4))
    a.epoch = epoch
    a.say(Switched(epoch, 4))
    joiner.install()
    hub.kill(b)
    a.report(opened(4, epoch), watermark=4, switched=4)
    joiner.report(opened(4, epoch), watermark=4)
    install = a.got(Install)
    assert [(m.incarnation, m.first_step) for m in install.members] == [(1, 0), (3, 4)]


def paused_member_at(hub: Hub, entry: str) -> FakePeer:
    """Makes a view of two of which one is killed while both run step 5."""
    a, b = hub.members(2)
    hub.kill(b)
    a.report(opened(5, 1), watermark=5)
    assert a.install().paused
    a.say(AtEntry(entry, 6))
    return a


def test_a_paused_view_goes_on_at_the_step_it_waits_at_when_enough_have_come() -> None:
    hub = Hub(min_world=2)
    a = paused_member_at(hub, "step")
    joiner = hub.learner()
    joiner.say(AtEntry("step", 0))
    epoch = joiner.got(ViewPlan).epoch
    for peer in (a, joiner):
        peer.say(LinksUp(epoch))
    a.say(HoldFrom(epoch, 5))
    assert a.got(Activate).step == 5
    a.say(Switched(epoch, 5))
    install = joiner.got(Install)
    assert not install.paused and install.members[-1].first_step == 5


def test_a_paused_view_prefers_who_waits_at_the_same_entry_but_takes_others() -> None:
    for same_entry_too in (True, False):
        hub = Hub(min_world=2)
        a = paused_member_at(hub, "inner")
        other, same = hub.learner(), hub.learner()
        hub.pass_time(0.25, beating=[a, other, same])
        a.lose(agent=True)  # no plan begins without it
        other.say(AtEntry("outer", 0))
        if same_entry_too:
            hub.pass_time(0.25, beating=[a, other, same])
            same.say(AtEntry("inner", 0))
        a.hello()
        chosen = same if same_entry_too else other
        assert {m.incarnation for m in a.got(ViewPlan).members} == {1, chosen.incarnation}


def test_a_paused_view_is_not_replaced_by_one_that_is_still_too_small() -> None:
    hub = Hub(min_world=3)
    a, b, c = hub.members(3)
    hub.kill(b)
    hub.kill(c)
    a.report()
    a.install()
    joiner = hub.learner()
    joiner.say(AtEntry("step", 0))
    assert joiner.last(ViewPlan) is None
    second = hub.learner()
    second.say(AtEntry("step", 0))
    assert len(joiner.got(ViewPlan).members) == 3


def test_a_program_that_stopped_waiting_at_its_entry_is_not_planned_for() -> None:
    hub = Hub()
    a, b = hub.members(2)
    hub.kill(b)
    joiner = hub.learner()
    joiner.say(AtEntry("step", 0))  # while the flush is on: no plan yet
    hub.pass_time(2.25, beating=[a, joiner])
    a.report()
    a.install()
    assert a.last(ViewPlan) is None
    joiner.say(AtEntry("step", 0))
    assert a.last(ViewPlan) is not None


def test_no_plan_begins_before_all_members_have_installed_the_current_view() -> None:
    hub = Hub()
    a, b, c = hub.members(3)
    hub.kill(c)
    a.report()
    b.report()
    a.install()
    joiner = hub.learner()
    joiner.say(AtEntry("step", 0))
    assert joiner.last(ViewPlan) is None
    b.say(Installed(b.got(Install).epoch))
    assert joiner.last(ViewPlan) is not None


def test_a_member_that_enters_before_the_agreed_step_is_removed() -> None:
    hub = Hub()
    a, b = hub.members(2)
    joiner = hub.learner()
    joiner.say(AtEntry("step", 0))
    epoch = a.got(ViewPlan).epoch
    for peer in (a, b, joiner):
        peer.say(LinksUp(epoch))
    for peer in (a, b):
        peer.say(HoldFrom(epoch, 4))
    b.say(Switched(epoch, 3))
    a.report()
    assert a.got(Install).lost == (b.peer_id,)
    assert b.last(Evicted) is not None


def test_a_learner_that_leaves_is_simply_gone() -> None:
    hub = Hub()
    (a,) = hub.members(1)
    learner = hub.learner()
    learner.say(Leaving("close"))
    assert learner.got(Evicted).text == "left the run"
    assert a.last(Flush) is None


def test_views_with_open_steps_are_kept_and_joiners_wait_when_there_are_too_many() -> None:
    hub = Hub()
    members = hub.members(1)
    for step in range(1, VIEWS_MAX):
        joiner = hub.learner()
        hub.join(members, joiner, step=step)
        members.append(joiner)
    late = hub.learner()
    late.say(AtEntry("step", 0))
    assert late.last(ViewPlan) is None  # step 0 may be open still
    for peer in members[1:]:
        peer.beat(watermark=VIEWS_MAX)
    assert late.last(ViewPlan) is None
    members[0].beat(watermark=3)  # what runs from step 3 on runs in the fourth view or a later one
    assert late.last(ViewPlan) is not None
    hub.join(members, late, step=VIEWS_MAX)
    views = [e.record.history for e in hub.effects if isinstance(e, Persist)][-1]
    assert [view.begins for view in views] == list(range(3, VIEWS_MAX - 1))
