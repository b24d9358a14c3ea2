"""Hellos from anybody, and from many: they keep no peer out, and take no place."""

from __future__ import annotations

from pccl.base.config import LAN
from pccl.membership.events import Dialled
from pccl.membership.liveness import UNPROVEN_GRACE_S
from pccl.membership.messages import REFUSALS_FOR_NOW, Admitted, Evicted, Refused, World
from pccl.membership.peer import ENGINE_DUE_S
from pccl.transport.native_frames import Flush, Welcome
from tests.unit.membership.hub import Hub


def test_a_living_peer_cannot_be_displaced_by_one_that_takes_its_id() -> None:
    hub = Hub()
    (victim,) = hub.members(1)
    thief = hub.peer()
    thief.peer_id = victim.peer_id
    thief.hello(incarnation=0)
    refused = thief.got(Refused)
    assert refused.code == "namesake" and refused.code in REFUSALS_FOR_NOW
    assert victim.last(Evicted) is None


def test_a_peer_that_restarts_under_its_identity_gets_in_when_its_last_life_has_ended() -> None:
    hub = Hub()
    (before,) = hub.members(1)
    after = hub.peer()
    after.peer_id = before.peer_id
    after.hello(incarnation=0)
    assert after.got(Refused).code == "namesake"
    before.lose(agent=True, native=True)
    hub.dead(before)
    after.hello(incarnation=0)
    assert after.got(Admitted).incarnation > before.incarnation


def test_a_peer_that_restarts_together_with_the_coordinator_gets_in_by_one_probe() -> None:
    hub = Hub()
    before, other = hub.members(2)
    hub.start()
    other.hello()
    other.native_hello()
    hub.pass_time(4.0, beating=[other])
    hub.dead(before)
    after = hub.peer()
    after.peer_id = before.peer_id
    after.hello(incarnation=0)
    assert after.got(Admitted).incarnation > before.incarnation


def test_a_namesake_is_faster_than_a_member_after_a_restart_and_takes_nothing() -> None:
    hub = Hub()
    member, other = hub.members(2)
    hub.start()
    thief = hub.peer()
    thief.peer_id = member.peer_id
    other.inbox.clear()
    for _ in range(2):  # before the member is back, and while its native connection blips
        thief.hello(incarnation=0)
        assert thief.got(Refused).code == "namesake"
        hub.handle(Dialled(member.peer_id, member.incarnation, alive=True))
        for peer in (member, other):
            peer.hello()
            peer.native_hello()
        hub.pass_time(5.0, beating=[member, other])
        member.lose(native=True)
    assert other.last(Flush) is None and member.last(Evicted) is None


def test_a_namesake_has_a_member_dialled_whose_connections_are_away() -> None:
    hub = Hub()
    member, other = hub.members(2)
    member.lose(agent=True)
    hub.handle(Dialled(member.peer_id, member.incarnation, alive=True))
    hub.pass_time(LAN.suspect_grace_s + 0.5, beating=[member, other])  # the doubt is over
    asked = hub.probes(member)
    thief = hub.peer()
    thief.peer_id = member.peer_id
    for _ in range(3):
        thief.hello(incarnation=0)
        assert thief.got(Refused).code == "namesake"
    assert hub.probes(member) == asked + 1


def test_a_namesake_whose_lease_has_ended_makes_way() -> None:
    hub = Hub()
    before, other = hub.members(2)
    hub.pass_time(LAN.lease_s + 0.5, beating=[other])
    after = hub.peer()
    after.peer_id = before.peer_id
    after.hello(incarnation=0)
    assert after.got(Admitted).incarnation > before.incarnation


def test_strangers_that_only_say_hello_leave_room_for_peers_of_other_hosts() -> None:
    hub = Hub(unproven_per_host_max=3)
    for _ in range(3):
        hub.peer().hello()
    one_more = hub.peer()
    one_more.hello()
    refused = one_more.got(Refused)
    assert refused.code == "crowded" and refused.code in REFUSALS_FOR_NOW
    hub.host = "10.0.0.10"
    elsewhere = hub.peer()
    elsewhere.hello()
    assert elsewhere.last(Admitted) is not None


