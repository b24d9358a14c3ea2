"""What one identity may do over all of its connections, however it spreads it over them."""

from __future__ import annotations

import itertools

import pytest

from pccl.base.config import ControlLimits
from pccl.membership import identity_limits
from pccl.membership.identity_limits import Identity, IdentityLimits, Unruly

LIMITS = ControlLimits(
    identity_connections_max=3,
    identity_opening_burst_max=5,
    identity_opening_rate_per_s=2.0,
    message_burst_max=4,
    message_rate_per_s=1.0,
)


def entered(limits: IdentityLimits, name: bytes, now_s: float) -> Identity:
    identity = limits.enter(name, now_s)
    assert identity is not None
    return identity


def test_an_identity_has_so_many_connections_at_once_and_others_have_their_own() -> None:
    limits = IdentityLimits(LIMITS)
    mine = [entered(limits, b"a", 0.0) for _ in range(3)]
    assert limits.enter(b"a", 0.0) is None
    assert limits.enter(b"b", 0.0) is not None
    mine[0].connections -= 1  # one of them ends
    assert limits.enter(b"a", 0.0) is not None


def test_connections_that_are_opened_and_closed_in_a_loop_come_at_a_rate() -> None:
    limits = IdentityLimits(LIMITS)

    def opened(now_s: float) -> int:
        for count in itertools.count():
            identity = limits.enter(b"a", now_s)
            if identity is None:
                return count
            identity.connections -= 1
        raise AssertionError

    assert [opened(now_s) for now_s in (0.0, 0.0, 1.0, 1000.0)] == [5, 0, 2, 5]


def test_a_new_connection_brings_no_new_allowance_of_messages() -> None:
    limits = IdentityLimits(LIMITS)
    first = entered(limits, b"a", 0.0)
    waits = [first.bucket(native=False).take(0.0) for _ in range(4)]
    first.connections -= 1
    again = entered(limits, b"a", 0.0)
    assert waits == [0.0] * 4 and again.bucket(native=False).take(0.0) > 0
    assert again.bucket(native=True).take(0.0) == 0.0  # the other protocol's is another


def test_of_identities_that_are_gone_so_many_are_remembered() -> None:
    limits = IdentityLimits(LIMITS)
    kept = entered(limits, b"kept", 0.0)
    for number in range(identity_limits.IDENTITIES_MAX + 50):
        entered(limits, number.to_bytes(4, "big"), 0.0).connections -= 1
    assert len(limits) == identity_limits.IDENTITIES_MAX
    assert entered(limits, b"kept", 0.0) is kept


def test_a_newcomer_is_let_in_while_all_that_are_remembered_are_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(identity_limits, "IDENTITIES_MAX", 2)
    limits = IdentityLimits(LIMITS)
    first, second = entered(limits, b"a", 0.0), entered(limits, b"b", 0.0)
    entered(limits, b"c", 0.0).connections -= 1
    assert entered(limits, b"a", 0.0) is first and entered(limits, b"b", 0.0) is second
    entered(limits, b"d", 0.0)
    assert len(limits) == 3  # c, which had gone, made room


def test_where_somebody_was_unruly_is_remembered_for_a_while_and_so_many_places_are() -> None:
    unruly = Unruly()
    unruly.note("10.0.0.1", 0.0)
    unruly.note("10.0.0.2", 5.0)
    end_s = identity_limits.UNRULY_S
    assert unruly.has("10.0.0.1", end_s - 1) and not unruly.has("10.0.0.1", end_s)
    assert not unruly.has("10.0.0.3", 0.0)
    unruly.note("10.0.0.3", end_s)
    assert len(unruly) == 2 and unruly.has("10.0.0.2", end_s)
    for number in range(identity_limits.UNRULY_MAX + 50):
        unruly.note(str(number), end_s)
    assert len(unruly) == identity_limits.UNRULY_MAX
    assert unruly.has(str(identity_limits.UNRULY_MAX + 49), end_s) and not unruly.has("0", end_s)
