"""Newcomers at an entry to which the members do not come: nobody else waits for them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pccl.membership.messages import (
    Activate,
    AtEntry,
    CancelPlan,
    Drain,
    Hold,
    HoldFrom,
    LinksUp,
    ViewPlan,
    World,
)
from pccl.transport.native_frames import Flush
from tests.unit.membership.hub import FakePeer, Hub


def planned(hub: Hub, members: Sequence[FakePeer], joiner: FakePeer, entry: str) -> int:
    """Takes a newcomer to where its plan asks the members to hold; returns the epoch."""
    joiner.say(AtEntry(entry, 0))
    epoch = joiner.got(ViewPlan).epoch
    for peer in (*members, joiner):
        peer.say(LinksUp(epoch))
    for peer in members:
        told = peer.got(Hold)
        assert (told.epoch, told.name) == (epoch, entry)
    return epoch


def activated(hub: Hub, members: Sequence[FakePeer], joiner: FakePeer, entry: str) -> int:
    epoch = planned(hub, members, joiner, entry)
    for peer in members:
        peer.say(HoldFrom(epoch, 5, within=1))
    for peer in members:
        assert peer.got(Activate).name == entry
    return epoch


def held_back(members: Sequence[FakePeer], epoch: int) -> None:
    """No member expects to begin the name of that plan."""
    for peer in members:
        peer.say(HoldFrom(epoch, 5, within=0))


def held_back_at_once(hub: Hub) -> tuple[FakePeer, FakePeer, FakePeer, int]:
    """Returns two members, a newcomer that was turned back at `eval`, and its plan's epoch."""
    a, b = hub.members(2)
    x = hub.learner()
    epoch = planned(hub, (a, b), x, "eval")
    held_back((a, b), epoch)
    return a, b, x, epoch


def held_back_again(members: Sequence[FakePeer], joiner: FakePeer, entry: str) -> bool:
    """The newcomer tells its entry once more; if it gets a plan, no member expects the name."""
    joiner.say(AtEntry(entry, 0))
    plan = joiner.last(ViewPlan)
    joiner.inbox.clear()
    if plan is None:
        return False
    for peer in (*members, joiner):
        peer.say(LinksUp(plan.epoch))
    held_back(members, plan.epoch)
    return True


def go_on(hub: Hub, peers: Sequence[FakePeer], seconds: float, watermark: int) -> None:
    """The members decide one step after the other, and begin none of the joiner's name."""
    for peer in peers:
        peer.status = {"watermark": watermark}
    hub.pass_time(seconds, beating=peers)


def test_no_join_is_agreed_for_a_name_that_no_member_expects_to_begin() -> None:
    hub = Hub()
    a, b, x, epoch = held_back_at_once(hub)
    for peer in (a, b, x):
        assert peer.got(CancelPlan).epoch == epoch
    assert a.last(Flush) is None
    (row,) = [p for p in hub.status()["learners"] if p["incarnation"] == x.incarnation]
    assert row["held_back"] == "waits at 'eval', which no member has begun lately"
    x.say(AtEntry("eval", 0))
    assert x.got(World).waits == row["held_back"], "its own process is told, too"
    x.say(AtEntry("eval", 0))
    assert x.last(World) is None, "once"


def test_one_member_that_knows_the_name_is_enough() -> None:
    hub = Hub()
    a, b = hub.members(2)
    epoch = planned(hub, (a, b), hub.learner(), "eval")
    a.say(HoldFrom(epoch, 5, within=0))
    b.say(HoldFrom(epoch, 6, within=500))
    told = a.got(Activate)
    assert (told.step, told.name) == (6, "eval")


def test_a_newcomer_at_another_entry_comes_in_while_one_is_held_back() -> None:
    hub = Hub()
    a, b, x, _ = held_back_at_once(hub)
    y = hub.learner()
    x.say(AtEntry("eval", 0))
    assert hub.join((a, b), y, step=5)


def test_who_is_held_back_is_tried_again_later_and_later() -> None:
    hub = Hub()
    a, b = hub.members(2)
    x = hub.learner()
    times: list[float] = []
    while len(times) < 4:
        hub.pass_time(0.25, beating=(a, b, x))
        if held_back_again((a, b), x, "eval"):
            times.append(hub.now_s)
    waits = [after - before for before, after in pairwise(times)]
    assert waits == [1.0, 2.0, 4.0]


def test_who_comes_to_another_entry_is_held_back_half_as_long() -> None:
    hub = Hub()
    a, b, x, _ = held_back_at_once(hub)
    x.inbox.clear()
    x.say(AtEntry("step", 0))
    assert x.last(ViewPlan) is None
    (row,) = [p for p in hub.status()["learners"] if p["incarnation"] == x.incarnation]
    assert row["held_back"] == "waits at 'step' after 'eval', which no member has begun lately"
    hub.pass_time(0.5, beating=(a, b, x))
    assert hub.join((a, b), x, step=5)


