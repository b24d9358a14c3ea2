"""A coordinator on an old copy of its journal: who can make it know, and what it does then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pccl.base.config import LAN
from pccl.membership.events import Dialled, Log, Paused, Persist, ProbeListener
from pccl.membership.messages import (
    REFUSALS_FOR_NOW,
    Activate,
    Admitted,
    AtEntry,
    Drain,
    Evicted,
    Hold,
    HoldFrom,
    Refused,
)
from pccl.membership.outdated import WITNESS_SHARE
from pccl.membership.store import MemoryDisk
from pccl.transport.native_frames import (
    EvictedFrame,
    Flush,
    Pong,
    RefusalCode,
    RefusedFrame,
    Welcome,
)
from tests.unit.membership.hub import FakePeer, Hub, opened

Show = Callable[[FakePeer], None]


def copy_of(disk: MemoryDisk) -> MemoryDisk:
    copy = MemoryDisk()
    copy.generation, copy.blob = disk.generation, disk.blob
    return copy


def moved(peer: FakePeer, hub: Hub) -> FakePeer:
    """The process dials the same address, where another coordinator listens now."""
    peer.hub = hub
    peer.inbox.clear()
    peer.closed.clear()
    return peer


def an_old_copy() -> tuple[Hub, Hub, list[FakePeer], FakePeer]:
    """Returns the coordinator that the peers follow, generation 3; one on a copy of the journal
    of generation 1, which is 2; the members of both; and a member that the copy does not know."""
    right = Hub()
    members = right.members(2)
    copy = copy_of(right.disk)
    late = right.learner()
    right.join(members, late, step=7)
    right.start()
    right.start()
    copied = Hub(copy)
    assert (right.store.generation, copied.store.generation) == (3, 2)
    return right, copied, [moved(peer, copied) for peer in members], moved(late, copied)


def errors(hub: Hub) -> list[str]:
    return [e.text for e in hub.effects if isinstance(e, Log) and e.level == "error"]


def returns(peer: FakePeer, **changes: object) -> None:
    peer.hello(run_id=peer.hub.machine.run_id, **changes)


SIGNS: dict[str, Show] = {
    "a generation in a hello": lambda peer: returns(peer, generation=3, epoch=1),
    "an epoch in a hello": lambda peer: returns(peer, generation=1),
    "a generation in a native hello": lambda peer: peer.native_hello(generation=3, epoch=1),
    "an epoch in a native hello": lambda peer: peer.native_hello(generation=1),
}


@pytest.mark.parametrize("show", SIGNS.values(), ids=SIGNS)
def test_a_peer_that_the_journal_knows_makes_it_known_that_the_journal_is_old(show: Show) -> None:
    _, copied, (a, b), _ = an_old_copy()
    show(a)
    (said,) = errors(copied)
    assert "old copy" in said and "pccl coordinator adopt" in said
    assert copied.status()["outdated"] == said
    assert not any(isinstance(m, Evicted | EvictedFrame | Welcome) for m in a.inbox)
    b.hello(generation=1, epoch=1)  # whatever it knows itself
    assert b.got(Refused).text == said and b.closed == {b.agent}
    assert len(errors(copied)) == 1


@pytest.mark.parametrize("fields", [{"generation": 3}, {"epoch": 2}])
def test_a_heartbeat_can_tell_it_too_and_everybody_is_let_go_for_now(
    fields: dict[str, object],
) -> None:
    _, _, peers, _ = an_old_copy()
    for peer in peers:  # they have not heard of the newer one yet
        returns(peer, generation=1, epoch=1)
        peer.native_hello(generation=1, epoch=1)
        peer.inbox.clear()
    peers[0].status = fields
    peers[0].beat(epoch=1)
    for peer in peers:
        assert peer.got(Refused).code in REFUSALS_FOR_NOW
        assert peer.closed == {peer.agent, peer.native}


def test_an_outdated_coordinator_decides_nothing_however_long_it_runs() -> None:
    _, copied, (a, b), _ = an_old_copy()
    returns(a, generation=3)
    copied.effects.clear()
    copied.handle(Dialled(b.peer_id, b.incarnation, alive=False))
    copied.pass_time(120.0)
    newcomer = copied.peer()
    newcomer.hello()
    assert newcomer.got(Refused).code in REFUSALS_FOR_NOW
    b.native_hello(generation=1)
    assert b.got(RefusedFrame).code == RefusalCode.GENERATION
    assert copied.machine.deadline_s is None and copied.status()["admitted"] == 2
    assert not any(isinstance(e, Persist | ProbeListener) for e in copied.effects)


def test_a_peer_that_an_old_copy_does_not_know_is_turned_away_for_now_and_never_evicted() -> None:
    _, copied, _, late = an_old_copy()
    for show in SIGNS.values():
        show(late)
        assert late.last(Evicted) is None
    assert late.got(RefusedFrame).code == RefusalCode.GENERATION
    late.hello(generation=0, epoch=0)  # its incarnation alone says that the journal is old
    assert late.got(Refused).code in REFUSALS_FOR_NOW
    late.native_hello()
    assert late.got(RefusedFrame).code == RefusalCode.GENERATION
    assert not errors(copied), "it proves nothing"


def test_a_stranger_cannot_say_that_a_journal_is_old() -> None:
    hub = Hub()
    (member,) = hub.members(1)
    run_id = hub.machine.run_id
    lies: list[dict[str, object]] = [
        {"run_id": run_id},
        {"run_id": run_id, "incarnation": 77, "secret": b"w" * 16},
        {"run_id": run_id, "incarnation": member.incarnation, "secret": b"w" * 16},
        {"run_id": run_id, "incarnation": member.incarnation, "peer_id": member.peer_id},
        {"incarnation": member.incarnation, "peer_id": member.peer_id, "secret": member.secret},
    ]
    for lie in lies:
        stranger = hub.peer()
        stranger.hello(**{"generation": 9, "epoch": 99, **lie})
        assert stranger.got(Refused).code in REFUSALS_FOR_NOW
    thief = hub.peer()
    thief.peer_id, thief.incarnation = member.peer_id, member.incarnation
    thief.native_hello(b"w" * 16, generation=9)
    assert thief.got(RefusedFrame).code == RefusalCode.GENERATION
    assert hub.status()["outdated"] is None and not errors(hub) and not member.closed
    assert hub.learner().last(Admitted) is not None


def test_when_the_right_coordinator_is_back_the_same_view_goes_on() -> None:
    right, copied, (a, b), late = an_old_copy()
    for peer in (a, b, late):
        returns(peer, generation=3)
    assert copied.status()["outdated"]
    right.start()
    for peer in (a, b, late):
        returns(moved(peer, right), generation=3)
        peer.native_hello(generation=3)
        assert peer.got(Welcome).generation == 4
    right.pass_time(60.0, beating=[a, b, late])
    status = right.status()
    assert [member["state"] for member in status["members"]] == ["member"] * 3
    assert (status["epoch"], status["outdated"]) == (2, None)
    assert all(peer.last(Flush) is None for peer in (a, b, late))


def test_no_ordinary_life_of_a_run_looks_like_an_old_copy() -> None:
    hub = Hub()
    a, b = hub.members(2)
    straggler = hub.learner()
    hub.join([a, b], straggler, step=3)
    hub.kill(b)
    for peer in (a, straggler):
        peer.report(watermark=9)
        peer.install()
    hub.start()  # epochs that its predecessor has reserved are skipped
    for peer in (a, straggler):
        returns(peer, generation=1)
        peer.native_hello(generation=1)
        peer.status = {"generation": 2}
    hub.pass_time(8.0, beating=[a, straggler])
    hub.kill(a)
    hub.kill(straggler)  # nobody is left: the run begins anew
    again = hub.learner()
    again.say(AtEntry("step", 0))
    assert hub.status()["outdated"] is None and not errors(hub)


def test_a_stranger_that_was_admitted_just_now_proves_nothing_about_the_journal() -> None:
    hub = Hub()
    (member,) = hub.members(1)
    for restarted in (False, True):
        if restarted:
            hub.start()
            returns(member, generation=1)
        stranger = hub.learner()
        returns(stranger, generation=1 << 63)
        assert stranger.got(Refused).code in REFUSALS_FOR_NOW and stranger.agent in stranger.closed
        stranger.native_hello(epoch=99)
        assert stranger.got(RefusedFrame).code == RefusalCode.GENERATION
        for fields in ({"generation": 9}, {"epoch": 99}):
            stranger.native_hello(epoch=0)
            stranger.status = fields
            stranger.beat()
            assert stranger.got(RefusedFrame).code == RefusalCode.GENERATION
            assert stranger.native in stranger.closed
        assert hub.status()["outdated"] is None and not errors(hub)
        hub.kill(stranger)
    assert hub.learner().last(Admitted) is not None


def test_a_learner_of_the_journal_is_no_witness_where_there_are_members() -> None:
    hub = Hub()
    (member,) = hub.members(1)
    learner = hub.learner()
    hub.start()
    returns(learner, generation=9)
    assert learner.got(Refused).code in REFUSALS_FOR_NOW and hub.status()["outdated"] is None
    returns(member, generation=9)
    assert hub.status()["outdated"]


def a_copy_of_a_flush() -> tuple[Hub, list[FakePeer]]:
    """Returns a coordinator on a copy made while a flush was on, and two members that the right
    one has since led through that flush and into a later view."""
    right = Hub()
    a, b, c = right.members(3)
    right.kill(c)
    copy = copy_of(right.disk)
    for peer in (a, b):
        peer.report()
    for peer in (a, b):
        peer.install()
    right.join([a, b], right.learner(), step=7)
    right.start()
    copied = Hub(copy)
    assert copied.store.generation == right.store.generation == 2
    return copied, [moved(peer, copied) for peer in (a, b)]


def test_a_copy_made_while_a_flush_was_on_is_found_by_the_epoch_in_force() -> None:
    for native in (False, True):
        copied, (a, _) = a_copy_of_a_flush()
        if native:
            a.native_hello(generation=2)
        else:
            returns(a, generation=2)
        assert "old copy" in copied.status()["outdated"]
        assert a.last(Flush) is None and a.last(Welcome) is None


def test_a_report_of_a_later_view_decides_nothing() -> None:
    for late in ({"epoch": 3}, {"attempt": 3}):
        copied, (a, b) = a_copy_of_a_flush()
        for peer in (a, b):  # as if they had said nothing of it before
            returns(peer, generation=2, epoch=1)
            peer.native_hello(generation=2, epoch=1)
        copied.pass_time(WITNESS_SHARE * LAN.reattach_window_s)
        copied.effects.clear()
        for peer in (a, b):
            peer.epoch = late.get("epoch", 1)
            if not peer.closed:
                peer.report(opened(9, epoch=late.get("attempt", 1)), watermark=9)
        assert "old copy" in copied.status()["outdated"]
        assert not any(isinstance(e, Persist) for e in copied.effects)


def adopted() -> tuple[Hub, FakePeer]:
    """A coordinator that begins with a record made of testimony, and the run's one member."""
    hub = Hub()
    (member,) = hub.members(1)
    record = hub.store.load()
    assert record is not None
    hub.store.save(replace(record, adopted=True, flushing=True))
    hub.start()
    return hub, member


