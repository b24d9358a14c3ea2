"""Who goes when peers have called different things in one step: newcomers that fit in with nobody.

Members that differ end a step for all, since nobody can say who is right.  But a newcomer has to
fit in: the members were there before it, and the run that they make is what it joined.  So where
it alone differs, it is put out and the others run the step without it.

Whose word counts is what the coordinator knows by itself: the *eldest* of a group, those whose
first step is the earliest.  Everybody says to everybody what it calls, so whoever differs from
anybody differs from an eldest one or stands by while two eldest differ; they see it, and say so.
They also say who is *new*: who came in after they last began a step of this name.  (The number of
steps since it came in would say less, for front ends of newcomers take several to bring the state.)
What follows from it:

    two eldest differ                             the step fails on all
    an eldest one, and one that is not new        the step fails on all
    an eldest one, and a new one                  the new one is put out
    two others, whatever they say                 nothing: no flush, and a step to run again

So what a newcomer says has no weight at all.  Nobody is new unless a step of the eldest committed.

Pure functions on values; peers are named by their incarnation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from pccl.membership.view import Member, View
from pccl.transport.native_frames import OpenStep, Report


@dataclass(frozen=True, slots=True)
class Accusation:
    """A SUSPECT that named a step before or during the flush."""

    step: int
    code: int
    text: str
    accuser: int = 0  # incarnation
    suspects: tuple[bytes, ...] = ()  # of a mismatch: who differs, the accuser's id, who is new


class Eldest:
    """Who has been there for longest, in each group, of the participants of one step."""

    def __init__(self, view: View, step: int) -> None:
        self.members: Mapping[int, Member] = {
            m.incarnation: m for m in view.members if m.first_step <= step
        }
        self.first: dict[int, int] = {}  # step, by group
        for member in self.members.values():
            known = self.first.get(member.group, member.first_step)
            self.first[member.group] = min(known, member.first_step)

    def __contains__(self, incarnation: int) -> bool:
        member = self.members.get(incarnation)
        return member is not None and member.first_step == self.first[member.group]

    def differ(self, accusation: Accusation) -> list[int]:
        """Returns who has called something else than the accuser, by its word."""
        own = self.members[accusation.accuser].peer_id
        named = accusation.suspects
        return self._named(named[: named.index(own)] if own in named else named)

    def new_to(self, accusation: Accusation) -> set[int]:
        """Returns who is new by the word of an accuser that is not."""
        accuser = self.members[accusation.accuser]
        named = accusation.suspects
        told = named[named.index(accuser.peer_id) :] if accuser.peer_id in named else ()
        since = accuser.first_step
        return {i for i in self._named(told) if self.members[i].first_step > since}

    def _named(self, ids: Sequence[bytes]) -> list[int]:
        return [i for i, m in self.members.items() if m.peer_id in ids]


def is_hearsay(view: View, accusation: Accusation) -> bool:
    """Says whether nothing follows from what was said: an eldest member sees as much, and will say
    who does not fit in."""
    return accusation.accuser not in Eldest(view, accusation.step)


def misfits(
    view: View,
    step: int,
    held: Mapping[int, OpenStep | None],
    reports: Mapping[int, Report],
    accusations: Sequence[Accusation],
) -> dict[int, str] | None:
    """Returns the newcomers whose calls in `step` do not fit in, and what to tell them.

    Args:
        view: of the attempt.
        held: what each reporter holds of the step.
        accusations: of this step, that peers called different things.

    Returns:
        None if newcomers are not to blame: the step fails on all.  An empty mapping if nothing has
        been said that counts.
    """
    eldest = Eldest(view, step)
    heard = [a for a in accusations if a.accuser in eldest]
    new: set[int] = set().union(*(eldest.new_to(a) for a in heard))
    manifests = _manifests(view, held)
    called: dict[int, bytes] = {}  # by the eldest of each group
    for incarnation in sorted(manifests):
        if incarnation in eldest:
            group = eldest.members[incarnation].group
            if called.setdefault(group, manifests[incarnation]) != manifests[incarnation]:
                return None
    if heard and not _has_committed(eldest, new, step, reports):
        return None
    found: dict[int, str] = {}
    for accusation in heard:
        differ = eldest.differ(accusation)
        if not differ or not new.issuperset(differ):
            return None
        for one in differ:
            found[one] = max(found.get(one, ""), accusation.text, key=len)
    for incarnation in sorted(new & set(manifests)):
        own = manifests[incarnation]
        if called.get(eldest.members[incarnation].group, own) != own:
            found.setdefault(incarnation, _told_of(eldest.members[incarnation], accusations))
    return found


def _has_committed(
    eldest: Eldest, new: AbstractSet[int], step: int, reports: Mapping[int, Report]
) -> bool:
    """Says whether a survivor that is not new has seen a step of its own committed."""
    for incarnation, report in reports.items():
        if incarnation in new or incarnation not in eldest.members:
            continue
        first = eldest.members[incarnation].first_step
        failed = sum(first <= f.step < step for f in report.failed)
        if min(report.watermark, step) - first > failed or any(s < step for s in report.committed):
            return True
    return False


def _manifests(view: View, held: Mapping[int, OpenStep | None]) -> dict[int, bytes]:
    """Returns what members have called in this attempt, of those that will call nothing more."""
    return {
        i: o.manifest
        for i, o in held.items()
        if o is not None and o.sealed and not o.waiting and o.epoch == view.epoch and i in view
    }


def _told_of(member: Member, accusations: Sequence[Accusation]) -> str:
    named = [a.text for a in accusations if member.peer_id in a.suspects]
    return max(named, key=len, default="it called other operations than the members")
