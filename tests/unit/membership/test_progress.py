"""Who holds up a step: culprits of stalls, stragglers, and everybody who is neither."""

from __future__ import annotations

from typing import Any

from pccl.base.config import WAN
from pccl.membership.messages import Excluded, Install
from pccl.transport.native_frames import (
    NO_STEP,
    Flush,
    Routes,
    Suspect,
    SuspectCode,
    Waiting,
    WaitKind,
    WaitOn,
)
from tests.unit.membership.hub import FakePeer, Hub

POST, DATA, CREDIT = WaitKind.POST, WaitKind.DATA, WaitKind.CREDIT


def waits(peer: FakePeer, kind: WaitKind, *others: FakePeer, step: int = 5, **more: Any) -> None:
    """From now on the peer's heartbeats say so."""
    named = tuple(WaitOn(other.peer_id, kind) for other in others)
    peer.status = {"step": step, "waiting": Waiting.PEERS, "waits": named, **more}


def computes(peer: FakePeer, step: int = 5) -> None:
    """Its program is in the step and has not come to its end."""
    peer.status = {"step": step, "waiting": Waiting.PROGRAM, "waits": ()}


def lost(peers: list[FakePeer]) -> tuple[bytes, ...]:
    assert peers[0].last(Flush) is not None
    for peer in peers:
        peer.status = {}
        peer.report()
    return peers[0].got(Install).lost


def test_the_one_that_all_wait_for_and_that_waits_for_nobody_is_flushed_out() -> None:
    hub = Hub()
    a, b, c = everybody = hub.members(3)
    waits(a, DATA, b, c)
    waits(b, DATA, a, c)
    waits(c, DATA)  # no one holds it up
    hub.pass_time(5.0, beating=everybody)
    assert a.last(Flush) is None
    hub.pass_time(0.75, beating=everybody)
    assert lost([a, b]) == (c.peer_id,)


def test_a_chain_of_waits_leads_to_the_one_at_its_end() -> None:
    hub = Hub()
    a, b, c, d = everybody = hub.members(4)
    waits(a, DATA, b)
    waits(b, CREDIT, c)
    waits(c, DATA, d)
    waits(d, DATA)
    hub.pass_time(5.75, beating=everybody)
    assert lost([a, b, c]) == (d.peer_id,)


