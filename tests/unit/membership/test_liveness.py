"""How deaths, silences and the coordinator's own pauses are told apart."""

from __future__ import annotations

from pccl.base.config import LAN, WAN
from pccl.membership.events import Dialled, Paused, ProbeListener
from pccl.membership.messages import Evicted, Install, Leaving
from pccl.transport.native_frames import Flush
from tests.unit.membership.hub import Hub


def test_a_lost_connection_and_a_refused_dial_start_the_flush_at_once() -> None:
    for lost_first in ("agent", "native"):
        hub = Hub()
        a, b = hub.members(2)
        b.lose(**{lost_first: True})
        assert hub.probes(b) == 1 and a.last(Flush) is None
        b.lose(native=True)  # the kernel closes both at once; which one is seen first is chance
        hub.dead(b)
        assert a.last(Flush) is not None
        a.report()
        install = a.got(Install)
        assert install.lost == (b.peer_id,) and len(install.members) == 1
        b.lose(agent=True)  # the other connection's end changes nothing
        assert a.last(Install) is None


def test_a_refused_dial_proves_nothing_while_native_heartbeats_come() -> None:
    hub = Hub()
    a, b = hub.members(2)
    b.lose(agent=True)
    hub.dead(b)  # a filter between the two, or an agent that is late with its listener
    for _ in range(4):
        hub.pass_time(0.1, beating=[a, b])
        assert a.last(Flush) is None
    assert hub.probes(b) > 1  # it is dialled again
    hub.dead(b)
    b.hello()
    hub.pass_time(5.0, beating=[a, b])
    assert a.last(Flush) is None and b.last(Evicted) is None


def test_a_refused_dial_is_believed_once_two_heartbeats_are_missing() -> None:
    hub = Hub()
    a, b = hub.members(2)
    b.lose(agent=True)
    hub.dead(b)
    hub.pass_time(2 * LAN.heartbeat_s + 0.01, beating=[a])
    assert a.last(Flush) is None
    hub.dead(b)
    assert a.last(Flush) is not None


def test_a_kill_is_proven_by_the_first_dial_whichever_end_is_seen_first() -> None:
    hub = Hub()
    a, b = hub.members(2)
    b.lose(agent=True)
    hub.dead(b)  # the dial was quicker than the native connection's end
    b.lose(native=True)
    assert hub.probes(b) == 2  # no wait before the next
    hub.dead(b)
    assert a.last(Flush) is not None


def test_a_dial_that_is_accepted_proves_nothing_and_is_tried_again_at_once() -> None:
    hub = Hub()
    a, b = hub.members(2)
    b.lose(agent=True)
    b.lose(native=True)
    assert hub.probes(b) == 1
    hub.handle(Dialled(b.peer_id, b.incarnation, alive=True))
    assert hub.probes(b) == 2  # the second loss is news
    hub.handle(Dialled(b.peer_id, b.incarnation, alive=True))
    assert hub.machine.deadline_s is not None and hub.machine.deadline_s <= hub.now_s + 0.011
    hub.pass_time(0.011, beating=[a])
    assert hub.probes(b) == 3
    hub.dead(b)
    assert a.last(Flush) is not None


def test_a_dial_that_probes_takes_as_long_as_the_profile_allows() -> None:
    for profile, timeout_s in ((LAN, 1.0), (WAN, 3.0)):
        hub = Hub(profile=profile)
        (a,) = hub.members(1)
        a.lose(agent=True)
        assert [e.timeout_s for e in hub.effects if isinstance(e, ProbeListener)] == [timeout_s]


def test_a_peer_that_re_attaches_is_not_suspect_any_more() -> None:
    hub = Hub()
    a, b = hub.members(2)
    b.lose(agent=True)
    b.hello()
    hub.dead(b)  # a dial from before that was refused must not count against it
    hub.pass_time(5.0, beating=[a, b])
    assert a.last(Flush) is None and b.last(Evicted) is None


def test_python_may_be_silent_as_long_as_the_native_thread_beats() -> None:
    hub = Hub()
    a, b = hub.members(2)
    hub.pass_time(60.0, beating=[a, b])
    assert a.last(Flush) is None


