"""Members of which nobody is heard any more, and newcomers that wait for them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pccl.base.config import LAN, WAN
from pccl.base.errors import UsageError
from pccl.cli.status import show
from pccl.membership.messages import Admitted, AtEntry, Evicted, LinksUp, ViewPlan
from pccl.membership.service import CoordinatorOptions
from pccl.transport.native_frames import EvictedFrame, Flush, RefusedFrame
from tests.unit.membership.hub import FakePeer, Hub


def wait(hub: Hub, newcomer: FakePeer, seconds: float) -> None:
    """Nobody is heard but a newcomer at its entry."""
    until_s = hub.now_s + seconds
    while hub.now_s < until_s:
        newcomer.say(AtEntry("step", 0))
        hub.pass_time(0.5, beating=[newcomer])


def test_newcomers_do_not_wait_for_ever_for_members_that_stand_still() -> None:
    hub = Hub(abandon_after_s=60.0)
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
    hub = Hub(abandon_after_s=60.0)
    a, _ = hub.members(2)
    y = hub.learner()
    wait(hub, y, 64.0)
    a.inbox.clear()
    a.hello()
    assert "given up with its whole view" in a.got(Evicted).text
    a.native_hello()
    assert "given up with its whole view" in a.got(RefusedFrame).text


def test_nothing_is_given_up_while_no_newcomer_waits() -> None:
    hub = Hub(abandon_after_s=60.0)
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
    hub = Hub(abandon_after_s=60.0)
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
    show(hub.status(), Console(file=text, width=160))
    why = "waits: no member has been heard for 10 s; they are never given up "
    why += "(pccl coordinator --abandon-after)"
    assert f"03030303.3 {why}" in text.getvalue()
    logged = [e.text for e in hub.effects if hasattr(e, "text") and "newcomers: waits" in e.text]
    assert len(logged) == 1


def test_by_default_members_that_stand_still_are_never_given_up() -> None:
    hub = Hub()
    hub.members(2)
    wait(hub, hub.learner(), 900.0)
    assert hub.status()["lineage"] == 1


def test_a_stray_hello_gives_nothing_up() -> None:
    hub = Hub(abandon_after_s=60.0)
    hub.members(2)
    stray = hub.peer()
    for _ in range(30):
        if stray.incarnation == 0:
            stray.hello()
        stray.say(AtEntry("step", 0))
        hub.pass_time(4.0)
    assert hub.status()["lineage"] == 1


def test_a_newcomer_at_no_entry_gives_nothing_up() -> None:
    hub = Hub(abandon_after_s=60.0)
    hub.members(2)
    hub.pass_time(200.0, beating=[hub.learner()])
    assert hub.status()["lineage"] == 1


def test_newcomers_that_could_not_begin_give_nothing_up() -> None:
    hub = Hub(abandon_after_s=60.0, min_world=2)
    hub.members(2)
    y, z = hub.learner(), hub.learner()
    until_s = hub.now_s + 100.0
    while hub.now_s < until_s:
        y.say(AtEntry("step", 0))
        z.say(AtEntry("eval", 0))
        hub.pass_time(0.5, beating=[y, z])
    assert hub.status()["lineage"] == 1
    until_s = hub.now_s + 66.0
    while hub.now_s < until_s:
        for peer in (y, z):
            peer.say(AtEntry("step", 0))
        hub.pass_time(0.5, beating=[y, z])
    assert hub.status()["lineage"] == 2


def test_newcomers_must_have_waited_themselves() -> None:
    hub = Hub(abandon_after_s=60.0)
    hub.members(2)
    hub.pass_time(600.0)
    y = hub.learner()
    wait(hub, y, 55.0)
    assert hub.status()["lineage"] == 1
    wait(hub, y, 10.0)
    assert hub.status()["lineage"] == 2


def test_a_time_in_which_members_that_are_cut_off_still_go_on_is_refused() -> None:
    for options, least in (
        ({"profile": LAN}, "73 s with profile lan,"),
        ({"profile": WAN}, "80 s with profile wan,"),
        ({"profile": LAN, "auto_profile": True}, "80 s with profile auto,"),
    ):
        with pytest.raises(UsageError, match=rf"--abandon-after.*at least {least}"):
            CoordinatorOptions(abandon_after_s=72.0, **options)
    assert CoordinatorOptions(abandon_after_s=73.0).abandon_after_s == 73.0


def test_a_member_that_froze_after_its_report_costs_the_view_that_it_is_in() -> None:
    hub = Hub(abandon_after_s=20.0)
    a, b, c = hub.members(3)
    hub.kill(c)
    hub.start()  # b does not report; a is waited for until members can have come back
    hub.dead(c)
    for peer in (a, b):
        peer.hello()
        peer.native_hello()
    a.beat()
    a.report()
    hub.pass_time(7.0)
    assert hub.status()["world_size"] == 1
    hub.pass_time(4.0)
    assert hub.status()["flush"]["target"] > 0
    wait(hub, hub.learner(), 25.0)
    assert hub.status()["lineage"] == 2
