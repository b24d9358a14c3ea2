"""Tickets as text: they come back as they were, and what was changed or cut is no ticket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl.base.errors import UsageError
from pccl.transport.join_ticket import PREFIX, JoinTicket, parse_ticket

TICKET = JoinTicket(
    run_id=bytes(range(16)),
    endpoints=("10.0.0.1:48148", "[::1]:5"),
    ca_fingerprint=bytes(range(32)),
    token_id=bytes(range(8)),
    secret=bytes(range(100, 132)),
    expires=1_900_000_000,
    uses=3,
    role="trainer",
)


def test_a_ticket_comes_back_as_it_was() -> None:
    assert parse_ticket(f"  {TICKET.text}\n") == TICKET
    assert TICKET.text.isprintable() and " " not in TICKET.text


def test_no_repr_shows_the_secret() -> None:
    assert repr(TICKET.secret) not in repr(TICKET) and "secret" not in repr(TICKET)


def test_a_ticket_with_any_character_changed_or_left_out_is_none() -> None:
    text = TICKET.text
    for at in range(len(text)):
        other = "A" if text[at] != "A" else "B"
        for wrong in (text[:at], text[:at] + other + text[at + 1 :], text[:at] + text[at + 1 :]):
            with pytest.raises(UsageError, match="no join ticket"):
                parse_ticket(wrong)


@given(st.text(max_size=200))
def test_whatever_text_comes_nothing_but_a_usage_error_leaves(text: str) -> None:
    for candidate in (text, PREFIX + text):
        with pytest.raises(UsageError):
            parse_ticket(candidate)


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": b""},
        {"secret": b"short"},
        {"uses": 0},
        {"role": "coordinator"},
        {"endpoints": ("a:1,b:2",)},
        {"endpoints": ("nonsense",)},
        {"expires": 0},
    ],
)
def test_a_ticket_out_of_its_limits_cannot_be_made(change: dict[str, object]) -> None:
    fields = {name: getattr(TICKET, name) for name in TICKET.__dataclass_fields__}
    with pytest.raises(ValueError):
        JoinTicket(**{**fields, **change})
