"""Makes a failing script small: fewer faults, then fewer peers, then plainer knobs.

A script without some of its faults is another run, with other delays, and may miss what the whole
one met.  So each smaller script is tried with several seeds before it is given up.  A failure of
another kind counts as well: it is as much a failure, and mostly the same one seen elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

from tests.sim.run import Result, run
from tests.sim.script import Fault, Script

SEEDS_TRIED: Final = 12
PLAIN: Final[tuple[tuple[str, Any], ...]] = (
    ("real_bytes", False),
    ("min_world", 0),
    ("on_underflow", 0),
    ("groups", 1),
    ("lag_s", 0.0),
    ("direct", False),
    ("hasty", False),
    ("open_steps", 1),
    ("bound_steps", 0),
    ("step_deadline_s", 1e9),
    ("delay_s", 0.005),
    ("fsync_s", 0.003),
    ("think_s", 0.15),
)
Runner = Callable[[Script], Result]


def shrink(script: Script, *, within_s: float, runner: Runner = run) -> Result:
    """Returns the result of the smallest failing script found in the time given."""
    until_s = time.monotonic() + within_s
    best = runner(script)
    assert best.failure, "a script that does not fail cannot be made smaller"
    smaller = True
    while smaller and time.monotonic() < until_s:
        smaller = False
        for candidate in _candidates(best.script):
            found = _fails(candidate, until_s, runner)
            if found is not None:
                best, smaller = found, True
                break
    return best


def _fails(script: Script, until_s: float, runner: Runner) -> Result | None:
    for offset in range(SEEDS_TRIED):
        if time.monotonic() > until_s:
            return None
        result = runner(replace(script, seed=script.seed + 1_000_003 * offset))
        if result.failure:
            return result
    return None


def _candidates(script: Script) -> Iterator[Script]:
    """Smaller scripts, those that drop most first."""
    count = len(script.faults)
    size = count // 2
    while size >= 1:
        for start in range(0, count, size):
            dropped = set(range(start, min(start + size, count)))
            if len(dropped) < count:
                yield script.without(dropped)
        size //= 2
    for name, value in PLAIN:
        if getattr(script, name) != value:
            yield replace(script, **{name: value})
    for i, fault in enumerate(script.faults):
        for field, value in (("a", fault.a % 4), ("b", fault.b % 12)):
            if getattr(fault, field) != value:
                plainer = Fault(**{**fault._asdict(), field: value})
                yield replace(script, faults=(*script.faults[:i], plainer, *script.faults[i + 1 :]))