def test_a_big_tensor_on_a_slow_link_is_no_stall() -> None:
    hub = Hub()
    a, b, c = everybody = hub.members(3)
    for beat in range(240):
        waits(a, DATA, b, c)
        waits(b, CREDIT, a, progress=1000 * (beat // 8))  # something moves every two seconds
        waits(c, DATA, b)
        hub.pass_time(0.25, beating=everybody)
    assert a.last(Flush) is None


def test_a_step_that_all_wait_in_and_nobody_holds_up_is_run_again_with_everybody() -> None:
    hub = Hub()
    a, b, c = everybody = hub.members(3)
    waits(a, DATA, b, c)
    waits(b, DATA, a, c)
    waits(c, DATA, a, b)
    hub.pass_time(9.75, beating=everybody)
    assert a.last(Flush) is None
    hub.pass_time(1.0, beating=everybody)
    assert lost([a, b, c]) == ()


def test_the_one_that_all_wait_for_is_flushed_out_when_the_step_was_run_again_in_vain() -> None:
    hub = Hub()
    a, b, c = everybody = hub.members(3)

    def stand_still() -> None:
        waits(a, DATA, b)  # all was sent to it, and the kernel took it: no bytes are queued
        waits(b, DATA, a, c)
        waits(c, DATA, b)

    stand_still()
    hub.pass_time(10.75, beating=everybody)
    assert lost(everybody) == ()
    stand_still()
    for peer in everybody:
        peer.inbox.clear()
    hub.pass_time(4.5, beating=everybody)
    assert a.last(Flush) is None
    hub.pass_time(1.25, beating=everybody)
    assert lost([a, c]) == (b.peer_id,)


def test_who_says_that_it_leaves_bytes_unread_is_flushed_out_after_one_patience() -> None:
    hub = Hub()
    a, b, c = everybody = hub.members(3)
    waits(a, DATA, b)  # a ring: who waits for whom names nobody
    waits(c, DATA, a)
    named = (WaitOn(c.peer_id, DATA), WaitOn(c.peer_id, WaitKind.UNREAD))
    b.status = {"step": 5, "waiting": Waiting.PEERS, "waits": named}
    hub.pass_time(4.75, beating=everybody)
    assert a.last(Flush) is None
    hub.pass_time(1.0, beating=everybody)
    assert lost([a, c]) == (b.peer_id,)


def deaf(peer: FakePeer, other: FakePeer) -> None:
    """It reads nothing of what the other has sent."""
    named = (WaitOn(other.peer_id, DATA), WaitOn(other.peer_id, WaitKind.UNREAD))
    peer.status = {"step": 5, "waiting": Waiting.PEERS, "waits": named}


def test_who_says_so_itself_is_flushed_out_also_if_most_do() -> None:
    hub = Hub()
    a, b, c = everybody = hub.members(3)
    waits(a, DATA, b)
    deaf(b, c)
    deaf(c, a)
    hub.pass_time(5.75, beating=everybody)
    assert set(lost([a])) == {b.peer_id, c.peer_id}


def test_if_all_say_that_they_read_nothing_nobody_is_flushed_out() -> None:
    hub = Hub()
    a, b, c = everybody = hub.members(3)
    for peer, other in ((a, b), (b, c), (c, a)):
        deaf(peer, other)
    hub.pass_time(7.0, beating=everybody)
    assert a.last(Flush) is None


def test_who_reads_nothing_stays_when_only_members_that_are_not_heard_would_be_left() -> None:
    hub = Hub(profile=WAN)
    a, b, c = hub.members(3)
    waits(a, DATA, b)
    deaf(b, c)
    deaf(c, a)
    hub.pass_time(1.0, beating=[a, b, c])
    hub.pass_time(8.75, beating=[b, c])
    hub.pass_time(0.75, beating=[a, b, c])
    assert b.last(Flush) is None


def test_who_has_unread_bytes_and_moves_is_only_slow() -> None:
    hub = Hub()
    a, b, c = everybody = hub.members(3)
    for beat in range(80):
        waits(a, DATA, b)
        waits(c, DATA, a)
        waits(b, WaitKind.UNREAD, c, progress=1000 * (beat // 8))
        hub.pass_time(0.25, beating=everybody)
    assert a.last(Flush) is None


def test_bytes_that_nobody_takes_are_led_around_before_anybody_is_blamed() -> None:
    hub = Hub()
    a, b, c = everybody = hub.members(3)
    waits(a, DATA, b, c)
    waits(b, CREDIT, c)
    waits(c, DATA, b)
    hub.pass_time(7.0, beating=everybody)
    table = b.got(Routes)
    assert [(route.peer, route.via) for route in table.routes] == [(c.peer_id, a.peer_id)]
    assert a.last(Flush) is None


def test_who_takes_no_bytes_and_sends_all_its_own_is_flushed_out_when_no_relay_helps() -> None:
    for count, seconds in ((2, 6.0), (3, 11.0)):
        hub = Hub()
        everybody = hub.members(count)
        stuck, *others = everybody  # the one that came first
        for peer in others:
            named = (WaitOn(stuck.peer_id, DATA), WaitOn(stuck.peer_id, CREDIT))
            peer.status = {"step": 5, "waiting": Waiting.PEERS, "waits": named}
        waits(stuck, DATA, *others)
        hub.pass_time(seconds, beating=everybody)
        assert lost(others) == (stuck.peer_id,)


def test_a_program_that_takes_its_time_is_no_stall() -> None:
    hub = Hub()
    a, b, c = everybody = hub.members(3)
    waits(a, DATA, b, c)
    waits(b, POST, c)
    computes(c)
    hub.pass_time(120.0, beating=everybody)
    assert a.last(Flush) is None


def test_more_culprits_than_half_are_nobody_s_fault() -> None:
    hub = Hub()
    a, b, c = everybody = hub.members(3)
    waits(a, DATA, b, c)
    waits(b, DATA)
    waits(c, DATA)
    hub.pass_time(8.0, beating=everybody)
    assert a.last(Flush) is None


def test_long_round_trips_make_everybody_patient() -> None:
    hub = Hub()
    a, b, c = everybody = hub.members(3)
    waits(a, DATA, c, rtt_us=600_000)
    waits(b, DATA, c)
    waits(c, DATA)
    hub.pass_time(11.75, beating=everybody)
    assert a.last(Flush) is None
    hub.pass_time(2.0, beating=everybody)
    assert lost([a, b]) == (c.peer_id,)


def test_a_peer_whose_own_clock_runs_late_gets_more_time() -> None:
    hub = Hub()
    a, b, c = everybody = hub.members(3)
    waits(a, DATA, c)
    waits(b, DATA, c)
    waits(c, DATA, lag_ms=200)
    hub.pass_time(8.5, beating=everybody)
    assert a.last(Flush) is None
    hub.pass_time(1.0, beating=everybody)
    assert lost([a, b]) == (c.peer_id,)


def test_a_stopped_peer_is_found_by_what_others_wait_for_before_a_long_lease_ends() -> None:
    hub = Hub(profile=WAN)
    a, b, c = hub.members(3)
    hub.pass_time(8.0, beating=[a, b, c])
    waits(a, DATA, c)
    waits(b, DATA, c)
    waits(c, DATA, a, b)
    hub.pass_time(1.0, beating=[a, b, c])
    hub.pass_time(10.5, beating=[a, b])
    assert a.last(Flush) is not None


def test_a_pause_of_the_coordinator_makes_no_culprit() -> None:
    hub = Hub(straggler_s=8.0)
    a, b, c = everybody = hub.members(3)
    waits(a, DATA, c)
    waits(b, POST, c)
    computes(c)
    hub.pass_time(3.0, beating=everybody)
    hub.pause(30.0)
    hub.pass_time(1.0, beating=everybody)
    assert a.last(Flush) is None


def test_a_straggler_is_excluded_after_the_time_that_the_run_allows() -> None:
    hub = Hub(straggler_s=8.0)
    a, b, c = everybody = hub.members(3)
    waits(a, POST, c)
    waits(b, POST, c)
    computes(c)
    hub.pass_time(8.0, beating=everybody)
    assert a.last(Flush) is None
    hub.pass_time(1.0, beating=everybody)
    assert lost([a, b, c]) == (c.peer_id,)


def test_who_asks_to_be_left_out_is_and_stays_admitted_as_long_as_it_is_not_needed() -> None:
    hub = Hub()
    *_, c = everybody = hub.members(3)
    c.tell(Suspect(1, 6, SuspectCode.EXCLUDED, (), "its state has not come"))
    assert lost(everybody) == (c.peer_id,)
    assert "its state has not come" in c.got(Excluded).text
    hub = Hub(min_world=3)
    a, _, c = hub.members(3)
    c.tell(Suspect(1, 6, SuspectCode.EXCLUDED, (), "its state has not come"))
    assert a.last(Flush) is None


def test_a_run_that_waits_for_stragglers_waits() -> None:
    for straggler_s in (0.0, -1.0):
        hub = Hub(straggler_s=straggler_s)
        a, b = everybody = hub.members(2)
        waits(a, POST, b)
        b.status = {"step": NO_STEP}
        hub.pass_time(300.0, beating=everybody)
        assert a.last(Flush) is None


def test_who_is_late_in_every_step_but_never_too_late_stays() -> None:
    hub = Hub(straggler_s=8.0)
    a, b = everybody = hub.members(2)
    for step in range(6):
        waits(a, POST, b, step=step, watermark=step)
        computes(b, step)
        hub.pass_time(6.0, beating=everybody)
    assert a.last(Flush) is None


def test_when_most_are_late_nobody_is() -> None:
    hub = Hub(straggler_s=8.0)
    a, b, c = everybody = hub.members(3)
    waits(a, POST, b, c)
    computes(b)
    computes(c)
    hub.pass_time(60.0, beating=everybody)
    assert a.last(Flush) is None


def test_nobody_is_excluded_below_the_minimum_world() -> None:
    hub = Hub(straggler_s=8.0, min_world=2)
    a, b = everybody = hub.members(2)
    waits(a, POST, b)
    computes(b)
    hub.pass_time(60.0, beating=everybody)
    assert a.last(Flush) is None


def test_an_accusation_that_the_accused_s_own_heartbeat_denies_excludes_nobody() -> None:
    hub = Hub(straggler_s=8.0)
    a, b, c = everybody = hub.members(3)
    waits(a, POST, c)
    waits(b, DATA, a)
    waits(c, DATA, a)  # it has posted and sealed
    hub.pass_time(9.0, beating=everybody)
    assert a.last(Flush) is None