def test_an_adopted_record_may_lack_a_view_until_its_flush_is_over() -> None:
    hub, member = adopted()
    returns(member, generation=1, epoch=5)
    member.native_hello(generation=1, epoch=5)
    assert hub.status()["outdated"] is None
    member.epoch = 5
    member.report(opened(9, epoch=5), watermark=9)
    assert "epoch 5" in hub.status()["outdated"], (
        "who holds a step of it knows more than the record"
    )


def test_the_looser_bound_of_an_adopted_record_ends_with_its_flush() -> None:
    hub, member = adopted()
    returns(member, generation=1)
    member.native_hello(generation=1)
    member.report()
    member.install()
    again = hub.store.load()
    assert again is not None and not again.adopted
    member.beat(epoch=member.epoch + 1)
    assert hub.status()["outdated"]


def back(hub: Hub, *peers: FakePeer) -> list[int]:
    """These come back without a sign; returns the generations that their PONGs name."""
    for peer in peers:
        peer.hello()
        peer.native_hello()
        peer.inbox.clear()
        peer.beat()
    return [peer.got(Pong).generation for peer in peers]


def test_a_restarted_coordinator_asks_to_be_followed_when_every_witness_is_back() -> None:
    hub = Hub()
    a, b = hub.members(2)
    x = hub.learner()
    hub.start()
    assert back(hub, x, a) == [0, 0], "b may still know of more than this journal"
    assert back(hub, b) == [2]
    a.beat()
    assert a.got(Pong).generation == 2


