"""Something fails while members leave by a plan: a member, a leaver, the coordinator."""

from __future__ import annotations

import pytest

from pccl.membership.messages import (
    Activate,
    CancelPlan,
    Drain,
    Evicted,
    Hold,
    HoldFrom,
    Install,
    World,
)
from pccl.transport.native_frames import Flush, OpenStep, Report
from tests.unit.membership.hub import DIGEST, FakePeer, Hub, opened


def flushes(*peers: FakePeer) -> list[bool]:
    return [peer.last(Flush) is not None for peer in peers]


@pytest.mark.parametrize("gone", [False, True])
def test_a_flush_before_all_have_switched_keeps_a_leaver_that_has_not_gone(gone: bool) -> None:
    hub = Hub()
    members = [a, b, c, leaver] = hub.members(4)
    epoch = hub.plan_out(members, leaver, step=7)
    old = a.epoch
    a.switch(epoch, 7)
    hub.kill(c)
    a.report(opened(6, old), opened(7, epoch), watermark=6)
    b.report(opened(6, old), watermark=6)
    if gone:
        leaver.epoch = epoch  # its program has come to step 7 and was told
    leaver.report(opened(6, old), watermark=6)
    told = a.install()
    assert [(d.step, d.outcome) for d in told.decisions] == [(6, 2), (7, 2)]
    if gone:
        assert [m.peer_id for m in told.members] == [a.peer_id, b.peer_id]
        assert leaver.got(Evicted).text == "left the run"
    else:
        assert [m.peer_id for m in told.members] == [a.peer_id, b.peer_id, leaver.peer_id]
        b.install()
        leaver.install()
        assert a.got(Hold).epoch > told.epoch  # planned out anew


def test_a_flush_after_all_have_switched_is_without_the_leaver() -> None:
    hub = Hub()
    members = [a, b, c, leaver] = hub.members(4)
    epoch = hub.plan_out(members, leaver, step=7)
    old = a.epoch
    for peer in (a, b, c):
        peer.switch(epoch, 7)
    hub.kill(c)
    complete = opened(6, old, complete=True)
    for peer in (a, b):
        peer.report(complete, opened(7, epoch), watermark=6)
    leaver.report(complete, watermark=6)
    told = a.install()
    assert [m.peer_id for m in told.members] == [a.peer_id, b.peer_id]
    assert [(d.step, d.outcome) for d in told.decisions] == [(6, 1), (7, 2)]


def test_a_leaver_that_nobody_needs_is_not_asked_for_a_report() -> None:
    hub = Hub()
    members = [a, b, c, leaver] = hub.members(4)
    epoch = hub.plan_out(members, leaver, step=7)
    for peer in (a, b, c):
        peer.beat(watermark=7)
    a.switch(epoch, 7)
    hub.kill(c)
    assert flushes(a, b, leaver) == [True, True, False]
    a.report(opened(7, epoch), watermark=7)
    b.report(watermark=7)
    assert [m.peer_id for m in a.install().members] == [a.peer_id, b.peer_id]
    assert leaver.got(Evicted).text == "left the run"


@pytest.mark.parametrize("asked", ["drained", "activated", "held"])
def test_a_coordinator_that_starts_anew_goes_on_with_a_leave(asked: str) -> None:
    hub = Hub()
    members = [a, b, leaver] = hub.members(3)
    if asked == "drained":
        a.lose(agent=True)
        leaver.say(Drain(30.0, ""))
    elif asked == "held":
        leaver.say(Drain(30.0, ""))
        a.say(HoldFrom(a.got(Hold).epoch, 7))
    else:
        epoch = hub.plan_out(members, leaver, step=7)
    hub.start()
    for peer in members:
        peer.hello()
        peer.native_hello()
    if asked == "held":
        assert all(peer.last(CancelPlan) for peer in members)
    if asked != "activated":  # said again by whoever still wants to go
        leaver.say(Drain(29.0, ""))
        epoch = a.got(Hold).epoch
        for peer in members:
            peer.say(HoldFrom(epoch, 7))
    for peer in members:
        assert (told := peer.got(Activate)).step == 7 and told.epoch == epoch
    a.switch(epoch, 7)
    b.switch(epoch, 7)
    for peer in members:
        peer.beat(watermark=7)
    assert a.got(World).members == 2
    assert flushes(a, b, leaver) == [False, False, False]


def test_a_leaver_that_went_while_there_was_no_coordinator_is_not_missed() -> None:
    hub = Hub()
    members = [a, b, leaver] = hub.members(3)
    epoch = hub.plan_out(members, leaver, step=7)
    hub.start()
    for peer in (a, b):
        peer.hello(epoch=epoch)
        peer.native_hello()
        peer.epoch = epoch
    hub.dead(leaver)
    hub.pass_time(1.0)
    for peer in (a, b):
        peer.beat(watermark=7)
    assert flushes(a, b) == [False, False]
    assert a.got(World).members == 2


def test_what_is_over_is_durable_before_it_is_told() -> None:
    hub = Hub()
    members = [a, b, leaver] = hub.members(3)
    epoch = hub.plan_out(members, leaver, step=7)
    for peer in (a, b):
        peer.switch(epoch, 7)
    for peer in members:
        peer.beat(watermark=7)
    record = hub.store.load()
    assert record is not None and record.view is not None
    assert record.activation is None and record.history == ()
    assert (record.view.epoch, record.view.begins) == (epoch, 7)


def test_a_report_of_a_leaver_that_has_gone_is_no_contradiction() -> None:
    hub = Hub()
    members = [a, b, leaver] = hub.members(3)
    epoch = hub.plan_out(members, leaver, step=2)
    old = a.epoch
    for peer in (a, b):
        peer.switch(epoch, 2)
    hub.kill(b)
    flush = a.got(Flush)
    held = OpenStep(1, old, True, True, False, DIGEST, DIGEST, 0)
    a.tell(Report(1, flush.target, epoch, True, 2, 1, 3, (), (held,)))
    leaver.tell(Report(1, flush.target, epoch, True, 2, 2, 2, (), ()))  # it knows that 1 committed
    assert [(d.step, d.outcome) for d in a.install().decisions] == [(1, 1)]


def test_leavers_decide_nothing_while_those_who_stay_cannot_be_heard() -> None:
    # Those may have switched, and committed steps without the leaver, before they were cut off.
    hub = Hub()
    members = [a, b, leaver] = hub.members(3)
    epoch = hub.plan_out(members, leaver, step=7)
    hub.pass_time(20.0, beating=[leaver])
    assert flushes(leaver) == [True]
    leaver.report(watermark=7)
    hub.pass_time(20.0, beating=[leaver])
    assert leaver.last(Install) is None
    a.epoch = b.epoch = epoch
    a.report(watermark=9)
    b.report(watermark=9)
    assert {m.peer_id for m in a.install().members} == {a.peer_id, b.peer_id}
    assert leaver.got(Evicted).text == "left the run"


def test_leavers_alone_do_not_go_on_with_a_run_whose_other_members_are_dead() -> None:
    hub = Hub()
    members = [a, b, *leavers] = hub.members(4)
    a.lose(agent=True)  # so that both leave by one plan
    for leaver in leavers:
        leaver.say(Drain(30.0, ""))
    a.hello()
    epoch = a.got(Hold).epoch
    for peer in members:
        peer.say(HoldFrom(epoch, 3))
    assert len(a.got(Activate).members) == 2
    hub.kill(a)
    hub.kill(b)
    for leaver in leavers:
        assert "those who were to stay are gone" in leaver.got(Evicted).text
        assert leaver.last(Install) is None
