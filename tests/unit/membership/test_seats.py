"""Ranks by seat: what programs of a fixed world count on."""

from __future__ import annotations

import pytest

from pccl.membership import choosing
from pccl.membership.messages import AtEntry, Hold, LinksUp, ViewPlan, World
from tests.unit.membership.hub import FakePeer, Hub


def enter(peers: list[FakePeer]) -> tuple[bytes, ...]:
    """Takes learners into the first view; returns its members in rank order."""
    for peer in peers:
        peer.say(AtEntry("step", 0))
    for peer in peers:
        peer.say(LinksUp(peer.got(ViewPlan).epoch))
    views = [tuple(m.peer_id for m in peer.install().members) for peer in peers]
    assert len(set(views)) == 1
    return views[0]


def test_members_are_ranked_by_seat_and_those_without_one_come_after_them() -> None:
    hub = Hub()
    c, b, none, a = everybody = [hub.learner(seat=s) for s in (3, 2, 0, 1)]
    assert enter(everybody) == (a.peer_id, b.peer_id, c.peer_id, none.peer_id)


def test_who_comes_again_takes_its_seat_again_also_after_the_coordinator() -> None:
    hub = Hub()
    c, a, b = everybody = [hub.learner(seat=s) for s in (3, 1, 2)]
    enter(everybody)
    hub.kill(a)
    for peer in (b, c):
        peer.report()
    for peer in (b, c):
        peer.install()
    hub.start()
    for peer in (b, c):
        peer.hello(seat=0)  # what the journal says is what counts
        peer.native_hello()
        peer.beat()
    hub.pass_time(2.0, beating=(b, c))
    again = hub.learner(seat=1)
    again.say(AtEntry("step", 0))
    assert [m.peer_id for m in again.got(ViewPlan).members] == [
        again.peer_id,
        b.peer_id,
        c.peer_id,
    ]


def test_seated_members_change_no_places_for_the_sake_of_a_link() -> None:
    hub = Hub()
    everybody = [hub.learner(seat=s) for s in (1, 2, 3, 4)]
    enter(everybody)
    hub.machine._core.apart = frozenset({(1, 2)})
    for peer in everybody:
        peer.inbox.clear()
        peer.beat()
    hub.pass_time(1.0, beating=everybody)
    assert all(peer.last(Hold) is None for peer in everybody)


def two_groups(hub: Hub) -> list[FakePeer]:
    """A run of two replicas, each of a part of group 0 and one of group 1."""
    everybody = [hub.learner(seat=s, group=g) for s in (1, 2) for g in (0, 1)]
    enter(everybody)
    return everybody


def test_parts_of_a_replica_come_in_together_and_not_before() -> None:
    hub = Hub()
    members = two_groups(hub)
    first, second = hub.learner(seat=3, group=0), hub.learner(seat=3, group=1)
    first.say(AtEntry("step", 0))
    second.say(AtEntry("another", 0))
    hub.pass_time(0.5, beating=members)
    assert first.last(ViewPlan) is None
    waits = first.got(World).waits
    assert waits == (
        "waits at 'step' for the other parts of its replica (seat=2), which are not there: "
        "peer group 1"
    )
    second.say(AtEntry("step", 0))
    planned = first.got(ViewPlan).members
    assert {first.peer_id, second.peer_id} < {m.peer_id for m in planned}
    assert second.got(ViewPlan).members == planned


def test_parts_of_different_replicas_are_not_taken_for_one() -> None:
    hub = Hub()
    members = two_groups(hub)
    first, second = hub.learner(seat=3, group=0), hub.learner(seat=4, group=1)
    for peer in (first, second):
        peer.say(AtEntry("step", 0))
    hub.pass_time(0.5, beating=members)
    assert first.last(ViewPlan) is None and second.last(ViewPlan) is None


def test_without_a_seat_newcomers_of_several_groups_come_in_one_by_one() -> None:
    hub = Hub()
    two_groups(hub)
    newcomer = hub.learner(group=1)
    newcomer.say(AtEntry("step", 0))
    assert newcomer.peer_id in {m.peer_id for m in newcomer.got(ViewPlan).members}


def test_a_seat_in_a_run_of_one_group_waits_for_nobody() -> None:
    hub = Hub()
    enter([hub.learner(seat=s) for s in (1, 2)])
    newcomer = hub.learner(seat=3)
    newcomer.say(AtEntry("step", 0))
    assert newcomer.peer_id in {m.peer_id for m in newcomer.got(ViewPlan).members}


def test_a_run_with_room_for_one_part_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "MEMBERS_MAX", 5)
    hub = Hub()
    two_groups(hub)
    parts = [hub.learner(seat=3, group=g) for g in (0, 1)]
    for peer in parts:
        peer.say(AtEntry("step", 0))
    assert all(peer.last(ViewPlan) is None for peer in parts)
