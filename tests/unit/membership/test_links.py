"""A link that breaks between two living peers: mended through a third, blamed only at the end."""

from __future__ import annotations

from collections.abc import Sequence

from pccl.membership.core import CoordinatorConfig
from pccl.membership.events import Effect, SendNative
from pccl.membership.messages import Install
from pccl.transport.native_frames import Flush, Routes, Suspect, SuspectCode
from tests.unit.membership.hub import FakePeer, Hub

ROUTE_S = CoordinatorConfig().profile.route_timeout_s


def broken(*pairs: tuple[FakePeer, FakePeer]) -> None:
    """From now on both ends of these pairs report each other."""
    for one, other in pairs:
        for end, far in ((one, other), (other, one)):
            end.status["down"] = (*end.status.get("down", ()), far.peer_id)


def via(peer: FakePeer) -> dict[bytes, bytes]:
    """The newest table of routes that a peer was told."""
    table = peer.last(Routes)
    return {} if table is None else {route.peer: route.via for route in table.routes}


def lost(hub: Hub, peers: Sequence[FakePeer]) -> tuple[bytes, ...]:
    """Who is left out of the flush that the coordinator has begun."""
    assert peers[0].last(Flush) is not None
    for peer in peers:
        peer.status = {}
        peer.report()
    return peers[0].got(Install).lost


def tables(effects: Sequence[Effect]) -> int:
    return sum(isinstance(e, SendNative) and isinstance(e.frame, Routes) for e in effects)


def test_a_broken_link_is_led_through_a_third_and_costs_no_flush() -> None:
    hub = Hub()
    a, b, c = everybody = hub.members(3)
    hub.pass_time(1.25, beating=everybody)
    broken((b, c))
    hub.pass_time(0.75, beating=everybody)
    assert a.last(Routes) is None and b.last(Routes) is None  # the ends still dial
    hub.pass_time(0.75, beating=everybody)
    assert via(b) == {c.peer_id: a.peer_id} and via(c) == {b.peer_id: a.peer_id}
    b.relayed_by(c)
    c.relayed_by(b)
    hub.pass_time(120.0, beating=everybody)
    assert a.last(Flush) is None and a.last(Routes) is None


def test_a_table_is_told_again_until_it_is_in_force() -> None:
    hub = Hub()
    a, b, c = everybody = hub.members(3)
    broken((b, c))
    hub.pass_time(2.5, beating=everybody)
    b.inbox.clear()
    b.beat()
    assert via(b) == {c.peer_id: a.peer_id}
    b.relayed_by(c)
    b.inbox.clear()
    b.beat()
    assert b.last(Routes) is None


def test_a_relay_that_does_not_help_is_replaced_by_another() -> None:
    hub = Hub()
    a, b, c, d = everybody = hub.members(4)
    broken((c, d))
    hub.pass_time(2.25, beating=everybody)
    assert via(c) == {d.peer_id: a.peer_id}
    hub.pass_time(ROUTE_S + 0.25, beating=everybody)
    assert via(c)[d.peer_id] == via(d)[c.peer_id] == b.peer_id and a.last(Flush) is None
    hub.pass_time(ROUTE_S + 0.25, beating=everybody)
    assert lost(hub, [a, b, c]) == (d.peer_id,)


def test_the_least_loaded_member_relays() -> None:
    hub = Hub()
    a, b, c, d, *_ = everybody = hub.members(6)
    broken((a, b), (c, d))
    hub.pass_time(2.25, beating=everybody)
    assert via(a)[b.peer_id] != via(c)[d.peer_id]


def test_a_relay_that_dies_is_replaced_at_once() -> None:
    hub = Hub()
    a, b, c, d = hub.members(4)
    broken((c, d))
    hub.pass_time(2.25, beating=[a, b, c, d])
    assert via(c) == {d.peer_id: a.peer_id}
    c.relayed_by(d)
    d.relayed_by(c)
    hub.kill(a)
    for peer in (b, c, d):
        peer.report()
    for peer in (b, c, d):
        assert peer.install().lost == (a.peer_id,)
    broken((c, d))
    hub.pass_time(1.5, beating=[b, c, d])
    assert via(c) == {d.peer_id: b.peer_id} and b.last(Flush) is None


