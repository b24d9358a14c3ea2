"""Most members fall silent at once: then the coordinator doubts its own network first."""

from __future__ import annotations

from collections.abc import Sequence

from pccl.membership.events import Log
from pccl.membership.messages import Evicted, Install
from pccl.transport.native_frames import Flush, Suspect, SuspectCode
from tests.unit.membership.hub import FakePeer, Hub

GRACE_S = 30.0


def answer(peers: Sequence[FakePeer]) -> None:
    for peer in peers:
        peer.report()


def shrinks_after_s(hub: Hub, heard: Sequence[FakePeer]) -> float:
    """Returns when a view is installed while only these are heard."""
    began_s = hub.now_s
    asked: set[int] = set()
    while heard[0].last(Install) is None:
        hub.pass_time(0.25, beating=heard)
        for peer in heard:
            if peer.last(Flush) is not None and peer.incarnation not in asked:
                asked.add(peer.incarnation)
                peer.report()
        assert hub.now_s < began_s + 100.0
    return hub.now_s - began_s


def test_a_majority_that_falls_silent_at_once_is_waited_for() -> None:
    hub = Hub()
    a, b, *silent = hub.members(5)
    hub.pass_time(1.0, beating=[a, b, *silent])
    assert GRACE_S < shrinks_after_s(hub, [a, b]) < GRACE_S + 4.0
    assert len(a.got(Install).members) == 2


def test_it_is_also_waited_for_when_a_flush_was_on_before_its_leases_ended() -> None:
    hub = Hub()
    a, b, *silent = hub.members(5)
    hub.pass_time(1.0, beating=[a, b, *silent])
    a.tell(Suspect(1, 6, SuspectCode.DESCRIPTOR, (), "differs"))
    assert shrinks_after_s(hub, [a, b]) > GRACE_S


def test_a_majority_that_is_heard_again_stays_and_has_time_to_dial() -> None:
    hub = Hub()
    a, b, c, d, e = everybody = hub.members(5)
    hub.pass_time(1.0, beating=everybody)
    hub.pass_time(5.0, beating=[a, b])
    answer([a, b])
    hub.pass_time(10.0, beating=[a, b])
    hub.pass_time(0.25, beating=[a, b, c])  # two of five are silent
    answer([c])
    hub.pass_time(3.0, beating=[a, b, c])
    assert a.last(Install) is None
    hub.pass_time(0.25, beating=everybody)
    answer([d, e])
    assert len(a.got(Install).members) == 5


def test_who_does_not_come_back_with_the_others_is_left_out_soon() -> None:
    hub = Hub()
    a, b, c, d, e = everybody = hub.members(5)
    hub.pass_time(1.0, beating=everybody)
    hub.pass_time(5.0, beating=[a, b])
    answer([a, b])
    hub.pass_time(0.25, beating=[a, b, c])
    answer([c])
    hub.pass_time(4.25, beating=[a, b, c])
    assert a.got(Install).lost == (d.peer_id, e.peer_id)


def test_who_is_heard_after_the_grace_does_not_hurry_the_others() -> None:
    hub = Hub()
    a, b, c = hub.members(3)
    hub.pass_time(GRACE_S + 10.0)
    a.beat()
    a.report()
    assert a.last(Install) is None
    for peer in (b, c):
        peer.beat()
        peer.report()
    assert len(a.got(Install).members) == 3


def test_half_of_the_members_are_no_majority() -> None:
    for size in (2, 4):
        hub = Hub()
        members = hub.members(size)
        hub.pass_time(1.0, beating=members)
        assert shrinks_after_s(hub, members[: size // 2]) < 4.0


def test_members_that_are_proven_dead_are_not_waited_for() -> None:
    hub = Hub()
    a, b, *dead = everybody = hub.members(5)
    hub.pass_time(1.0, beating=everybody)
    hub.pass_time(5.0, beating=[a, b])
    answer([a, b])
    for peer in dead:
        assert a.last(Install) is None
        hub.kill(peer)
    assert len(a.got(Install).members) == 2


def test_a_restart_of_the_coordinator_has_its_own_window_and_no_other() -> None:
    hub = Hub()
    a, b, *_ = hub.members(5)
    hub.start()
    for peer in (a, b):
        peer.inbox.clear()
        peer.hello()
        peer.native_hello()
    window_s = hub.config.profile.reattach_window_s
    assert shrinks_after_s(hub, [a, b]) <= window_s + hub.config.profile.flush_timeout_s + 0.25
    assert all(peer.last(Evicted) is None for peer in (a, b))


def test_a_step_past_its_deadline_ends_the_wait_before_its_members_give_up() -> None:
    hub = Hub()
    a, b, *silent = hub.members(5)
    hub.pass_time(1.0, beating=[a, b, *silent])
    hub.pass_time(6.0, beating=[a, b])
    answer([a, b])
    a.tell(Suspect(1, 6, SuspectCode.DEADLINE, (), "late"))
    profile = hub.config.profile
    hub.pass_time(profile.reattach_window_s - 0.25, beating=[a, b])
    assert a.last(Install) is None
    hub.pass_time(0.5, beating=[a, b])
    assert a.last(Install) is not None


def test_people_and_the_log_are_told_why_it_waits() -> None:
    hub = Hub()
    a, b, *silent = hub.members(5)
    hub.pass_time(1.0, beating=[a, b, *silent])
    hub.pass_time(4.0, beating=[a, b])
    answer([a, b])
    hub.pass_time(2.0, beating=[a, b])
    assert "3 of 5 members are silent at once" in hub.status()["flush"]["held"]
    logs = [e.text for e in hub.effects if isinstance(e, Log) and e.level == "warning"]
    assert sum("own network" in text for text in logs) == 1
    hub.pass_time(GRACE_S, beating=[a, b])
    assert hub.status()["flush"]["held"] is None
