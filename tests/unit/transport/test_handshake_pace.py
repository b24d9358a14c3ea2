"""Who may begin a handshake: so many per second, addresses in turns, members' before all."""

from __future__ import annotations

from pccl.transport.handshake_pace import HandshakePace, address_group


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
