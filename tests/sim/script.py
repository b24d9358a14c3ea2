"""What a seed means: the knobs of a run and its list of faults, drawn once, then only played.

A script is plain data.  So a run can be told to somebody, made smaller by leaving faults out, and
kept as a regression test after the code, and with it the meaning of seeds, has changed.

Swarm testing: a seed enables a few kinds of faults and leaves the others out, because a run with
everything in it never gets far enough to meet what only some things together bring about.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, NamedTuple

FAULTS_S: Final = 3.5  # faults fall into this time, the calm follows
KINDS: Final = (
    "mixed",
    "mixed",
    "mixed",
    "mixed",
    "mixed",
    "mixed",
    "mixed",
    "mixed",
    "mixed",
    "mixed",
    "mixed",
    "joins",
    "joins",
    "drains",
    "drains",
    "coordinator",
    "coordinator",
    "excludes",
)
EVER: Final = 1e9


class Fault(NamedTuple):
    """One thing that happens.  `a` and `b` choose among whom there is, `x` is mostly a duration
    and `y` a fraction; what they mean for each kind is said in faults.py."""

    at_s: float
    kind: str
    a: int = 0
    b: int = 0
    x: float = 0.0
    y: float = 0.0


@dataclass(frozen=True)
class Script:
    """A whole run.  `seed` drives what is not said here: delays, dice and orders."""

    seed: int
    kind: str = "mixed"
    delay_s: float = 0.005
    fsync_s: float = 0.003
    think_s: float = 0.15
    lag_s: float = 0.0  # of a member agent's thread
    open_steps: int = 1
    min_world: int = 0
    on_underflow: int = 0
    step_deadline_s: float = 1e9
    direct: bool = False  # owners reduce a shard each, instead of everybody everything
    hasty: bool = False  # short leases
    real_bytes: bool = False  # messages go through the codecs
    rejoin: bool = True
    groups: int = 1  # of peers that reduce among themselves
    misfit_s: float = 0.0  # so long some newcomers wait at an entry that members do not come to
    misfit_first: bool = False  # but for the first step of those that start early
    bound_steps: int = 0  # every so many steps one depends on its members; 0: none
    faults: tuple[Fault, ...] = ()

    def without(self, dropped: set[int]) -> Script:
        kept = tuple(f for i, f in enumerate(self.faults) if i not in dropped)
        return replace(self, faults=kept)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Script:
        said: dict[str, Any] = json.loads(text)
        said["faults"] = tuple(Fault(*fields) for fields in said["faults"])
        return Script(**said)

    def __str__(self) -> str:
        plain = Script(0)
        knobs = [
            f"{name}={value!r}"
            for name, value in vars(self).items()
            if name != "faults" and value != getattr(plain, name)
        ]
        lines = [f"Script({', '.join(knobs)}, faults=("]
        lines += [f"    {_call(fault)}," for fault in self.faults]
        return "\n".join([*lines, "))"])


def _call(fault: Fault) -> str:
    plain = Fault(0, "")
    said = [
        f"{name}={value!r}"
        for name, value in fault._asdict().items()
        if name not in ("at_s", "kind") and value != getattr(plain, name)
    ]
    return f"Fault({', '.join([repr(fault.at_s), repr(fault.kind), *said])})"


PEER_FAULTS: Final = (
    *(
        "kill",
        "vanish",
        "stop",
        "freeze",
        "leave",
        "drain",
        "drain",
        "crash",
        "crash",
        "crash_commit",
        "slow",
        "shape",
        "manifest",
        "flip",
    ),
    *("raise", "local", "mass", "duplicate", "stop_all"),
)
LINK_FAULTS: Final = (
    *("reset_agent", "reset_native", "reset_link", "block_agent", "block_native", "block_data"),
    *("delay", "block_peer"),
)
COORDINATOR_FAULTS: Final = (
    *("c_kill", "c_cancel", "c_crash", "c_crash", "c_stop", "c_depose", "c_copy", "c_vanish"),
)
ALL_FAULTS: Final = (*PEER_FAULTS, *LINK_FAULTS, *COORDINATOR_FAULTS, "start", "flush_copy")
BLAMELESS: Final = frozenset(("start", "slow", "leave", "drain", "shape", "manifest", "exclude"))
"""Faults for which nobody may be evicted."""
CONNECTION_FAULTS: Final = frozenset(("reset_agent", "reset_native", "duplicate"))
"""Losses of single connections to the coordinator: they, too, evict nobody."""
MASS_LOSS: Final = frozenset(("start", "c_cut"))
"""For some seconds most members are not heard: that evicts nobody.  Not drawn, but scripted."""


def draw(seed: int, kind: str = "", *, only: Sequence[str] = ()) -> Script:
    """Returns the script of a seed; `only` these faults, if any are named."""
    rng = random.Random(seed)
    kind = kind or rng.choice(KINDS)
    faults = [
        Fault(_round(rng.uniform(0, 0.6)), "start")
        for _ in range(rng.choice((2, 2, 3, 3, 4) if kind != "joins" else (1, 2, 3)))
    ]
    if kind == "joins":
        faults += [Fault(_moment(rng), "start") for _ in range(rng.randint(1, 3))]
    elif kind == "drains":
        faults += [Fault(_moment(rng), "start") for _ in range(rng.randint(1, 3))]
        faults += [
            _draw_fault(rng, "drain")._replace(x=9.0, y=0.0) for _ in range(rng.randint(1, 3))
        ]
    elif kind == "coordinator":
        enabled = rng.sample(sorted(set(COORDINATOR_FAULTS)), rng.randint(1, 3))
        faults += [_draw_fault(rng, rng.choice(enabled)) for _ in range(rng.randint(1, 4))]
    elif kind == "excludes":  # stragglers, policies, and whatever else
        enabled = ["exclude", "exclude", *rng.sample(ALL_FAULTS, rng.randint(0, 4))]
        faults += [_draw_fault(rng, rng.choice(enabled)) for _ in range(rng.randint(2, 9))]
    else:
        enabled = list(only) or rng.sample(ALL_FAULTS, rng.randint(1, 7))
        faults += [_draw_fault(rng, rng.choice(enabled)) for _ in range(rng.randint(1, 9))]
    calm = kind in ("joins", "drains", "coordinator")
    return Script(
        seed=seed,
        kind=kind,
        delay_s=rng.choice((0.001, 0.005, 0.02, 0.05)),
        fsync_s=rng.choice((0.0, 0.003, 0.03, 0.1)),
        think_s=rng.choice((0.1, 0.2, 0.3)),
        lag_s=rng.choice((0.0, 0.0, 0.0, 0.1)),
        open_steps=rng.choice((1, 1, 2, 3)),
        min_world=0 if calm else rng.choice((0, 0, 0, 1, 2)),
        step_deadline_s=1e9 if calm else rng.choice((1e9, 1e9, 1.5)),
        direct=rng.random() < 0.5,
        hasty=not calm and rng.random() < 0.3 and kind != "excludes",
        real_bytes=rng.random() < 0.05,
        rejoin=True,
        groups=1 if calm else rng.choice((1, 1, 1, 1, 2)),
        on_underflow=_underflow(rng, kind),
        misfit_s=rng.choice((2.0, 5.0, EVER)) if rng.random() < 0.15 else 0.0,
        misfit_first=not calm and rng.random() < 0.5,
        bound_steps=(0, 0, 0, 2, 3)[seed % 5],  # not drawn, which would change the rest
        faults=tuple(sorted(faults)),
    )


def _underflow(rng: random.Random, kind: str) -> int:
    """Returns what becomes of steps below min_world; the default mostly."""
    drawn = rng.choice((0, 1, 2, 3))
    if kind == "excludes":
        return drawn
    return drawn if kind == "mixed" and rng.random() < 0.1 else 0


def _round(value: float) -> float:
    return round(value, 4)


def _moment(rng: random.Random) -> float:
    return _round(rng.uniform(0.8, FAULTS_S))


def _draw_fault(rng: random.Random, kind: str) -> Fault:
    return Fault(
        at_s=_moment(rng),
        kind=kind,
        a=rng.randrange(60),
        b=rng.randrange(60),
        x=_round(rng.choice((0.05, 0.3, 0.3, 1.0, 1.0, 2.5)) * rng.uniform(0.5, 1.5)),
        y=_round(rng.random()),
    )
