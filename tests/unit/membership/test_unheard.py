"""Members of which nobody is heard any more, and newcomers that wait for them."""

from __future__ import annotations

import io

from rich.console import Console

from pccl.cli.status import show
from pccl.membership.messages import Admitted, AtEntry, Evicted, LinksUp, ViewPlan
from pccl.transport.native_frames import EvictedFrame, Flush, RefusedFrame
from tests.unit.membership.hub import FakePeer, Hub


def wait(hub: Hub, newcomer: FakePeer, seconds: float) -> None:
    """Nobody is heard but a newcomer at its entry."""
    until_s = hub.now_s + seconds
    while hub.now_s < until_s:
        newcomer.say(AtEntry("step", 0))
        hub.pass_time(0.5, beating=[newcomer])


def test_newcomers_do_not_wait_for_ever_for_members_that_stand_still() -> None:
    hub = Hub()
    a, b = hub.members(2)
    y = hub.learner()
    wait(hub, y, 4.0)
    y.inbox.clear()
    wait(hub, y, 54.0)
    assert y.last(ViewPlan) is None and hub.status()["lineage"] == 1
    wait(hub, y, 6.0)
    y.say(LinksUp(y.got(ViewPlan).epoch))
    assert len(y.install().members) == 1
    assert hub.status()["lineage"] == 2
    for peer in (a, b):  # it reads this when it wakes
        assert "given up with its whole view: no member was heard for 6" in peer.got(Evicted).text


def test_a_member_that_lost_its_connections_is_told_why_when_it_comes_back() -> None:
    hub = Hub()
    a, _ = hub.members(2)
    y = hub.learner()
    wait(hub, y, 64.0)
    a.inbox.clear()
    a.hello()
    assert "given up with its whole view" in a.got(Evicted).text
    a.native_hello()
    assert "given up with its whole view" in a.got(RefusedFrame).text


def test_nothing_is_given_up_while_no_newcomer_waits() -> None:
    hub = Hub()
    a, b = hub.members(2)
    hub.pass_time(600.0)
    assert hub.status()["lineage"] == 1
    for peer in (a, b):
        peer.beat()
    for peer in (a, b):
        assert peer.last(Flush) is not None and peer.last(EvictedFrame) is None
        peer.report()
    assert len(a.install().members) == 2


def test_one_heartbeat_of_one_member_starts_the_time_anew() -> None:
    hub = Hub()
    a, b = hub.members(2)
    y = hub.learner()
    wait(hub, y, 40.0)
    a.beat()
    wait(hub, y, 1.0)
    assert hub.status()["flush"]["unheard_s"] == 1.0
    wait(hub, y, 40.0)
    assert hub.status()["lineage"] == 1
    a.beat()
    a.report()
    hub.pass_time(2.0, beating=[a, y])
    assert len(a.install().members) == 1
    assert b.last(Evicted) is not None


def test_the_time_is_an_option_and_a_restarted_coordinator_counts_from_its_start() -> None:
    hub = Hub(abandon_after_s=20.0)
    hub.members(2)
    y = hub.learner()
    wait(hub, y, 15.0)
    hub.start()
    y.hello()
    y.native_hello()
    assert y.got(Admitted)
    wait(hub, y, 15.0)
    assert hub.status()["lineage"] == 1
    wait(hub, y, 9.0)
    assert hub.status()["lineage"] == 2


def test_people_and_the_log_are_told_what_newcomers_wait_for() -> None:
    hub = Hub()
    hub.members(2)
    y = hub.learner()
    wait(hub, y, 10.0)
    text = io.StringIO()
    show(hub.status(), Console(file=text, width=120))
    why = "waits: no member has been heard for 10 s; after 60 s they are given up"
    assert f"03030303.3 {why}" in text.getvalue()
    logged = [e.text for e in hub.effects if hasattr(e, "text") and "newcomers: waits" in e.text]
    assert len(logged) == 1
