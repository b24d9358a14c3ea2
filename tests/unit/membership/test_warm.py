"""Learners that are not at an entry get their links in the background; nobody waits for them."""

from __future__ import annotations

import json

from pccl.membership.messages import (
    Activate,
    AtEntry,
    CancelPlan,
    Drain,
    Hold,
    HoldFrom,
    LinksFailed,
    LinksUp,
    StatusReply,
    StatusRequest,
    ViewPlan,
)
from pccl.transport.native_frames import Suspect, SuspectCode
from tests.unit.membership.hub import FakePeer, Hub


def states(hub: Hub, asking: FakePeer) -> list[str]:
    asking.say(StatusRequest())
    return [p["state"] for p in json.loads(asking.got(StatusReply).json)["learners"]]


def warmed(hub: Hub, members: list[FakePeer], *learners: FakePeer) -> int:
    hub.pass_time(1.25, beating=[*members, *learners])
    epoch = learners[0].got(ViewPlan).epoch
    for peer in (*members, *learners):
        peer.say(LinksUp(epoch))
    return epoch


def test_a_warm_learner_needs_only_that_the_members_hold() -> None:
    hub = Hub()
    members = hub.members(2)
    learner = hub.learner()
    assert states(hub, members[0]) == ["learner"]
    epoch = warmed(hub, members, learner)
    assert all(peer.last(Hold) is None for peer in members)
    assert states(hub, members[0]) == ["warm"]
    learner.say(AtEntry("step", 0))
    for peer in members:
        assert peer.got(Hold).epoch == epoch
        peer.say(HoldFrom(epoch, 4))
    for peer in members:
        assert peer.got(Activate).name == "step"
        peer.switch(epoch, 4)
    assert learner.install().epoch == epoch


def test_a_learner_that_comes_to_an_entry_while_it_warms_up_goes_on_from_there() -> None:
    hub = Hub()
    members = hub.members(2)
    learner = hub.learner()
    hub.pass_time(1.25, beating=[*members, learner])
    epoch = learner.got(ViewPlan).epoch
    learner.say(AtEntry("step", 0))
    assert learner.last(CancelPlan) is None
    for peer in (*members, learner):
        peer.say(LinksUp(epoch))
    assert members[0].got(Hold).epoch == epoch


def test_of_several_warm_learners_one_may_come_in_alone() -> None:
    hub = Hub()
    members = hub.members(2)
    first, second = hub.learner(), hub.learner()
    epoch = warmed(hub, members, first, second)
    first.say(AtEntry("step", 0))
    plan = first.got(ViewPlan)
    assert plan.epoch > epoch and len(plan.members) == 3
    assert second.got(ViewPlan).epoch == epoch


def test_a_newcomer_at_an_entry_does_not_wait_for_one_that_is_slow_to_warm_up() -> None:
    hub = Hub()
    members = hub.members(2)
    slow = hub.learner()
    hub.pass_time(1.25, beating=[*members, slow])
    warming = slow.got(ViewPlan).epoch
    quick = hub.learner()
    quick.say(AtEntry("step", 0))
    assert slow.last(CancelPlan) == CancelPlan(1, warming)
    plan = quick.got(ViewPlan)
    assert {m.incarnation for m in plan.members} == {1, 2, quick.incarnation}


def test_a_member_that_leaves_does_not_wait_for_links_to_learners() -> None:
    hub = Hub()
    members = hub.members(2)
    learner = hub.learner()
    hub.pass_time(1.25, beating=[*members, learner])
    members[1].say(Drain(30.0, ""))
    assert members[0].last(Hold) is not None


def test_a_learner_is_warmed_up_anew_in_each_view() -> None:
    hub = Hub()
    a, b = hub.members(2)
    learner = hub.learner()
    warmed(hub, [a, b], learner)
    hub.kill(b)
    a.report(watermark=3)
    a.install()
    assert states(hub, a) == ["learner"]
    assert len(learner.got(ViewPlan).members) == 2


def test_links_that_were_warm_before_a_flush_bring_nobody_into_an_older_epoch() -> None:
    """The flush loses nobody, so the members are the same, and only the epoch is another."""
    hub = Hub()
    a, b = hub.members(2)
    learner = hub.learner()
    warm = warmed(hub, [a, b], learner)
    a.tell(Suspect(1, 6, SuspectCode.DEADLINE, (), "step 6: 5 s are over"))
    for peer in (a, b):
        peer.report(watermark=6)
    for peer in (a, b):
        assert peer.install().epoch > warm
    learner.say(AtEntry("step", 0))
    plan = learner.got(ViewPlan)
    assert plan.epoch > a.epoch and all(peer.last(Hold) is None for peer in (a, b))
    for peer in (a, b, learner):
        peer.say(LinksUp(plan.epoch))
    for peer in (a, b):
        assert peer.got(Hold).epoch == plan.epoch
        peer.say(HoldFrom(plan.epoch, 8))
    assert a.got(Activate).epoch == plan.epoch


def test_a_learner_that_cannot_be_reached_is_tried_again_later_and_later() -> None:
    hub = Hub()
    members = hub.members(2)
    learner = hub.learner()
    tried: list[float] = []
    for _ in range(3):
        while learner.last(ViewPlan) is None:
            hub.pass_time(0.25, beating=[*members, learner])
        tried.append(hub.now_s)
        epoch = learner.got(ViewPlan).epoch
        members[0].say(LinksFailed(epoch, (learner.peer_id,)))
    assert tried[2] - tried[1] > tried[1] - tried[0] >= 1.0
    assert all(peer.last(Hold) is None for peer in members)


def test_nobody_is_warmed_up_before_there_is_a_view() -> None:
    hub = Hub()
    learner = hub.learner()
    hub.pass_time(5.0, beating=[learner])
    assert learner.last(ViewPlan) is None
