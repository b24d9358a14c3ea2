"""Peers that are lost again and again wait longer each time before they come in."""

from __future__ import annotations

from pccl.membership.flaps import FORGIVEN_S, KNOWN_MAX, Flaps
from pccl.membership.messages import AtEntry, Leaving, ViewPlan
from tests.unit.membership.hub import FakePeer, Hub


def test_the_delay_is_none_at_first_and_doubles_up_to_ten_minutes() -> None:
    delay_s = Flaps().delay_s
    assert [delay_s(n) for n in range(11)] == [0, 0, 5, 10, 20, 40, 80, 160, 320, 600, 600]
    assert delay_s(10_000) == 600


def test_time_as_a_member_takes_losses_back() -> None:
    flaps = Flaps()
    for at in range(4):
        flaps.lost(b"p", 1.0, float(at))
    assert flaps.ready_s(b"p") == 3.0 + 20.0
    flaps.lost(b"p", 2 * FORGIVEN_S, 100.0)  # 4 - 2 + 1
    assert flaps.ready_s(b"p") == 100.0 + 10.0
    flaps.lost(b"p", 50 * FORGIVEN_S, 200.0)
    assert flaps.ready_s(b"p") == 200.0
    assert flaps.ready_s(b"another") == 0.0


def test_what_is_remembered_is_bounded() -> None:
    flaps = Flaps()
    for at in range(KNOWN_MAX + 5):
        for _ in range(2):
            flaps.lost(at.to_bytes(16, "little"), 0.0, 1.0)
    assert flaps.ready_s((0).to_bytes(16, "little")) == 0.0
    assert flaps.ready_s((KNOWN_MAX + 4).to_bytes(16, "little")) == 6.0


def again(hub: Hub, peer_id: bytes) -> FakePeer:
    """The process is started anew with the identity that it kept."""
    peer = hub.peer()
    peer.peer_id = peer_id
    peer.hello()
    peer.native_hello()
    peer.say(AtEntry("step", 0))
    return peer


def test_a_peer_that_dies_over_and_over_comes_in_after_a_while_and_delays_nobody() -> None:
    hub = Hub()
    a, flaky = hub.members(2)
    for expected_s in (0.0, 5.0):
        hub.kill(flaky)
        a.report(watermark=3)
        a.install()
        flaky = again(hub, flaky.peer_id)
        other = hub.learner()
        if expected_s:
            assert flaky.last(ViewPlan) is None
            hub.join([a], other, step=3)  # others do not wait with it
            hub.kill(other)
            a.report(watermark=4)
            a.install()
            for _ in range(19):
                hub.pass_time(0.25, beating=[a, flaky])
                flaky.say(AtEntry("step", 0))
            assert flaky.last(ViewPlan) is None
            hub.pass_time(0.5, beating=[a, flaky])
            flaky.say(AtEntry("step", 0))
        assert flaky.last(ViewPlan) is not None
        flaky.say(AtEntry("step", 0))
        hub.join([a], flaky, step=5)


def test_a_peer_that_leaves_counts_nothing() -> None:
    hub = Hub()
    a, other = hub.members(2)
    for _ in range(3):
        other.say(Leaving("done"))
        for peer in (a, other):
            peer.report(watermark=3)
        a.install()
        other = again(hub, other.peer_id)
        assert other.last(ViewPlan) is not None
        hub.join([a], other, step=3)