def test_it_waits_for_no_witness_that_is_dead_and_for_none_for_ever() -> None:
    hub = Hub()
    a, b = hub.members(2)
    hub.start()
    assert back(hub, a) == [0]
    hub.handle(Dialled(b.peer_id, b.incarnation, alive=False))
    a.beat()
    assert a.got(Pong).generation == 2
    hub = Hub()
    a, b = hub.members(2)
    hub.start()
    assert back(hub, a) == [0]
    hub.pass_time(WITNESS_SHARE * LAN.reattach_window_s - 0.5, beating=[a])
    hub.handle(Paused(2.0))
    hub.pass_time(2.0, beating=[a])
    a.inbox.clear()
    a.beat()
    assert a.got(Pong).generation == 0, "the time in which it did not run does not count"
    hub.pass_time(1.0, beating=[a])
    a.inbox.clear()
    a.beat()
    assert a.got(Pong).generation == 2


def test_a_copy_that_has_grown_by_restarts_is_followed_by_nobody_before_a_witness_comes() -> None:
    right = Hub()
    members = right.members(2)
    waiting = right.learner()
    copy = copy_of(right.disk)
    right.join(members, right.learner(), step=7)
    for _ in range(5):
        copied = Hub(copy)
    assert copied.store.generation > right.store.generation
    a = moved(members[0], copied)
    assert back(copied, moved(waiting, copied)) == [0]
    returns(a, generation=1)  # in whose view there is one more
    assert copied.status()["outdated"]


def test_nobody_waits_for_a_member_that_was_on_its_way_out() -> None:
    hub = Hub()
    one, two, leaver = hub.members(3)
    leaver.say(Drain(30.0, "the machine is taken back"))
    epoch = one.got(Hold).epoch
    for peer in (one, two, leaver):
        peer.say(HoldFrom(epoch, 7))
    hub.start()  # before anybody has heard of the activation, and the leaver's machine is gone
    for peer in (one, two):
        peer.hello(run_id=hub.machine.run_id)
        peer.native_hello()
    assert one.got(Activate).step == two.got(Activate).step == 7
