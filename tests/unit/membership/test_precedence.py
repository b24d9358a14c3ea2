"""Strangers wait while members do, once per recovery and for a bounded time."""

from __future__ import annotations

from pccl.membership.events import Dialled
from pccl.membership.precedence import HELD_MAX_S, Precedence
from tests.unit.membership.hub import Hub


def test_strangers_wait_exactly_while_members_do() -> None:
    precedence = Precedence()
    told = [(False, 1.0), (True, 2.0), (True, 2.0 + HELD_MAX_S / 2), (False, 2.0 + HELD_MAX_S / 2)]
    assert [precedence.note(*one) for one in told] == [False, True, True, False]
    assert precedence.until_s is None


def test_a_recovery_that_takes_long_keeps_nobody_out_for_long_and_only_once() -> None:
    precedence = Precedence()
    assert precedence.note(True, 5.0) and precedence.until_s == 5.0 + HELD_MAX_S
    for later_s in (HELD_MAX_S, 1.0, 60.0):
        assert not precedence.note(True, 5.0 + later_s)
    precedence.note(False, 70.0)
    assert precedence.note(True, 71.0)


def test_a_kill_is_urgent_from_the_lost_connection_to_the_last_report() -> None:
    hub = Hub()
    victim, *others = hub.members(3)
    stranger = hub.peer()
    stranger.hello()
    stranger.lose(agent=True)
    assert not hub.machine.urgent
    victim.lose(agent=True, native=True)
    assert hub.machine.urgent
    hub.dead(victim)
    assert hub.machine.urgent
    for other in others:
        other.report()
    assert not hub.machine.urgent


def test_a_flush_that_waits_for_one_who_may_be_at_the_door_keeps_the_door_open() -> None:
    hub = Hub()
    victim, back, _ = hub.members(3)
    back.lose(native=True)
    hub.handle(Dialled(back.peer_id, back.incarnation, alive=True))
    victim.lose(agent=True, native=True)
    hub.dead(victim)
    assert not hub.machine.urgent
    back.native_hello()
    assert hub.machine.urgent