def test_a_lease_ends_membership_without_waiting_for_the_silent_peer() -> None:
    hub = Hub()
    a, b, c = hub.members(3)
    hub.pass_time(2.75, beating=[a, b])
    assert a.last(Flush) is None
    hub.pass_time(0.5, beating=[a, b])
    a.report()
    b.report()
    assert a.got(Install).lost == (c.peer_id,)
    assert c.last(Evicted) is not None


def test_a_silent_peer_that_speaks_before_the_decision_stays() -> None:
    hub = Hub()
    a, b, c = hub.members(3)
    hub.pass_time(3.25, beating=[a, b])
    a.report()
    c.beat()
    c.report()
    b.report()
    assert a.got(Install).lost == ()


def test_a_pause_of_the_coordinator_evicts_nobody() -> None:
    hub = Hub()
    a, b = hub.members(2)
    hub.now_s += 30.0
    hub.handle(Paused(30.0))
    hub.pass_time(1.0, beating=[a, b])
    assert a.last(Flush) is None and b.last(Flush) is None


def test_a_long_pause_in_which_all_connections_died_evicts_nobody() -> None:
    for with_flush in (False, True):
        hub = Hub()
        *members, late = hub.members(4)
        if with_flush:
            late.say(Leaving("enough", 0))  # the flush is on when the machine stops
            late = members.pop()
        hub.pause(12.0)
        for peer in (*members, late):
            peer.lose(agent=True, native=True)
            hub.handle(Dialled(peer.peer_id, peer.incarnation, alive=True))
            peer.inbox.clear()
        for peer in members:
            peer.hello()
            peer.native_hello()
            if with_flush:
                peer.report()
        hub.pass_time(5.0, beating=members)  # its next try is seconds away
        assert late.last(Evicted) is None
        if not with_flush:
            assert members[0].last(Flush) is None
        late.hello()
        late.native_hello()
        if with_flush:
            late.report()
            assert len(members[0].got(Install).members) == 3
        hub.pass_time(20.0, beating=[*members, late])
        assert late.last(Evicted) is None


def test_a_peer_without_its_member_agent_is_given_up_after_the_grace() -> None:
    hub = Hub(detached_grace_s=10.0)
    a, b = hub.members(2)
    b.lose(agent=True)
    hub.handle(Dialled(b.peer_id, b.incarnation, alive=True))
    hub.pass_time(9.5, beating=[a, b])
    assert a.last(Flush) is None
    hub.pass_time(1.0, beating=[a, b])
    a.report()
    assert a.got(Install).lost == (b.peer_id,)


def test_three_of_four_that_die_at_once_leave_one_that_waits_for_min_world() -> None:
    hub = Hub(min_world=2)
    survivor, *victims = hub.members(4)
    for victim in victims:
        victim.lose(agent=True, native=True)
    for victim in victims:
        hub.dead(victim)
    survivor.report()
    install = survivor.got(Install)
    assert install.paused and install.lost == tuple(v.peer_id for v in victims)


def test_a_member_that_dies_during_the_flush_is_not_waited_for() -> None:
    hub = Hub()
    a, b, c, d = hub.members(4)
    hub.kill(d)
    a.report()
    b.report()
    assert a.last(Install) is None
    hub.kill(c)
    assert a.got(Install).lost == (c.peer_id, d.peer_id)


def test_a_learner_that_dies_costs_the_members_nothing() -> None:
    hub = Hub()
    (a,) = hub.members(1)
    learner = hub.learner()
    learner.lose(agent=True, native=True)
    hub.dead(learner)
    assert a.last(Flush) is None


def test_a_newcomers_lease_begins_when_it_has_heard_that_it_is_admitted() -> None:
    hub = Hub()
    (a,) = hub.members(1)
    newcomer = hub.peer()
    newcomer.hello()  # the answer waits for a slow disk
    hub.pass_time(2 * LAN.lease_s, beating=[a])
    newcomer.native_hello()
    assert newcomer.last(Evicted) is None
    hub.pass_time(LAN.lease_s + 0.5, beating=[a])
    assert newcomer.last(Evicted) is not None
