"""Ring orders that part some pairs: as many as can be, and nothing else is moved."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pccl.membership.messages import Activate, AtEntry, Hold, HoldFrom, Install, ViewPlan, World
from pccl.membership.ring import keep_apart
from pccl.transport.native_frames import Flush
from tests.unit.membership.hub import FakePeer, Hub


def neighbours(order: tuple[int, ...]) -> set[tuple[int, int]]:
    pairs = zip(order, (*order[1:], *order[:1]), strict=True)
    return {(min(a, b), max(a, b)) for a, b in pairs}


def test_two_neighbours_are_parted_as_soon_as_a_ring_has_room_for_that() -> None:
    assert keep_apart((1, 2, 3), {(1, 2)}) == (1, 2, 3)  # all are neighbours of all
    assert (1, 2) not in neighbours(keep_apart((1, 2, 3, 4), {(1, 2)}))
    assert keep_apart((1, 2, 3, 4), {(1, 3)}) == (1, 2, 3, 4)


@given(st.integers(4, 12), st.sets(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=8))
def test_an_order_never_gets_worse_and_keeps_everybody(n: int, pairs: set[tuple[int, int]]) -> None:
    apart = {(min(p), max(p)) for p in pairs}
    order = tuple(range(1, n + 1))
    better = keep_apart(order, apart)
    assert sorted(better) == list(order)
    assert len(neighbours(better) & apart) <= len(neighbours(order) & apart)
    assert keep_apart(better, apart) == better


def reorder(hub: Hub, members: list[FakePeer], step: int) -> tuple[int, ...]:
    epoch = members[0].got(Hold).epoch
    assert all(peer.last(ViewPlan) is None for peer in members[1:])
    for peer in members:
        peer.say(HoldFrom(epoch, step))
    told = members[0].got(Activate)
    assert (told.step, told.name) == (step, "")
    for peer in members:
        peer.switch(epoch, step)
    return tuple(m.incarnation for m in told.members)


def test_members_change_places_at_a_step_and_nothing_is_aborted() -> None:
    hub = Hub()
    members = hub.members(4)
    hub.machine._core.apart = frozenset({(1, 2)})
    members[0].beat()
    order = reorder(hub, members, 6)
    assert (1, 2) not in neighbours(order)
    assert all(peer.last(Flush) is None and peer.last(Install) is None for peer in members)
    members[0].beat()
    assert members[0].last(Hold) is None  # nothing is left to be made better
    joiner = hub.learner()
    joiner.say(AtEntry("step", 0))
    assert tuple(m.incarnation for m in joiner.got(ViewPlan).members[:4]) == order


def test_a_failure_while_members_change_places_is_judged_by_both_orders() -> None:
    hub = Hub()
    members = [a, b, c, d] = hub.members(4)
    hub.machine._core.apart = frozenset({(1, 2)})
    a.beat()
    epoch = a.got(Hold).epoch
    for peer in members:
        peer.say(HoldFrom(epoch, 6))
    a.switch(epoch, 6)
    hub.kill(d)
    for peer in (a, b, c):
        peer.report(watermark=6)
    assert [m.incarnation for m in a.install().members] == [1, 2, 3]
    assert a.last(World) is None or a.got(World).members == 3
