"""What a flush's outcome says of steps when fewer members than `min_world` are left.

Pure functions on values.  Invariant: only what would run again, or has failed by its deadline, is
touched; what committed stays committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from pccl.base.ids import short_id
from pccl.membership.decide import Outcome
from pccl.membership.messages import TEXT_CHARACTERS_MAX, StepOutcome
from pccl.transport.native_frames import SuspectCode

NAMED_MAX: Final = 8  # of those that went at once; a text has room for more than that


def fail_retries(outcome: Outcome, text: str) -> Outcome:
    """Fails what would be run again, because too few members are left to run it."""
    decisions = (
        replace(d, outcome=int(StepOutcome.FAIL), code=int(SuspectCode.UNDERFLOW), text=text)
        if d.outcome == StepOutcome.RETRY
        else d
        for d in outcome.decisions
    )
    return replace(outcome, decisions=tuple(decisions))


def too_few(members: int, min_world: int, gone: Sequence[bytes]) -> str:
    """Says that a view is below `min_world` without `gone`, and what ends that.

    Whoever hears it later may see a view that others have left because of this.
    """
    have = "1 member is" if members == 1 else f"{members} members are"
    names = ", ".join(map(short_id, gone[:NAMED_MAX]))
    more = f" and {len(gone) - NAMED_MAX} more" if len(gone) > NAMED_MAX else ""
    without = f" without peer {names}{more}" if gone else ""
    return (
        f"{have} left{without}, and min_world is {min_world}; "
        "steps run again when enough have come in"
    )


def tell_pause(outcome: Outcome, members: int, min_world: int) -> Outcome:
    """Adds why a step was not done in time in a view in which none runs."""
    why = f"; paused: {members} of min_world {min_world} members are in, and it waits for more"
    decisions = (
        replace(d, text=d.text[: TEXT_CHARACTERS_MAX - len(why)] + why)
        if (d.outcome, d.code) == (StepOutcome.FAIL, SuspectCode.DEADLINE)
        else d
        for d in outcome.decisions
    )
    return replace(outcome, decisions=tuple(decisions))
