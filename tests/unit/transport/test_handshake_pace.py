"""Who may begin a handshake: so many per second, addresses in turns, members' before others."""

from __future__ import annotations

import asyncio

import pytest

from pccl.base.clock import system_clock
from pccl.base.errors import DeadlineExceeded
from pccl.transport.handshake_pace import (
    HOSTS_MAX,
    PREFERRED_IN_A_ROW,
    FairPlaces,
    HandshakePace,
    KnownHosts,
    SilentPlaces,
    address_group,
)
from pccl.transport.tls_turns import HandshakeTurns


def nobody(host: str) -> bool:
    return False


def test_a_burst_begins_at_once_and_the_rest_at_the_rate() -> None:
    pace = HandshakePace(rate_per_s=10, burst=3, now_s=0.0)
    for ticket in range(6):
        pace.ask(ticket, "10.0.0.1")
    assert [pace.grant(0.0, nobody) for _ in range(4)] == [0, 1, 2, None]
    assert pace.wait_s(0.0) == 0.1
    assert pace.grant(0.05, nobody) is None
    assert [pace.grant(0.1 * k + 0.11, nobody) for k in range(3)] == [3, 4, 5]
    assert pace.wait_s(9.0) is None


def test_a_crowd_behind_one_address_delays_nobody_behind_another() -> None:
    pace = HandshakePace(rate_per_s=1, burst=100, now_s=0.0)
    for ticket in range(50):
        pace.ask(ticket, "10.0.0.1")
    pace.ask(99, "10.0.0.2")
    assert 99 in [pace.grant(0.0, nobody) for _ in range(2)]


def test_addresses_of_members_come_first() -> None:
    pace = HandshakePace(rate_per_s=1, burst=100, now_s=0.0)
    for ticket in range(50):
        pace.ask(ticket, f"10.0.1.{ticket}")
    pace.ask(99, "10.0.0.2")
    assert pace.grant(0.0, lambda host: host == "10.0.0.2") == 99


def test_a_crowd_behind_a_members_address_does_not_keep_newcomers_out() -> None:
    pace = HandshakePace(rate_per_s=1, burst=100, now_s=0.0)
    for ticket in range(60):
        pace.ask(ticket, "10.0.0.2")
    for ticket in range(90, 94):
        pace.ask(ticket, f"10.0.1.{ticket}")

    def members(host: str) -> bool:
        return host == "10.0.0.2"

    granted = [pace.grant(0.0, members) for _ in range(4 * (PREFERRED_IN_A_ROW + 1))]
    assert [ticket for ticket in granted if ticket is not None and ticket >= 90] == [90, 91, 92, 93]
    assert granted[:PREFERRED_IN_A_ROW] == [0, 1, 2], "and yet it comes first"


def test_who_hangs_up_is_forgotten() -> None:
    pace = HandshakePace(rate_per_s=1, burst=9, now_s=0.0)
    pace.ask(1, "a")
    pace.ask(2, "a")
    pace.forget(1)
    pace.forget(7)
    assert pace.grant(0.0, nobody) == 2 and len(pace) == 0


def test_the_addresses_of_one_network_are_one() -> None:
    assert address_group("2001:db8::1") == address_group("2001:db8::ffff")
    assert address_group("::ffff:10.0.0.1") == address_group("10.0.0.1")
    assert address_group("10.0.0.1") != address_group("10.0.0.2")


def test_who_fills_the_places_from_one_address_gives_up_its_own_eldest() -> None:
    places = FairPlaces[int](4)
    assert places.enter(0, "192.0.2.1") is None
    assert [places.enter(n, "192.0.2.66") for n in range(1, 4)] == [None] * 3
    assert places.enter(4, "192.0.2.66") == 1
    assert places.enter(5, "192.0.2.2") == 2, "and so does it for a newcomer from elsewhere"
    assert places.enter(6, "192.0.2.66") == 3
    assert len(places) == 4
    places.leave(0)
    places.leave(0)
    assert places.enter(7, "192.0.2.3") is None


def test_where_all_addresses_hold_as_many_the_eldest_goes() -> None:
    places = FairPlaces[int](2)
    places.enter(1, "2001:db8::1")
    places.enter(2, "192.0.2.1")
    assert places.enter(3, "2001:db8:0:0:5::9") == 1, "one network of IPv6 is one address"
    assert places.enter(4, "192.0.2.2") == 2


def test_in_the_clear_who_has_spoken_gets_the_place_of_the_longest_silence() -> None:
    places = SilentPlaces[int](3)
    for number, spoken in enumerate((False, True, False)):
        assert places.has_room(spoken=spoken)
        assert places.enter(number, spoken=spoken) is None
    assert not places.has_room(spoken=False)
    assert places.enter(3, spoken=True) == 0 and places.enter(4, spoken=True) == 2
    assert not places.has_room(spoken=True), "nobody is silent any more"
    places.leave(1)
    assert places.has_room(spoken=False) and len(places) == 2


def test_nobody_waits_for_a_turn_longer_than_its_patience_and_its_turn_is_then_others() -> None:
    async def story() -> None:
        turns = HandshakeTurns(rate_per_s=5.0, burst=1.0, clock=system_clock, prefer=nobody)
        await turns.take("10.0.0.1", 1.0)
        with pytest.raises(DeadlineExceeded, match="too many wait"):
            await turns.take("10.0.0.1", 0.01)
        began_s = system_clock()
        await turns.take("10.0.0.2", 5.0)
        assert system_clock() - began_s < 1.0, "it waited for a turn of its own alone"

    asyncio.run(story())


def test_of_the_hosts_that_have_proved_themselves_the_last_ones_are_known() -> None:
    known = KnownHosts()
    known.prove("192.0.2.1")
    for number in range(HOSTS_MAX - 1):
        known.prove(f"10.0.{number >> 8}.{number & 255}")
    known.prove("192.0.2.1")
    known.prove("192.0.2.2")
    assert known("192.0.2.1") and known("192.0.2.2") and not known("10.0.0.0")
    known.prove("2001:db8::7")
    assert known(address_group("2001:db8::8"))
