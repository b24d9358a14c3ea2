"""Who goes when peers have called different things in one step: newcomers that fit in with nobody.

A member that differs from the others ends a step for all, since nobody can say who is right.  But a
newcomer has to fit in: the members were there before it, and the run that they make is what it
joined.  So where it alone differs, it is put out and the others run the step without it.

Standing is what the coordinator knows by itself, never what a peer says: the first step of each
member.  *New* is who came in after the first of those that are left and whose first step is fewer
than `NEW_FOR_STEPS` back (joining takes several steps where front ends bring the state); all others
are *established*, provided that a step of theirs was ever committed.  What follows from it:

    established and established differ    nobody goes, the step fails on all
    established and new differ            the newcomer goes, whichever of them said so
    new and new differ                    nothing, as long as an established member of their group
                                          is there: it will say which of them does not fit; else
                                          both go

Established members that differ show by what they say of each other, and by their manifests.  So a
newcomer that lies has nobody put out but itself, and newcomers of a group of newcomers.

Pure functions on values; peers are named by their incarnation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pccl.membership.view import Member, View
from pccl.transport.native_frames import OpenStep, Report

NEW_FOR_STEPS: Final = 16
"""So many steps after its first one a member is new.  A newcomer's program may begin by steps that
its front end makes: who is there, how large the state is, the state, its digest."""


@dataclass(frozen=True, slots=True)
class Accusation:
    """A SUSPECT that named a step before or during the flush."""

    step: int
    code: int
    text: str
    accuser: int = 0  # incarnation
    suspects: tuple[bytes, ...] = ()  # peer ids


class Standing:
    """Who is new and who is established among the participants of one step."""

    def __init__(self, view: View, step: int) -> None:
        members = [m for m in view.members if m.first_step <= step]
        self.founded = min((m.first_step for m in members), default=step)
        self.members: Mapping[int, Member] = {m.incarnation: m for m in members}
        self._by_id = {m.peer_id: m.incarnation for m in members}
        self.new = frozenset(
            m.incarnation
            for m in members
            if m.first_step > self.founded and step - m.first_step < NEW_FOR_STEPS
        )

    def established(self, group: int) -> bool:
        """Says whether an established member of this group takes part."""
        return any(m.group == group and i not in self.new for i, m in self.members.items())

    def pairs(self, accusation: Accusation) -> Iterator[tuple[int, int]]:
        """Who differs from whom, by this word: each time the accuser and one other; or itself, if
        it names nobody that takes part."""
        accuser = accusation.accuser
        others = [self._by_id[p] for p in accusation.suspects if p in self._by_id]
        if accuser in self.members:
            yield from ((accuser, other) for other in others or [accuser])

    def is_hearsay(self, accusation: Accusation) -> bool:
        """Says whether this is between newcomers alone, of whom an established member will know
        better: nothing follows from it."""
        pairs = list(self.pairs(accusation))
        return bool(pairs) and all(self._between_newcomers(*pair) for pair in pairs)

    def _between_newcomers(self, one: int, other: int) -> bool:
        group = self.members[one].group
        both = one != other and {one, other} <= self.new
        return both and self.established(group)


def misfits(
    view: View,
    step: int,
    held: Mapping[int, OpenStep | None],
    reports: Mapping[int, Report],
    accusations: Sequence[Accusation],
) -> dict[int, str] | None:
    """Returns the newcomers whose calls in `step` fit in with nobody's, and what to tell them.

    Args:
        view: of the attempt.
        held: what each reporter holds of the step.
        accusations: of this step, that peers called different things.

    Returns:
        None if newcomers are not to blame: the step fails on all.  An empty mapping if nothing has
        been said that counts.
    """
    standing = Standing(view, step)
    if not standing.new or not _has_committed(standing, step, reports):
        return None
    manifests = _manifests(view, held)
    settled: dict[int, bytes] = {}  # what established members of each group have called
    for incarnation, manifest in manifests.items():
        member = standing.members.get(incarnation)
        if member is None or incarnation in standing.new:
            continue
        if settled.setdefault(member.group, manifest) != manifest:
            return None
    found: dict[int, str] = {}
    for accusation in accusations:
        for pair in standing.pairs(accusation):
            if not standing.new.intersection(pair):
                return None  # established members differ among themselves
            if not standing.is_hearsay(accusation):
                for one in standing.new.intersection(pair):
                    found[one] = max(found.get(one, ""), accusation.text, key=len)
    for incarnation in sorted(standing.new & set(manifests)):
        member, own = standing.members[incarnation], manifests[incarnation]
        if settled.get(member.group, own) != own:
            found.setdefault(incarnation, _told_of(member, accusations))
    return found


def _has_committed(standing: Standing, step: int, reports: Mapping[int, Report]) -> bool:
    """Says whether a survivor among the first has seen a step of theirs committed."""
    for incarnation, report in reports.items():
        member = standing.members.get(incarnation)
        if member is None or member.first_step != standing.founded:
            continue
        decided = min(report.watermark, step) - standing.founded
        failed = sum(standing.founded <= f.step < step for f in report.failed)
        if decided > failed or any(s < step for s in report.committed):
            return True
    return False


def _manifests(view: View, held: Mapping[int, OpenStep | None]) -> dict[int, bytes]:
    """Returns what members have called in this attempt, of those that will call nothing more."""
    return {
        i: o.manifest
        for i, o in held.items()
        if o is not None and o.sealed and not o.waiting and o.epoch == view.epoch
    }


def _told_of(member: Member, accusations: Sequence[Accusation]) -> str:
    named = [a.text for a in accusations if member.peer_id in a.suspects]
    return max(named, key=len, default="it called other operations than the members")
