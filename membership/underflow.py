"""What a flush's outcome says of steps when fewer members than `min_world` are left.

Pure functions on values.  Invariant: only what would run again, or has failed by its deadline, is
touched; what committed stays committed.
"""

from __future__ import annotations

from dataclasses import replace

from pccl.membership.decide import Outcome
from pccl.membership.messages import TEXT_CHARACTERS_MAX, StepOutcome
from pccl.transport.native_frames import SuspectCode


def fail_retries(outcome: Outcome, text: str) -> Outcome:
    """Fails what would be run again, because too few members are left to run it."""
    decisions = (
        replace(d, outcome=int(StepOutcome.FAIL), code=int(SuspectCode.UNDERFLOW), text=text)
        if d.outcome == StepOutcome.RETRY
        else d
        for d in outcome.decisions
    )
    return replace(outcome, decisions=tuple(decisions))


def too_few(members: int, min_world: int) -> str:
    """Says that a view is below `min_world`, and what ends that."""
    have = "1 member is" if members == 1 else f"{members} members are"
    return f"{have} left, and min_world is {min_world}; steps run again when enough have come in"


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
