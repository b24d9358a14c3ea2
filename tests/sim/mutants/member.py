"""Mutants of the member machine: what it says again, and whom it believes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pccl.membership import messages as m
from pccl.membership.member import Member
from pccl.membership.member_views import Views
from tests.sim.mutants.catalogue import Patches, mutant, only
from tests.sim.script import Fault, Script, draw


def _few_at_first(seed: int) -> Script:
    """Nobody comes in before all have come, seconds later than the first."""
    script = draw(seed, "joins")
    late = [Fault(3.0 + i, "start") for i in range(2)]
    count = len(script.faults) + len(late)
    return replace(script, min_world=count, faults=(*script.faults, *late))


@mutant("a newcomer says once that it waits at an entry", _few_at_first)
def entry_said_once(p: Patches) -> None:
    def tell(self: Member, now_s: float) -> Any:
        effects = before(self, now_s)
        self._entry_at_s = None
        return effects

    before = p.set(Member, "_tell_entry", tell)


@mutant("a member does not repeat that it has switched", only("c_kill", "reset_agent", "start"))
def switch_said_once(p: Patches) -> None:
    def unsaid(self: Views) -> Any:
        self._switched = None
        return before(self)

    p.set(Views, "_repeat_switched", lambda self, epoch: [])
    before = p.set(Views, "unsaid", unsaid)


@mutant("a member that comes back asks to be admitted anew", only("reset_agent", "c_kill"))
def back_as_a_stranger(p: Patches) -> None:
    from pccl.membership.member_events import Identity

    def hello(self: Identity, admitted: Any, generation: int, epoch: int) -> m.Hello:
        answer: m.Hello = before(self, None, generation, epoch)
        return answer

    before = p.set(Identity, "hello", hello)


@mutant("a peer that is told to go stays", only("stop", "block_peer", "vanish"))
def eviction_ignored(p: Patches) -> None:
    from tests.sim.engine import SimEngine

    def received(self: Member, message: Any, now_s: float) -> Any:
        if isinstance(message, m.Evicted):
            return []
        return before(self, message, now_s)

    p.set(SimEngine, "evicted", lambda self, text: None)
    before = p.set(Member, "_received", received)
