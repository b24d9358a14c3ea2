"""What a mutant is: a small wrong change of the protocol, made in this process and taken back.

Each names what it breaks and draws the scripts it is hunted with; most use those of everybody
(`draw`), a few need their own weights.  `hunt.py` runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final
from unittest.mock import patch

from tests.sim.script import Script, draw

Scripts = Callable[[int], Script]


class Patches(ExitStack):
    """Replaces attributes until it is closed."""

    def set(self, owner: Any, name: str, value: Any) -> Any:
        """Puts `value` in the place of an attribute, and returns what was there."""
        before = owner.__dict__[name] if isinstance(owner, type) else getattr(owner, name)
        self.enter_context(patch.object(owner, name, value))
        return before


@dataclass(frozen=True)
class Mutant:
    name: str
    says: str
    apply: Callable[[Patches], None]
    scripts: Scripts


MUTANTS: Final[dict[str, Mutant]] = {}


def mutant(
    says: str, scripts: Scripts = draw
) -> Callable[[Callable[[Patches], None]], Callable[[Patches], None]]:
    """Registers a function that applies a mutant, under the function's name."""

    def register(apply: Callable[[Patches], None]) -> Callable[[Patches], None]:
        name = apply.__name__
        assert name not in MUTANTS
        MUTANTS[name] = Mutant(name, says, apply, scripts)
        return apply

    return register


def only(*kinds: str, **knobs: Any) -> Scripts:
    """Scripts of mixed runs with these kinds of faults, all other things as drawn."""

    def scripts(seed: int) -> Script:
        return replace(draw(seed, "mixed", only=kinds), **knobs)

    return scripts


def of_kind(kind: str, **knobs: Any) -> Scripts:
    def scripts(seed: int) -> Script:
        return replace(draw(seed, kind), **knobs)

    return scripts


def everyone() -> dict[str, Mutant]:
    """Returns all mutants, by name."""
    from tests.sim.mutants import coordinator, durability, engine, member

    assert coordinator and durability and engine and member  # imported for what they register
    return MUTANTS
