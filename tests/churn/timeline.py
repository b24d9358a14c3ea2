"""Gaps between commits against what the nemesis did: which ones nothing excuses.  Pure.

At any moment a peer is *healthy* if it is in, neither stopped nor frozen, and no fault is on its
host's network.  It is in from its first commit, or once it has waited for that for ENTRY_S: who has
just come cannot go on alone where the members were struck.  The coordinator is *there* if it runs,
is not stopped, and no fault is on its host's network.  The run *must go on* while at least
`min_world` peers are healthy and, where a decision may be needed, the coordinator is there.  One
may be needed while something is being done to a peer or a link, and afterwards until a step that
began later is committed.  So what is done to the coordinator alone excuses nothing.  Nor must it go
on while more than half of those that are in cannot be heard, for as long as what silences them
lasts, MASS_LOSS_S at most: the coordinator doubts its own network then.

Invariant checked: no stretch without a commit during which the run must go on is longer than the
bar.  A stretch is interrupted by any moment at which the run need not go on, because detection
then starts anew.
"""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from tests.churn.lineages import lineages
from tests.churn.records import Fault, Life
from tests.churn.rules import EMULATED

COORDINATOR_HOST = "coord"
ENTRY_S = 10.0
MASS_LOSS_S = 45.0  # a lease, and what most of the members are waited for
SILENCED = frozenset({"stop", "freeze"})
CUT_OFF = frozenset({"unplug", "cut-coordinator"})
STOPS = frozenset({"stop", "freeze", "block"})
ON_LINKS = frozenset({"cut", "cut-coordinator", "unplug", "reset", "loss"}) | EMULATED
COORDINATOR_FAULTS = frozenset({"coordinator-kill", "coordinator-stop"})


@dataclass(frozen=True, slots=True)
class Span:
    """Part of a peer's existence: its process lives, and it is in."""

    process: str
    host: str
    begin: float
    end: float


class Done(NamedTuple):
    """When a step began, and when it was committed; monotonic."""

    begun_at: float
    committed_at: float


@dataclass(frozen=True, slots=True)
class Gap:
    """The longest stretch without a commit, within one pause, in which the run had to go on."""

    begin: float
    length_s: float
    pause_s: float  # between the two commits around it


def counts_from(life: Life) -> float:
    """When a peer is in: from its first commit, or once it has waited for one long enough."""
    waited = life.admitted_at + ENTRY_S
    return min(life.commits[0].at, waited) if life.commits else waited


def commit_times(lives: Iterable[Life]) -> list[float]:
    return sorted(commit.at for life in lives for commit in life.commits)


def gaps(
    commits: Sequence[float],
    spans: Sequence[Span],
    faults: Sequence[Fault],
    *,
    end: float,
    min_world: int,
    steps: Sequence[Done] = (),
    shortest_s: float = 1.0,
) -> list[Gap]:
    """Returns every stretch that had to go on and did not for more than `shortest_s`.

    Args:
        commits: sorted moments of commits by anybody; the pause after the last ends at `end`.
        steps: of the run, by `done_steps`; without them a fault needs no decision once it is over
            and anything is committed.
    """
    settled = [max(f.until, settled_at(f, steps) if steps else f.at) for f in faults]
    found = []
    for before, after in zip(commits, [*commits[1:], end], strict=True):
        if after - before > shortest_s:
            pairs = zip(faults, settled, strict=True)
            near = {fault: until for fault, until in pairs if until > before and fault.at < after}
            begin, length_s = _longest(before, after, spans, near, min_world)
            if length_s > shortest_s:
                found.append(Gap(begin, length_s, after - before))
    return found


def _longest(
    begin: float, end: float, spans: Sequence[Span], near: Mapping[Fault, float], min_world: int
) -> tuple[float, float]:
    """Walks from change to change; returns the begin and length of the longest stretch."""
    living = [s for s in spans if s.begin < end and s.end > begin]
    changes = {begin, end}
    changes.update(t for f in near for t in (f.at, f.at + MASS_LOSS_S, f.until) if begin < t < end)
    changes.update(t for s in living for t in (s.begin, s.end) if begin < t < end)
    done_to_peers = [f for f in near if f.kind not in COORDINATOR_FAULTS]
    disturbed_at = min((max(f.at, begin) for f in done_to_peers), default=end)
    best = (begin, 0.0)
    since: float | None = None
    for one, two in pairwise(sorted(changes)):
        if must_go_on(one, living, list(near), min_world, disturbed=disturbed_at <= one):
            since = one if since is None else since
            best = max(best, (since, two - since), key=lambda stretch: stretch[1])
        else:
            since = None
    return best


