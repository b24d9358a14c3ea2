"""Decides which state a newcomer believes, from what several members claim.  Pure.

    beside the run   members are asked at different instants, so what they hold is a few revisions
                     apart: the newest revision that more than half of them claim to have reached,
                     of it the content that most claim to hold
    at one step      all hold the same: the content that most claim to hold

Ties go by rank, the lowest first, as in a sync.

Theory.  A member may claim anything.  Where fewer than half of those asked are wrong, the revision
that more than half have reached lies between revisions that right ones hold, and at one step the
wrong ones are the minority, whatever they claim; so what one of them claims decides nothing, and
costs at most a fetch.  Of two that differ none is the minority: beside the run the older revision
is fetched, at one step the lower rank is believed, so that all newcomers do alike.

Invariant: the answer depends on the claims and on the ranks alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

CONFIRMED_BY: Final = 2  # where more than so many are asked, one is not believed alone
APART_MAX: Final = 16  # revisions by which right answers differ, if a step ends as they are given


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be in memory in the end."""

    revision: int
    lineage: int
    root: bytes


@dataclass(frozen=True, slots=True)
class Election:
    """Of claims, by peer.

    Attributes:
        target: what is believed.
        holders: who claims to hold it, lowest rank first.
        odd: who claims what cannot be if that is so; empty where as many are for another one.  A
            revision close by can be: the step was over when the question came.
        tied: who claims another content, and is as many; lowest rank first.
    """

    target: Target
    holders: tuple[bytes, ...]
    odd: tuple[bytes, ...] = ()
    tied: tuple[bytes, ...] = ()


def beside_the_run(claims: Mapping[bytes, Target], ranks: Mapping[bytes, int]) -> Election:
    """Elects among members that were asked at different instants; at least one.

    Who is odd claims another content of the very revision that is elected: of other revisions only
    a step can tell.
    """
    revisions = sorted((target.revision for target in claims.values()), reverse=True)
    reached = revisions[len(revisions) // 2]
    return at_a_step({p: t for p, t in claims.items() if t.revision == reached}, ranks)


def at_a_step(claims: Mapping[bytes, Target], ranks: Mapping[bytes, int]) -> Election:
    """Elects among members that were asked for the state of one step; at least one."""
    ordered = sorted(claims, key=lambda peer: (ranks.get(peer, len(ranks)), peer))
    votes = Counter(claims.values())
    target = min((claims[peer] for peer in ordered), key=lambda one: -votes[one])  # the first such
    others = [peer for peer in ordered if claims[peer] != target]
    rival = max((votes[claims[peer]] for peer in others), default=0)
    tied = rival == votes[target]
    return Election(
        target=target,
        holders=tuple(peer for peer in ordered if claims[peer] == target),
        odd=() if tied else tuple(p for p in others if _cannot_be(claims[p], target)),
        tied=tuple(p for p in others if votes[claims[p]] == rival) if tied else (),
    )


def _cannot_be(claim: Target, right: Target) -> bool:
    apart = abs(claim.revision - right.revision)
    return apart == 0 or apart > APART_MAX or claim.lineage != right.lineage


def confirmed(claims: Sequence[Target], asked: int) -> bool:
    """Says whether what most claim may be believed, of so many that were asked."""
    most = max(Counter(claims).values(), default=0)
    return most >= CONFIRMED_BY or (most > 0 and asked <= CONFIRMED_BY)
