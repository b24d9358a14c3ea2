"""Ranks by seat: what programs of a fixed world count on."""

from __future__ import annotations

from pccl.membership.messages import AtEntry, Hold, LinksUp, ViewPlan
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
