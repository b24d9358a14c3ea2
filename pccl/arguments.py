"""What the arguments of the public face may be, and what is said of one that is not.

Every check raises UsageError, with the argument's own name, what it may be and what it was.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from pccl.base.errors import UsageError
from pccl.base.numbers import whole_number
from pccl.membership.messages import STRAGGLER_WAIT, Underflow
from pccl.transport.address import Address, parse_addresses
from pccl.transport.join_ticket import JoinTicket, parse_ticket

TICKET_VARIABLE = "PCCL_TICKET"
STRAGGLER_S_MIN = 0.1  # what is shorter is no stall, but how a busy machine works


def check_seconds(name: str, value: Any) -> float:
    """Returns a length of time, which must be finite and positive."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name} must be a number of seconds, not {value!r}")
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{name} must be finite and positive, not {value!r}")
    return float(value)


def optional_seconds(name: str, value: Any) -> float | None:
    return None if value is None else check_seconds(name, value)


def check_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Returns an integer, numpy's too, within its limits."""
    number = whole_number(value)
    if number is None:
        raise UsageError(f"{name} must be an integer, not {value!r}")
    if number < least or (most is not None and number > most):
        within = f"at least {least}" if most is None else f"within {least} to {most}"
        raise UsageError(f"{name} must be {within}, not {number}")
    return number


def optional_number(name: str, value: Any, least: int, most: int) -> int:
    """Returns 0 for None, as messages say it."""
    return 0 if value is None else check_number(name, value, least, most)


def check_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a text like '127.0.0.1:48148', not {value!r}")
    return value


def check_addresses(address: Any) -> tuple[Address, ...]:
    """Returns the coordinator's addresses, given as one text or as several."""
    if isinstance(address, str):
        return parse_addresses(address)
    if not isinstance(address, Sequence) or not all(isinstance(part, str) for part in address):
        raise UsageError(
            f"address must be a text like '10.0.0.7:48148', or a list of such, not {address!r}"
        )
    return parse_addresses(",".join(address))


def find_ticket(ticket: Any) -> JoinTicket | None:
    """Returns the join ticket given, or that of the environment; None for "" or neither."""
    if ticket is None:
        ticket = os.environ.get(TICKET_VARIABLE, "")
    if not isinstance(ticket, str):
        raise UsageError("ticket must be the text that `pccl ca ticket` printed")
    return parse_ticket(ticket) if ticket else None


def addresses_of(address: Any, ticket: JoinTicket | None) -> tuple[Address, ...]:
    """Returns where coordinators are: as the program says, else as the ticket does."""
    if address is not None:
        return check_addresses(address)
    if ticket is None:
        raise UsageError(
            f"give the coordinator's address, or a join ticket (ticket=..., or {TICKET_VARIABLE})"
        )
    if not ticket.addresses:
        raise UsageError(
            "this ticket names no coordinator: give its address, too, or make tickets by "
            "`pccl ca ticket --endpoint HOST:PORT`"
        )
    return ticket.addresses


def parse_underflow(policy: Any) -> int:
    """Returns the number of a policy below `min_world`; 0 for None."""
    if policy is None:
        return 0
    try:
        return int(Underflow[policy.upper()])
    except (KeyError, AttributeError):
        names = ", ".join(p.name.lower() for p in Underflow)
        raise UsageError(f"on_underflow must be one of {names}, not {policy!r}") from None


def parse_straggler(policy: Any) -> float:
    """Returns what a Hello says of the straggler policy; 0 for None."""
    if policy is None:
        return 0.0
    if policy == "wait":
        return STRAGGLER_WAIT
    if isinstance(policy, str):
        raise UsageError(f"straggler must be 'wait' or seconds, not {policy!r}")
    seconds = check_seconds("straggler", policy)
    if seconds < STRAGGLER_S_MIN:
        raise UsageError(f"straggler must be at least {STRAGGLER_S_MIN:g} s, not {policy!r}")
    return seconds