def test_a_link_that_works_directly_again_gives_its_relay_up() -> None:
    hub = Hub()
    _, b, c = everybody = hub.members(3)
    broken((b, c))
    hub.pass_time(2.25, beating=everybody)
    b.relayed_by(c)
    c.relayed_by(b)
    hub.pass_time(10.0, beating=everybody)
    b.status = c.status = {}
    hub.pass_time(1.0, beating=everybody)
    assert b.got(Routes).routes == () and c.got(Routes).routes == ()
    assert hub.status()["links"] == [{"between": "02020202.2 - 03030303.3", "state": "watched"}]
    broken((b, c))
    hub.pass_time(0.25, beating=everybody)
    assert len(via(b)) == 1  # it is not trusted any more: no second settling
    assert hub.status()["links"][0]["via"] == "01010101.1"


def test_a_liar_who_accuses_many_is_the_one_to_go_even_if_it_came_first() -> None:
    hub = Hub()
    liar, b, c, d = everybody = hub.members(4)
    liar.status["down"] = tuple(p.peer_id for p in (b, c, d))
    hub.pass_time(8.0, beating=everybody)
    assert lost(hub, [b, c, d]) == (liar.peer_id,)


def test_one_false_accusation_in_a_large_enough_world_costs_the_accuser() -> None:
    hub = Hub()
    a, b, c = everybody = hub.members(3)
    a.status["down"] = (b.peer_id,)
    hub.pass_time(8.0, beating=everybody)
    assert lost(hub, [b, c]) == (a.peer_id,)


def test_a_peer_whose_every_link_is_broken_goes_alone() -> None:
    hub = Hub()
    a, b, c, d = everybody = hub.members(4)
    broken((b, a), (b, c), (b, d))
    hub.pass_time(5.5, beating=everybody)
    assert lost(hub, [a, c, d]) == (b.peer_id,)


def test_of_two_members_without_a_link_the_younger_goes() -> None:
    hub = Hub()
    a, b = everybody = hub.members(2)
    broken((a, b))
    hub.pass_time(1.0 + ROUTE_S, beating=everybody)
    assert a.last(Flush) is None  # dialling again may help
    hub.pass_time(1.0, beating=everybody)
    assert lost(hub, [a]) == (b.peer_id,)


def test_links_of_a_peer_that_is_silent_are_not_judged() -> None:
    hub = Hub(profile=CoordinatorConfig().profile)
    a, b, c, d = hub.members(4)
    for peer in (a, b, c):
        peer.status["down"] = (d.peer_id,)
    hub.effects.clear()
    hub.pass_time(2.75, beating=[a, b, c])  # d says nothing any more
    assert tables(hub.effects) == 0 and a.last(Flush) is None
    hub.pass_time(0.5, beating=[a, b, c])
    assert lost(hub, [a, b, c]) == (d.peer_id,)  # by its lease


def test_a_pause_of_the_coordinator_breaks_no_link() -> None:
    hub = Hub()
    a, b = everybody = hub.members(2)
    broken((a, b))
    hub.pass_time(2.0, beating=everybody)
    hub.pause(30.0)
    hub.pass_time(1.0, beating=everybody)
    assert a.last(Flush) is None


def test_a_suspect_frame_counts_like_a_heartbeat_that_says_down() -> None:
    hub = Hub()
    a, b, c = everybody = hub.members(3)
    hub.pass_time(1.25, beating=everybody)
    b.tell(Suspect(1, 0, SuspectCode.LINK_DOWN, (c.peer_id,), ""))
    b.status["down"] = (c.peer_id,)
    hub.pass_time(1.25, beating=everybody)
    assert via(b) == {c.peer_id: a.peer_id}
