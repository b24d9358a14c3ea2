"""Who gets in, who is turned away, and what a returning peer is told."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pccl.base.config import LAN
from pccl.membership.events import Log
from pccl.membership.messages import (
    Activate,
    Admitted,
    AtEntry,
    CancelPlan,
    Evicted,
    Hello,
    Hold,
    HoldFrom,
    Install,
    Leaving,
    LinksUp,
    Refused,
    StatusReply,
    StatusRequest,
    Switched,
    ViewPlan,
    World,
)
from pccl.transport.native_frames import (
    EvictedFrame,
    Flush,
    NativeHello,
    Pong,
    RefusedFrame,
    Welcome,
)
from tests.unit.membership.hub import Hub


def test_a_new_peer_gets_an_incarnation_a_secret_and_the_time_constants() -> None:
    hub = Hub(min_world=3)
    first, second = hub.learner(), hub.learner()
    admitted = first.got(Admitted)
    assert (admitted.incarnation, admitted.min_world, admitted.epoch) == (1, 3, 0)
    assert (admitted.heartbeat_s, admitted.lease_s) == (0.25, 3.0)
    assert admitted.coordinator_grace_s == 60.0
    assert admitted.run_id == hub.machine.run_id and admitted.generation == 1
    assert second.incarnation == 2 and second.secret != first.secret
    assert second.got(Welcome).generation == 1


def test_an_incarnation_is_never_given_twice_even_across_a_restart() -> None:
    hub = Hub()
    hub.learner()
    hub.start()
    assert hub.learner().incarnation == 2


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"protocol": 3}, "protocol", "speaks protocol 2, the peer 3"),
        ({"run_id": b"x" * 16}, "run", (b"x" * 16).hex()),
        ({"min_world": 5}, "min_world", "is 2 in this run, and this peer asks for 5"),
    ],
)
def test_a_peer_that_does_not_fit_is_refused_and_told_why(
    changes: dict[str, object], code: str, words: str
) -> None:
    hub = Hub(min_world=2)
    stranger = hub.peer()
    stranger.hello(**changes)
    refused = stranger.got(Refused)
    assert refused.code == code and words in refused.text
    assert stranger.closed == {stranger.agent}


def test_a_member_of_another_run_is_told_about_journals_and_adoption_by_a_run_that_is_new() -> None:
    hub = Hub(began_anew=True)
    for incarnation, code in ((0, "run"), (7, "adopt")):
        peer = hub.peer()
        peer.hello(run_id=b"x" * 16, incarnation=incarnation, secret=b"s" * 16)
        assert peer.got(Refused).code == code
    errors = [e.text for e in hub.effects if isinstance(e, Log) and e.level == "error"]
    assert len(errors) == 1 and "pccl coordinator adopt" in errors[0]


def test_the_first_peer_with_an_opinion_fixes_min_world_for_the_run() -> None:
    hub = Hub()
    assert hub.learner().got(Admitted).min_world == 1
    assert hub.learner(min_world=2).got(Admitted).min_world == 2
    other = hub.peer()
    other.hello(min_world=3)
    assert "is 2 in this run, and this peer asks for 3" in other.got(Refused).text
    assert hub.learner().got(Admitted).min_world == 2


def test_with_the_first_view_the_rules_are_what_its_members_came_in_under() -> None:
    hub = Hub()
    hub.members(2)
    for asked, words in (
        ({"min_world": 5}, "min_world is 1 in this run, and this peer asks for 5"),
        ({"on_underflow": 3}, "on_underflow is 'wait' in this run, and this peer asks for 'raise'"),
        ({"straggler_s": 0.2}, "is to wait in this run, and this peer asks for to exclude"),
    ):
        passing = hub.peer()
        passing.hello(**asked)
        assert words in passing.got(Refused).text
    hub.learner(min_world=1, on_underflow=1, straggler_s=-1.0)


def test_what_a_peer_asked_for_that_went_before_the_first_view_counts_for_nothing() -> None:
    hub = Hub()
    passing = hub.learner(min_world=5, on_underflow=3, straggler_s=0.2)
    passing.say(Leaving("left"))
    assert hub.status()["min_world"] == 1
    hub.effects.clear()
    first = hub.learner(min_world=2)
    hub.learner()
    assert first.got(Admitted).min_world == 2
    assert hub.status()["min_world"] == 2
    said = [e.text for e in hub.effects if isinstance(e, Log)]
    assert any("min_world is 2 now, as " in text for text in said)


def test_who_has_only_said_hello_decides_nothing() -> None:
    hub = Hub()
    stranger = hub.peer()
    stranger.hello(min_world=7)
    assert stranger.got(Admitted).min_world == 7  # for all it knows
    hub.learner(min_world=2)
    assert hub.status()["min_world"] == 2
    stranger.native_hello()
    assert "min_world is 2 in this run, and this peer asks for 7" in stranger.got(Evicted).text


def test_only_members_tell_an_adopted_run_what_its_rules_were() -> None:
    hub = Hub()
    members = hub.members(2)
    record = hub.store.load()
    assert record is not None
    hub.store.save(replace(record, on_underflow=0, straggler_s=0.0))
    hub.start()
    for member, straggler_s in zip(members, (0.0, 9.0), strict=True):
        member.hello(run_id=hub.machine.run_id, straggler_s=straggler_s)
        member.native_hello()
    passing = hub.peer()
    for run_id in (b"", hub.machine.run_id):
        passing.hello(run_id=run_id, on_underflow=3)
    assert hub.status()["straggler_s"] == 9.0
    assert hub.status()["on_underflow"] == "wait"


def test_all_are_told_a_min_world_that_was_decided_after_they_came() -> None:
    hub = Hub()
    early = hub.learner()
    assert early.got(World).min_world == 1
    hub.learner(min_world=2)
    assert early.got(World).min_world == 2


def test_a_newcomer_is_told_the_world_and_then_that_another_went_at_that_moment() -> None:
    hub = Hub()
    (member,) = hub.members(1)
    hub.learner()  # never beats
    hub.pass_time(LAN.lease_s - 0.25, beating=[member])
    member.beat()
    newcomer = hub.peer()
    newcomer.hello()
    newcomer.native, names = hub.connect(newcomer), (newcomer.peer_id, newcomer.incarnation)
    hub.now_s += 0.3
    newcomer.tell(NativeHello(0, hub.machine.run_id, *names, newcomer.secret, 0, 0))
    assert newcomer.got(World) == World(3, 1, 1, min_world=1), "what arrives lets no time pass"
    member.inbox.clear()
    hub.carry_out(hub.machine.on_deadline(hub.now_s))
    assert newcomer.got(World) == member.got(World) == World(2, 1, 1, min_world=1)


def test_a_restart_before_the_first_view_does_not_forget_what_was_asked_for() -> None:
    hub = Hub()
    hub.learner(min_world=3)
    hub.start()
    assert hub.status()["min_world"] == 3


def test_admission_is_bounded() -> None:
    hub = Hub(admitted_max=2)
    hub.learner()
    hub.learner()
    third = hub.peer()
    third.hello()
    assert third.got(Refused).code == "limit"


def test_native_connections_need_the_incarnation_and_its_secret() -> None:
    hub = Hub()
    peer = hub.learner()
    for secret, purpose, code in ((b"w" * 16, 0, 3), (None, 1, 6)):
        peer.native_hello(secret, purpose)
        assert peer.got(RefusedFrame).code == code
        assert peer.native in peer.closed
    stranger = hub.peer()
    stranger.incarnation = peer.incarnation
    stranger.native_hello(b"s" * 16)
    assert stranger.got(RefusedFrame).code == 4


def test_a_member_is_not_taken_over_by_one_that_only_knows_its_name() -> None:
    hub = Hub()
    victim, _ = hub.members(2)
    for secret in (b"", b"w" * 16):
        thief = hub.peer()
        thief.peer_id = victim.peer_id
        thief.hello(incarnation=victim.incarnation, secret=secret)
        assert thief.got(Refused).code == "secret"
        assert thief.closed == {thief.agent}
    assert not victim.closed and victim.last(Evicted) is None
    victim.lose(agent=True)
    victim.hello()
    assert victim.got(World) == World(2, 2, 1, min_world=1)


def test_a_peer_that_is_refused_on_its_own_connection_has_lost_that_connection() -> None:
    hub = Hub()
    victim, _ = hub.members(2)
    hello = Hello(99, b"", victim.peer_id, 1, 0, 0, "", 1, 0, 0, "", 1, victim.secret)
    victim.say(hello)
    assert victim.got(Refused).code == "protocol" and victim.closed == {victim.agent}
    victim.lose(agent=True)
    assert hub.probes(victim) == 1


def test_who_slept_through_its_eviction_is_told_on_every_way_back() -> None:
    hub = Hub()
    sleeper, other = hub.members(2)
    hub.pass_time(3.25, beating=[other])
    other.report()
    assert sleeper.last(Evicted) is not None and sleeper.last(EvictedFrame) is not None
    sleeper.inbox.clear()
    sleeper.hello()
    assert sleeper.got(Evicted).generation == 1
    sleeper.native_hello()
    assert sleeper.got(RefusedFrame).code == 4


def test_garbage_in_sequence_closes_the_connection_and_harms_nobody() -> None:
    hub = Hub()
    (member,) = hub.members(1)
    stranger = hub.peer()
    stranger.agent = hub.connect(stranger)
    stranger.say(LinksUp(1))
    assert stranger.closed == {stranger.agent}
    stranger.native = hub.connect(stranger)
    stranger.beat()
    assert stranger.native in stranger.closed
    member.inbox.clear()
    member.tell(Pong(1, 1))  # what only coordinators say
    assert member.native in member.closed


def test_a_status_request_admits_nobody_and_tells_the_state() -> None:
    hub = Hub(min_world=2)
    members = hub.members(2)
    members[0].beat(watermark=9)
    viewer = hub.peer()
    viewer.agent = hub.connect(viewer)
    viewer.say(StatusRequest())
    status = json.loads(viewer.got(StatusReply).json)
    assert (status["epoch"], status["world_size"], status["admitted"]) == (1, 2, 2)
    assert status["counters"]["commits"] == 9
    assert [m["rank"] for m in status["members"]] == [0, 1]
    assert status["members"][0]["address"] == "10.0.0.9:5001"
    assert {m["state"] for m in status["members"]} == {"member"}


def test_everybody_learns_when_the_world_changes() -> None:
    hub = Hub()
    a, b = hub.members(2)
    hub.learner()
    assert a.got(World) == World(3, 2, 1, min_world=1)
    assert b.got(World) == World(3, 2, 1, min_world=1)


def test_a_member_that_comes_back_is_told_what_it_missed() -> None:
    hub = Hub()
    a, b, c = hub.members(3)
    hub.kill(c)
    for peer in (a, b):
        peer.report()
    a.install()
    b.inbox.clear()
    b.lose(agent=True)
    b.hello()
    assert b.got(Install).epoch == 2


def test_a_member_that_comes_back_during_a_join_is_told_the_pending_parts() -> None:
    hub = Hub()
    a, b = hub.members(2)
    joiner = hub.learner()
    joiner.say(AtEntry("step", 0))
    a.inbox.clear()
    a.hello()
    epoch = a.got(ViewPlan).epoch
    for peer in (a, b, joiner):
        peer.say(LinksUp(epoch))
    a.inbox.clear()
    a.hello()
    assert a.last(ViewPlan) is not None and a.got(Hold).epoch == epoch
    for peer in (a, b):
        peer.say(HoldFrom(epoch, 4))
    a.inbox.clear()
    a.hello()
    assert a.got(Activate).step == 4


def test_a_restarted_coordinator_goes_on_with_the_same_epoch() -> None:
    hub = Hub()
    a, b = hub.members(2)
    hub.start()
    for peer in (a, b):
        peer.inbox.clear()
        peer.hello()
        peer.native_hello()
    hub.pass_time(20.0, beating=[a, b])
    assert a.last(Flush) is None and a.last(Install) is None and a.last(Evicted) is None
    assert a.got(Pong) == Pong(2, 1)


def test_a_restarted_coordinator_flushes_without_the_members_that_do_not_come_back() -> None:
    hub = Hub()
    a, b = hub.members(2)
    hub.start()
    a.hello()
    a.native_hello()
    a.inbox.clear()
    hub.pass_time(LAN.reattach_window_s - 0.5, beating=[a])
    assert a.last(Flush) is None
    hub.pass_time(1.0, beating=[a])
    a.report()
    assert a.got(Install).lost == (b.peer_id,)


def test_a_restarted_coordinator_releases_a_hold_it_knows_nothing_of() -> None:
    hub = Hub()
    a, b = hub.members(2)
    joiner = hub.learner()
    joiner.say(AtEntry("step", 0))
    epoch = a.got(ViewPlan).epoch
    for peer in (a, b, joiner):
        peer.say(LinksUp(epoch))
    assert a.got(Hold).epoch == epoch
    hub.start()
    a.hello()
    a.native_hello()
    assert a.last(CancelPlan) is None, "the other one may know of more than this journal does"
    b.native_hello()
    assert a.got(CancelPlan).epoch >= epoch


def test_a_restarted_coordinator_finishes_a_flush_that_was_under_way() -> None:
    hub = Hub()
    a, b, c = hub.members(3)
    hub.kill(c)
    asked = a.got(Flush).target
    hub.start()
    for peer in (a, b):
        peer.inbox.clear()
        peer.hello()
        peer.native_hello()
    assert a.last(Flush) is None, "the third may know of more than this journal does"
    hub.dead(c)
    assert a.last(Flush) is not None
    assert a.last(Flush).target > asked  # type: ignore[union-attr]
    for peer in (a, b):
        peer.report()
    assert a.got(Install).lost == (c.peer_id,)


def test_an_activation_survives_a_restart() -> None:
    hub = Hub()
    a, b = hub.members(2)
    joiner = hub.learner()
    joiner.say(AtEntry("step", 0))
    epoch = a.got(ViewPlan).epoch
    for peer in (a, b, joiner):
        peer.say(LinksUp(epoch))
    for peer in (a, b):
        peer.say(HoldFrom(epoch, 4))
    hub.start()
    for peer in (a, b, joiner):
        peer.inbox.clear()
        peer.hello()
        peer.native_hello()
    activate = a.got(Activate)
    assert (activate.epoch, activate.step, activate.name) == (epoch, 4, "step")
    a.say(Switched(epoch, 5))
    assert joiner.got(Install).members[-1].first_step == 5