def test_all_strangers_together_leave_room_too_and_a_refusal_costs_no_write() -> None:
    hub = Hub(unproven_max=6, unproven_per_host_max=3)
    for number in range(6):
        hub.host = f"10.0.{number % 3}.1"
        hub.peer().hello()
    hub.host = "10.0.9.1"
    written = hub.machine._core.tokens
    one_more = hub.peer()
    one_more.hello()
    assert one_more.got(Refused).code == "crowded"
    assert hub.machine._core.tokens == written


def test_newcomers_whose_engines_come_are_no_crowd() -> None:
    hub = Hub(unproven_max=2, unproven_per_host_max=2)
    for _ in range(8):
        hub.learner()
    late = hub.peer()
    late.hello()
    assert late.last(Admitted) is not None


def test_a_run_that_strangers_fill_refuses_nobody_for_good() -> None:
    hub = Hub(admitted_max=4)
    hub.members(2)
    for _ in range(2):
        hub.peer().hello()
    late = hub.peer()
    late.hello()
    assert late.got(Refused).code == "crowded"
    hub.pass_time(hub.machine._core.config.detached_grace_s + 1)  # strangers go
    late.hello()
    assert late.last(Admitted) is not None


def test_strangers_that_have_hung_up_make_room_at_once_and_are_not_dialled() -> None:
    hub = Hub(unproven_per_host_max=3)
    for _ in range(9):
        stranger = hub.peer()
        stranger.hello()
        assert stranger.last(Admitted) is not None
        stranger.lose(agent=True)
        assert not hub.probes(stranger)
    assert len(hub.machine._core.peers) == 3
    hub.pass_time(UNPROVEN_GRACE_S + 0.5)
    assert not hub.machine._core.peers


def test_a_newcomer_may_lose_its_connection_before_its_engine_has_come() -> None:
    hub = Hub()
    newcomer = hub.peer()
    newcomer.hello()
    newcomer.lose(agent=True)
    newcomer.native_hello()
    assert newcomer.last(Welcome) is not None
    newcomer.hello(run_id=hub.machine.run_id)
    hub.pass_time(UNPROVEN_GRACE_S + 0.5, beating=[newcomer])
    assert newcomer.last(Evicted) is None and newcomer.got(World).admitted == 1


def test_where_strangers_crowd_the_oldest_of_the_fullest_host_makes_room_after_a_while() -> None:
    hub = Hub(unproven_max=5, unproven_per_host_max=4)
    lone = hub.peer()
    lone.hello()
    hub.host = "10.0.0.10"
    strangers = [hub.peer() for _ in range(4)]
    for stranger in strangers:
        stranger.hello()
    late = hub.peer()
    for host in ("10.0.0.10", "10.0.0.11"):  # the host is full, and so are all together
        hub.host = host
        late.hello()
        assert late.got(Refused).code == "crowded"
    hub.pass_time(ENGINE_DUE_S)
    late.hello()
    assert late.last(Admitted) is not None
    hub.host = "10.0.0.10"
    hub.peer().hello()
    gone = [p.last(Evicted) is not None for p in (lone, *strangers)]
    assert gone == [False, True, True, False, False]


def test_who_has_only_said_hello_is_not_counted_and_nobody_is_told_of_it() -> None:
    hub = Hub()
    (member,) = hub.members(1)
    member.inbox.clear()
    stranger, newcomer = hub.peer(), hub.peer()
    stranger.hello()
    newcomer.hello()
    assert newcomer.got(Admitted).members == 2  # the member, and itself
    assert stranger.last(World) is None and member.last(World) is None
    newcomer.native_hello()
    assert member.got(World) == newcomer.got(World) == World(2, 1, 1, min_world=1)
    assert stranger.last(World) is None
