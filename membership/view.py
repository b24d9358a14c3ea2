"""A view: who takes part, in rank order, under one epoch.

A view is a value.  It comes into force in one of two ways: at once, when a flush (or the very first
plan) ends with an Install, or at a step, when a plan is activated: then the members run the steps
before it in the older view while the newer one has begun.  `first_step` of a member is what lets
both kinds share one rule: a member takes part in the steps from its first one on, also in those
that are tried again in a later view.

Invariant: an epoch names at most one view, ever; a peer is in a view at most once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from pccl.membership.message_parts import demand
from pccl.membership.messages import MemberInfo
from pccl.transport.codec import struct

FIRST_STEP_UNKNOWN: Final = (1 << 64) - 1
"""First step of a joiner while no member has switched yet: it takes part in nothing so far."""


@struct
@dataclass(frozen=True, slots=True)
class Member:
    """One member, named by its incarnation; the rest is what the others need to reach it."""

    peer_id: bytes
    incarnation: int
    secret: bytes
    host: str
    port: int
    host_key: int
    first_step: int
    group: int = 0  # of those that reduce among themselves
    seat: int = 0  # it sits before all of its group with a higher one or none (0)

    def info(self) -> MemberInfo:
        return MemberInfo(
            peer_id=self.peer_id,
            incarnation=self.incarnation,
            secret=self.secret,
            host=self.host,
            port=self.port,
            host_key=self.host_key,
            first_step=self.first_step,
            group=self.group,
            seat=self.seat,
        )


@struct
@dataclass(frozen=True, slots=True)
class View:
    """(epoch, members in rank order); `begins` is the first step that runs in a planned view,
    earlier ones run, and stay, in the view before it."""

    epoch: int
    members: tuple[Member, ...]
    begins: int = 0

    def __post_init__(self) -> None:
        ids = {m.peer_id for m in self.members}
        demand(len(ids) == len(self.members), f"epoch {self.epoch} has a member twice")

    def __contains__(self, incarnation: int) -> bool:
        return any(m.incarnation == incarnation for m in self.members)

    def incarnations(self) -> tuple[int, ...]:
        return tuple(m.incarnation for m in self.members)

    def participants(self, step: int) -> tuple[int, ...]:
        """Returns the incarnations that take part in `step` when it runs in this view."""
        return tuple(m.incarnation for m in self.members if m.first_step <= step)

    def infos(self) -> tuple[MemberInfo, ...]:
        return tuple(m.info() for m in self.members)

    def with_first_step(self, joiners: Iterable[int], step: int) -> View:
        """Returns this view with the joiners' first step known."""
        wanted = frozenset(joiners)
        return View(
            self.epoch,
            tuple(
                replace(m, first_step=step) if m.incarnation in wanted else m for m in self.members
            ),
            step,
        )