def test_who_goes_to_and_fro_between_two_entries_is_tried_later_and_later_too() -> None:
    hub = Hub()
    a, b = hub.members(2)
    x = hub.learner()
    plans, round_trips = 0, 0
    while hub.now_s < 160.0:
        hub.pass_time(0.25, beating=(a, b, x))
        round_trips += 1
        plans += held_back_again((a, b), x, "eval" if round_trips % 2 else "test")
    assert plans <= 9


def test_a_join_whose_name_never_comes_is_taken_back_and_everybody_stays() -> None:
    hub = Hub()
    a, b = hub.members(2)
    x, y = hub.learner(), hub.learner()
    activated(hub, (a, b), x, "eval")
    go_on(hub, (a, b, x, y), 9.0, watermark=100)
    assert a.last(Flush) is None, "ten seconds are not over"
    go_on(hub, (a, b, x, y), 2.0, watermark=110)
    assert a.last(Flush) is not None
    for peer in (a, b):
        peer.report(watermark=110)
    assert len(a.install().members) == len(b.install().members) == 2
    assert hub.status()["counters"]["evictions"] == 0
    assert hub.join((a, b), y, step=111)


def test_a_join_is_not_taken_back_while_its_name_is_still_expected() -> None:
    hub = Hub()
    a, b = hub.members(2)
    x = hub.learner()
    epoch = planned(hub, (a, b), x, "outer")
    for peer in (a, b):
        peer.say(HoldFrom(epoch, 5, within=500))
    go_on(hub, (a, b, x), 60.0, watermark=900)
    assert a.last(Flush) is None
    for peer in (a, b):
        peer.switch(epoch, 1000)
    assert len(x.install().members) == 3


def test_a_restarted_coordinator_takes_such_a_join_back_as_well() -> None:
    hub = Hub()
    a, b = hub.members(2)
    x = hub.learner()
    activated(hub, (a, b), x, "eval")
    hub.start()
    for peer in (a, b, x):
        peer.hello()
        peer.native_hello()
    go_on(hub, (a, b, x), 12.0, watermark=100)
    assert a.last(Flush) is not None


def test_a_leave_that_is_in_a_hurry_does_not_wait_for_a_name() -> None:
    hub = Hub()
    a, b, c = hub.members(3)
    x = hub.learner()
    epoch = planned(hub, (a, b, c), x, "outer")
    for peer in (a, b, c):
        peer.say(HoldFrom(epoch, 5, within=500))
    a.say(Drain(20.0, "enough"))
    go_on(hub, (a, b, c, x), 16.0, watermark=6)
    for peer in (a, b, c):
        assert peer.last(Flush) is not None
        peer.report(watermark=6)
    for peer in (a, b, c):
        assert len(peer.install().members) == 3
    a.say(AtEntry("step", 6))
    hub.pass_time(0.5, beating=(a, b, c, x))
    assert a.last(Hold) is not None, "there is still time to plan it out"


def test_newcomers_at_different_entries_before_a_first_view_are_told_of_each_other() -> None:
    hub = Hub(min_world=2)
    a, b = hub.learner(), hub.learner()
    a.say(AtEntry("sum", 0))
    b.say(AtEntry("max", 0))
    a.say(AtEntry("sum", 0))
    for peer, here, other, there in ((a, "sum", b, "max"), (b, "max", a, "sum")):
        told = peer.got(World)
        assert f"waits at '{here}', and peer {other.peer_id.hex()[:8]}" in told.waits
        assert f"at '{there}'" in told.waits and "takes 2 at the same entry" in told.waits
    a.say(AtEntry("sum", 0))
    assert a.last(World) is None, "once"
    a.say(AtEntry("max", 0))
    assert a.last(World) is None or "waits at" not in a.got(World).waits
    assert len(b.got(ViewPlan).members) == 2, "and they meet where both are"


def test_who_waits_elsewhere_counts_only_while_it_does_so() -> None:
    hub = Hub(min_world=2)
    a, b = hub.learner(), hub.learner()
    b.say(AtEntry("max", 0))
    hub.pass_time(1.0, beating=[a, b])  # it is at no entry any more, but on its way to another
    a.say(AtEntry("sum", 0))
    assert a.last(World) is None or "waits at" not in a.got(World).waits


def test_who_is_of_another_group_or_not_needed_for_a_view_differs_from_nobody() -> None:
    hub = Hub(min_world=2)
    a, b = hub.learner(group=0), hub.learner(group=1)
    a.say(AtEntry("sum", 0))
    b.say(AtEntry("max", 0))
    assert b.last(World) is None or "waits at" not in b.got(World).waits
    hub = Hub(min_world=1)
    a, b = hub.learner(), hub.learner()
    a.say(AtEntry("sum", 0))
    b.say(AtEntry("max", 0))
    assert b.last(World) is None or "waits at" not in b.got(World).waits
