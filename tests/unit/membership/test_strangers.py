"""Who has only said hello: before the first view, and across a restart of the coordinator there."""

from __future__ import annotations

from dataclasses import replace

from pccl.membership.events import Persist
from pccl.membership.liveness import UNPROVEN_GRACE_S
from pccl.membership.messages import (
    REFUSALS_FOR_NOW,
    AtEntry,
    Evicted,
    Refused,
    ViewPlan,
    World,
)
from pccl.membership.peer import ENGINE_DUE_S
from pccl.transport.native_frames import Pong, Welcome
from tests.unit.membership.hub import FakePeer, Hub


def a_restart(**asked: object) -> tuple[Hub, FakePeer, FakePeer]:
    """Returns a coordinator that was restarted, a stranger that it admitted before, and a peer
    whose engine had come."""
    hub = Hub()
    stranger = hub.peer()
    stranger.hello(**asked)
    peer = hub.learner(min_world=2)
    hub.start()
    return hub, stranger, peer


def back(peer: FakePeer, **fields: object) -> None:
    peer.hello(run_id=peer.hub.machine.run_id, **fields)


def test_it_decides_no_rule() -> None:
    hub, stranger, peer = a_restart(min_world=7)
    assert hub.status()["min_world"] == 2
    back(stranger, min_world=7)
    back(peer, min_world=2)
    assert hub.status()["min_world"] == 2
    assert peer.got(World).min_world == 2 and peer.last(World) is None


def test_its_engine_finds_the_rules_that_another_has_decided() -> None:
    hub, stranger, _ = a_restart(min_world=7)
    stranger.native_hello()
    assert stranger.last(Welcome) is None and hub.status()["min_world"] == 2


def test_it_cannot_say_that_the_journal_is_old() -> None:
    hub, stranger, peer = a_restart()
    back(stranger, generation=99)
    assert stranger.got(Refused).code in REFUSALS_FOR_NOW and hub.status()["outdated"] is None
    back(peer, generation=99, min_world=2)
    assert hub.status()["outdated"]


def test_nobody_waits_for_it_before_the_peers_are_asked_to_follow() -> None:
    _, _, peer = a_restart()
    back(peer, min_world=2)
    peer.native_hello()
    peer.beat()
    assert peer.got(Pong).generation == 2


def test_the_address_that_it_claimed_is_not_dialled() -> None:
    hub, stranger, peer = a_restart()
    hub.pass_time(5.0)
    assert hub.probes(stranger) == 0 and hub.probes(peer) > 0


def test_it_has_as_long_as_all_others_to_come_back() -> None:
    hub, stranger, peer = a_restart()
    back(peer, min_world=2)
    peer.native_hello()
    window_s = hub.config.profile.reattach_window_s
    assert window_s > UNPROVEN_GRACE_S
    hub.pass_time(window_s - 0.5, beating=[peer])
    back(stranger)
    stranger.native_hello()
    assert stranger.last(Welcome) is not None
    hub, stranger, peer = a_restart()
    back(peer, min_world=2)
    peer.native_hello()
    hub.pass_time(window_s + 0.5, beating=[peer])
    assert hub.status()["admitted"] == 1


def test_that_an_engine_has_come_is_written_once_and_holds_no_answer_up() -> None:
    hub = Hub()
    peer = hub.peer()
    peer.hello()
    hub.effects.clear()
    peer.native_hello()
    assert [isinstance(e, Persist) for e in hub.effects][-1], "all that is said comes before"
    peer.lose(native=True)
    peer.native_hello()
    peer.beat()
    assert sum(isinstance(e, Persist) for e in hub.effects) == 1
    asks = hub.peer()
    asks.hello(min_world=2)
    hub.effects.clear()
    asks.native_hello()
    assert sum(isinstance(e, Persist) for e in hub.effects) == 1, "with the rule that it decides"


def test_a_member_needs_no_such_note() -> None:
    """As in a journal that was written before there was one."""
    hub = Hub()
    (member,) = hub.members(1)
    record = hub.store.load()
    assert record is not None
    hub.store.save(replace(record, peers=tuple(replace(p, was_native=False) for p in record.peers)))
    hub.start()
    hub.pass_time(2.0)
    assert hub.probes(member) > 0


def two_that_are_ready(hub: Hub) -> list[FakePeer]:
    peers = [hub.learner(), hub.learner()]
    for peer in peers:
        peer.say(AtEntry("step", 0))
    return peers


def wait(hub: Hub, seconds: float, peers: list[FakePeer], *others: FakePeer) -> None:
    """Lets time pass for peers that stay at their entry, and say so, and for others that live."""
    while seconds > 0:
        for peer in peers:
            peer.say(AtEntry("step", 0))
        hub.pass_time(min(0.5, seconds), beating=[*peers, *others])
        seconds -= 0.5


def test_the_first_view_waits_for_a_slow_engine_whose_peer_has_an_opinion() -> None:
    hub = Hub()
    slow = hub.peer()
    slow.hello(min_world=3)
    peers = two_that_are_ready(hub)
    wait(hub, 2.0, peers)
    assert hub.config.profile.initial_settle_s < 2.0 and peers[0].last(ViewPlan) is None
    slow.native_hello()
    assert hub.status()["min_world"] == 3
    wait(hub, 5.0, peers, slow)
    assert peers[0].last(ViewPlan) is None
    slow.say(AtEntry("step", 0))
    assert len(peers[0].got(ViewPlan).members) == 3


def test_strangers_with_opinions_delay_it_no_longer_than_an_engine_may_take() -> None:
    hub = Hub()
    hub.peer().hello(min_world=3)
    peers = two_that_are_ready(hub)
    for _ in range(5):
        wait(hub, ENGINE_DUE_S / 6, peers)
        hub.peer().hello(min_world=3)
        assert peers[0].last(ViewPlan) is None
    wait(hub, ENGINE_DUE_S / 6, peers)
    assert len(peers[0].got(ViewPlan).members) == 2


def test_nobody_waits_for_who_can_decide_nothing() -> None:
    for config, asked in (({}, {}), ({"min_world": 1}, {"min_world": 1})):
        hub = Hub(None, **config)
        hub.peer().hello(**asked)
        peers = two_that_are_ready(hub)
        wait(hub, hub.config.profile.initial_settle_s, peers)
        assert peers[0].last(ViewPlan) is not None
    hub = Hub()
    gone = hub.peer()
    gone.hello(min_world=3)
    gone.lose(agent=True)
    peers = two_that_are_ready(hub)
    wait(hub, hub.config.profile.initial_settle_s, peers)
    assert peers[0].last(ViewPlan) is not None


def test_who_lost_the_choice_of_a_rule_is_told_what_to_do_and_is_not_known_after_a_restart() -> (
    None
):
    hub = Hub()
    late = hub.peer()
    late.hello(min_world=7)
    hub.learner(min_world=2)
    late.native_hello()
    assert "connect again with the run's value, or leave it out" in late.got(Evicted).text
    record = hub.store.load()
    assert record is not None and late.incarnation not in [p.incarnation for p in record.peers]
