"""Looks for contradictions in the histories of a churn run.  Pure; knows nothing of pccl.

What must hold, whatever happened (numbers as in the reliability design: I1 to I14):

    agreement     all who were told COMMIT for a step hold the same epoch, contributors, digest;
                  a step that failed by everybody's decision committed nowhere; no two groups
                  go on apart                                                           I1, I2
    sums          the digest is that of the exact sum over the declared contributors    I3
    inputs        given back after every failed step                                    I4
    order         each peer's steps are consecutive, failed ones included               I5
    monotony      no peer's epochs go down                                              I6
    views         an epoch names one set of members, for everybody                      I8
    parity        equal state hashes for equal (lineage, step)                          I10
    incarnations  whoever is counted began the step; an incarnation that is out cannot   I14

Every process is heard, also those that were killed: they are held to what they were told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.churn.lineages import epochs, lineages
from tests.churn.records import Commit, Failure, Life, Sight
from tests.faults import values

# Errors by which all members together give a step up.
AGREED = frozenset(
    {"StepFailed", "DescriptorMismatch", "CorruptResult", "DeadlineExceeded", "ViewChanged"}
)
ENTRY = "train"
# The outcome is open or another's; whatever the buffer holds is allowed.
UNRESTORED = frozenset({"OutcomeUnknown", "CoordinatorLost", "Closed"})


@dataclass(frozen=True, slots=True)
class Violation:
    """One contradiction: which rule, what is wrong, and the records that show it."""

    rule: str
    text: str
    records: tuple[tuple[str, object], ...] = ()  # (process, record)

    def __str__(self) -> str:
        lines = [f"{self.rule}: {self.text}"]
        lines += [f"    {process}: {record}" for process, record in self.records]
        return "\n".join(lines)


def check(
    lives: Iterable[Life], *, min_world: int, count: int, lineages_max: int = 1, entry: str = ENTRY
) -> list[Violation]:
    """Returns every contradiction; none is the only good answer.

    Args:
        count: elements of a `train` contribution; 0 leaves the sums unchecked.
        lineages_max: how often the run may have begun, with all members dead each time.
        entry: the step at which newcomers wait, and members that are too few.
    """
    lives = list(lives)
    runs = lineages(lives)
    found: list[Violation] = [*_split(runs, lineages_max), *_one_set_per_epoch(lives)]
    for life in lives:
        found += _one_life(life, min_world, entry)
    for run in runs:
        told: dict[int, list[tuple[Life, Commit]]] = defaultdict(list)
        for life in run:
            for commit in life.commits:
                told[commit.step].append((life, commit))
        found += _agreement(told)
        found += _failed_nowhere_committed(run, told)
        found += _parity(run)
        found += _contributors_were_there(lives, told)
        if count:
            found += _sums(told, count)
    return found


def _split(runs: list[list[Life]], lineages_max: int) -> Iterator[Violation]:
    if len(runs) > lineages_max:
        text = f"{len(runs)} groups went on apart; the run began {lineages_max} times"
        yield Violation("agreement", text, tuple((run[0].process, run[0].peer) for run in runs))
    for before, after in pairwise(runs):
        if epochs(after)[0] <= epochs(before)[1]:
            text = f"two groups committed apart, in epochs {epochs(before)} and {epochs(after)}"
            yield Violation("agreement", text, _both(before[0], "one", after[0], "other"))


def _one_life(life: Life, min_world: int, entry: str) -> Iterator[Violation]:
    who = life.peer[:8]
    for commit in life.commits:
        record = ((life.process, commit),)
        if commit.wrong:
            text = f"step {commit.step} at {who}: {commit.wrong} elements are wrong"
            yield Violation("sums", text, record)
        if life.peer not in commit.contributors:
            yield Violation("agreement", f"{who} was told of a step it has no part in", record)
        if len(set(commit.contributors)) != len(commit.contributors):
            yield Violation("sums", f"step {commit.step}: somebody is counted twice", record)
        # Too few stand still where newcomers wait, and may be brought there by other steps.
        if len(commit.contributors) < min_world and commit.name == entry:
            yield Violation("agreement", f"step {commit.step}: fewer than {min_world}", record)
    for failure in life.failures:
        if failure.step >= 0 and not failure.restored and failure.error not in UNRESTORED:
            text = f"{who}: the input of step {failure.step} was not given back"
            yield Violation("inputs", text, ((life.process, failure),))
    yield from _order(life)
    told: tuple[Sequence[Commit | Sight], ...] = (life.commits, life.sights)
    for told_of in told:
        for before, after in pairwise(told_of):
            if after.epoch < before.epoch:
                text = f"{who}: epoch {before.epoch} is followed by {after.epoch}"
                yield Violation("monotony", text, _both(life, before, life, after))


def _order(life: Life) -> Iterator[Violation]:
    """Steps are consecutive; who was excluded comes back at a later step."""
    expected: int | None = None
    for before, event in pairwise([None, *life.events]):
        if event is None or event.step < 0:
            continue
        if isinstance(before, Failure) and before.error == "Excluded":
            # The step that it was excluded from may be run again, and it may be in by then.
            expected = None if expected is None else max(before.step, event.step)
        if expected is not None and event.step != expected:
            text = f"{life.peer[:8]}: step {expected} had to follow, not {event.step}"
            yield Violation("order", text, _both(life, before, life, event))
        expected = event.step + 1


def _agreement(told: dict[int, list[tuple[Life, Commit]]]) -> Iterator[Violation]:
    for step, commits in told.items():
        (first_life, first), *others = commits
        for life, commit in others:
            for what in ("name", "epoch", "contributors", "digest"):
                one, two = getattr(first, what), getattr(commit, what)
                if one != two:
                    text = f"step {step}: {what} is {one} at one peer, {two} at another"
                    yield Violation("agreement", text, _both(first_life, first, life, commit))


def _failed_nowhere_committed(
    lives: list[Life], told: dict[int, list[tuple[Life, Commit]]]
) -> Iterator[Violation]:
    for life in lives:
        for failure in life.failures:
            if failure.error in AGREED and failure.step in told:
                other, commit = told[failure.step][0]
                text = f"step {failure.step} failed for {life.peer[:8]} and was committed"
                yield Violation("agreement", text, _both(life, failure, other, commit))


def _parity(lives: list[Life]) -> Iterator[Violation]:
    held: dict[tuple[int, int], tuple[Life, Commit]] = {}
    for life in lives:
        for commit in life.commits:
            if commit.lineage < 0:
                continue
            other, first = held.setdefault((commit.lineage, commit.step), (life, commit))
            if first.state != commit.state:
                text = f"after step {commit.step} of lineage {commit.lineage} the states differ"
                yield Violation("parity", text, _both(other, first, life, commit))
    lineage_of: dict[int, tuple[Life, Commit]] = {}
    for life in lives:
        for commit in life.commits:
            if commit.lineage < 0:
                continue
            other, first = lineage_of.setdefault(commit.step, (life, commit))
            if first.lineage != commit.lineage:
                text = f"step {commit.step} belongs to two lineages"
                yield Violation("parity", text, _both(other, first, life, commit))


def _one_set_per_epoch(lives: list[Life]) -> Iterator[Violation]:
    members: dict[int, tuple[Life, object, frozenset[str]]] = {}
    for life in lives:
        for sight in life.sights:
            now = frozenset(sight.members)
            other, record, first = members.setdefault(sight.epoch, (life, sight, now))
            if first != now:
                text = f"epoch {sight.epoch} has two sets of members"
                yield Violation("views", text, _both(other, record, life, sight))
    for life in lives:
        for commit in life.commits:
            seen = members.get(commit.epoch)
            if seen is not None and not seen[2].issuperset(commit.contributors):
                text = f"step {commit.step}: contributors that epoch {commit.epoch} does not have"
                yield Violation("views", text, _both(seen[0], seen[1], life, commit))


def _contributors_were_there(
    lives: list[Life], told: dict[int, list[tuple[Life, Commit]]]
) -> Iterator[Violation]:
    """A peer writes down that it begins a step before it brings anything to it, and an incarnation
    that is out begins none; so whoever is counted has written that it began."""
    begun: dict[str, set[int]] = {life.peer: {step for _, step in life.invoked} for life in lives}
    for step, commits in told.items():
        life, commit = commits[0]
        for peer in commit.contributors:
            if step not in begun.get(peer, ()):
                text = f"step {step} counts {peer[:8]}, which never began it"
                yield Violation("incarnations", text, ((life.process, commit),))


def _sums(told: dict[int, list[tuple[Life, Commit]]], count: int) -> Iterator[Violation]:
    """Computes every sum again, from nothing but the declared contributors and the step."""
    for step, commits in told.items():
        life, commit = commits[0]
        if commit.name != "train":
            continue
        peers = [bytes.fromhex(peer) for peer in commit.contributors]
        if values.digest(values.expected_sum(peers, step, count)) != commit.digest:
            text = f"step {step}: not the sum over its contributors"
            yield Violation("sums", text, ((life.process, commit),))


def _both(one: Life, first: object, two: Life, second: object) -> tuple[tuple[str, object], ...]:
    return ((one.process, first), (two.process, second))