def must_go_on(
    at: float, spans: Sequence[Span], faults: Sequence[Fault], min_world: int, *, disturbed: bool
) -> bool:
    """Whether the run has no excuse at a moment; changes at the moment itself count."""
    active = [fault for fault in faults if fault.at <= at < fault.until]
    if disturbed and not _coordinator_there(active):
        return False
    if _most_silenced(at, spans, active):
        return False
    return healthy(at, spans, active) >= min_world


def _most_silenced(at: float, spans: Sequence[Span], active: Sequence[Fault]) -> bool:
    lately = [fault for fault in active if at < fault.at + MASS_LOSS_S]
    stopped = {name for fault in lately if fault.kind in SILENCED for name in fault.processes}
    cut_off = {host for fault in lately if fault.kind in CUT_OFF for host in fault.hosts}
    present = [span for span in spans if span.begin <= at < span.end]
    return 2 * sum(s.process in stopped or s.host in cut_off for s in present) > len(present)


def healthy(at: float, spans: Sequence[Span], active: Sequence[Fault]) -> int:
    stopped = {name for fault in active if fault.kind in STOPS for name in fault.processes}
    touched = {host for fault in active if fault.kind in ON_LINKS for host in fault.hosts}
    touched.discard(COORDINATOR_HOST)
    return sum(
        span.begin <= at < span.end and span.process not in stopped and span.host not in touched
        for span in spans
    )


def _coordinator_there(active: Sequence[Fault]) -> bool:
    for fault in active:
        if fault.kind in COORDINATOR_FAULTS:
            return False
        if fault.kind in ON_LINKS and fault.hosts == (COORDINATOR_HOST,):
            return False
    return True


def done_steps(lives: Iterable[Life]) -> list[Done]:
    """Returns when each step began anywhere and was first known as committed, by its begin."""
    steps = []
    for run in lineages(lives):
        begun: dict[int, float] = {}
        done: dict[int, float] = {}
        for life in run:
            for at, step in life.invoked:
                begun[step] = min(at, begun.get(step, at))
            for commit in life.commits:
                done[commit.step] = min(commit.at, done.get(commit.step, commit.at))
        steps += [Done(begun[step], done[step]) for step in done if step in begun]
    return sorted(steps)


def settled_at(fault: Fault, steps: Sequence[Done]) -> float:
    """The first commit of a step that began after a fault; never, if there is none.

    A step that was open when the fault struck may still be committed by what was sent before, so
    it shows nothing; the next one does.
    """
    place = bisect.bisect_right(steps, (fault.at, math.inf))
    return steps[place].committed_at if place < len(steps) else math.inf


def recoveries(steps: Sequence[Done], faults: Iterable[Fault]) -> dict[str, list[float]]:
    """Seconds by kind from each fault to the first commit of a step begun after it."""
    found: dict[str, list[float]] = defaultdict(list)
    for fault in faults:
        if (at := settled_at(fault, steps)) < math.inf:
            found[fault.kind].append(at - fault.at)
    return dict(found)


def left_behind(
    lives: Sequence[Life],
    spans: Sequence[Span],
    faults: Sequence[Fault],
    *,
    bar_s: float,
) -> list[tuple[Life, Gap]]:
    """Returns the lives that had no part, for longer than the bar, in a run that went on without
    them although they were healthy: newcomers that nobody lets in, members that nobody hears.

    Args:
        spans: of the lives, in their order.
    """
    everybody = commit_times(lives)
    found = []
    for life, span in zip(lives, spans, strict=True):
        own = [span.begin, *(commit.at for commit in life.commits)]
        for gap in gaps(own, [span], faults, end=span.end, min_world=1, shortest_s=bar_s):
            place = bisect.bisect_right(everybody, gap.begin + bar_s)
            if place < len(everybody) and everybody[place] < gap.begin + gap.length_s:
                found.append((life, gap))
    return found


def unexplained(
    lives: Iterable[Life], host_of: dict[str, str], faults: Sequence[Fault], *, within_s: float
) -> list[Life]:
    """Lives that ended by eviction although nothing was done to them or their network lately.

    What is done to the coordinator explains nothing: its own absence is no silence of others.
    """
    found = []
    for life in lives:
        if life.end != "Evicted":
            continue
        host = host_of[life.process]
        explained = any(
            fault.at <= life.end_at
            and fault.until >= life.end_at - within_s
            and (life.process in fault.processes or host in fault.hosts)
            for fault in faults
        )
        if not explained:
            found.append(life)
    return found
