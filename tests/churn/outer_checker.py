"""Looks for contradictions in histories of low-communication runs.  Pure; knows nothing of pccl.

    parity      all who applied a reduction hold the same parameters, outer momentum and counters
                after it, and so do those who come in after it
    arithmetic  these are what the contributions of the declared contributors come to, each computed
                again from the inner steps that its peer wrote down: none is missing, none counts
                twice, those that were part of a reduction that failed are part of the next
    residual    what a peer keeps for itself is what it has learnt less what was sent in committed
                reductions, bit by bit, and as whole numbers
    outer       a peer applies every reduction that it was told of, one after the other; nobody
                begins anew while somebody holds the state

What a peer had learnt since its last contribution is lost when it dies or comes in anew.  The rules
of `checker` hold for all steps besides.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from tests.churn.checker import Violation
from tests.churn.lessons import METHODS, WHOLE_MAX, digest, is_reduction, is_sync, section_of
from tests.churn.lineages import lineages
from tests.churn.outer_replay import Brought, State, Trainee, first_state, reduce
from tests.churn.records import (
    Applied,
    Begun,
    Commit,
    Entered,
    Failure,
    Learnt,
    Life,
    OuterFailure,
    Shared,
)

# What a method may raise at most: the members were told so alike, and nothing has changed.
ALLOWED = frozenset({"StepFailed", "DeadlineExceeded", "ViewChanged", "Excluded"})
ENDS = frozenset({"ended", "Left", "Evicted", "CoordinatorLost", "OutcomeUnknown", "ConnectError"})


def check_outer(lives: Iterable[Life], method: str) -> list[Violation]:
    """Returns every contradiction; none is the only good answer."""
    lives = list(lives)
    found: list[Violation] = []
    known: dict[tuple[str, str], State] = {}  # by digests, of all lineages so far
    for life in lives:
        found += _endings(life)
    for run in lineages(lives):
        found += _Run(run, method, known).check()
    return found


def _endings(life: Life) -> Iterator[Violation]:
    for told in life.story:
        if isinstance(told, OuterFailure) and told.error not in ALLOWED:
            text = f"{life.peer[:8]} was told {told.error}: {told.text}"
            yield Violation("parity", text, ((life.process, told),))
    if life.end is not None and life.end not in ENDS:
        yield Violation("outer", f"{life.peer[:8]} ended with {life.end}: {life.end_text}")


@dataclass(slots=True)
class _Pupil:
    """A peer's trainee, and how far its story was followed."""

    life: Life
    trainee: Trainee
    place: int = 0
    joining: bool = False
    entry: int = -1  # the last step at which it came in, or may have
    outer: int = -1  # reductions that it has applied, as it wrote
    reduced: set[int] = field(default_factory=set)  # steps told of and not yet applied


class _Run:
    """One lineage: its reductions and entries in the order of their steps."""

    def __init__(self, lives: list[Life], method: str, known: dict[tuple[str, str], State]) -> None:
        self.method = METHODS[method]
        self.lives = lives
        self.known = known
        self.found: list[Violation] = []
        self.pupils = {
            life.peer: _Pupil(life, Trainee(self.method, bytes.fromhex(life.peer)))
            for life in lives
        }
        self.steps: list[int] = []  # after which a state was in force, ascending
        self.places: dict[int, int] = {}  # of these
        self.states: list[State] = []
        self.told: dict[int, tuple[Life, Shared]] = {}  # counters after each reduction

    def check(self) -> list[Violation]:
        reductions: dict[int, tuple[Life, Commit]] = {}
        entries: dict[int, list[tuple[Life, Entered]]] = defaultdict(list)
        for life in self.lives:
            sync = -1
            for told in life.story:
                if isinstance(told, Commit) and is_reduction(told.name):
                    reductions.setdefault(told.step, (life, told))
                elif isinstance(told, Commit) and is_sync(told.name):
                    sync = told.step
                elif isinstance(told, Entered):
                    entries[sync].append((life, told))
        self._in_force(-1, first_state(self.method))
        for step in sorted({*reductions, *entries}):
            if step in entries:
                self._enter(step, entries[step])
            if step in reductions:
                self._reduce(step, *reductions[step])
        for pupil in self.pupils.values():
            self._follow(pupil, None)
        return self.found

    def _in_force(self, step: int, state: State) -> None:
        self.places[step] = len(self.steps)
        self.steps.append(step)
        self.states.append(state)
        self.known[state.digests()] = state

    def _before(self, step: int) -> State:
        """The state that a step begins with."""
        return self.states[bisect.bisect_left(self.steps, step) - 1]

    def _wrong(self, rule: str, text: str, life: Life, record: object) -> None:
        self.found.append(Violation(rule, text, ((life.process, record),)))

    # ---- the shared state

    def _enter(self, step: int, entries: list[tuple[Life, Entered]]) -> None:
        """Newcomers hold the state in force, or a run begins anew because nobody held it."""
        life, first = entries[0]
        if first.outer == self.states[-1].outer:
            return  # that their digests are right shows where their stories are followed
        for holder in self.lives:
            if _holds(holder, step):
                text = f"a run began anew at step {step} although {holder.peer[:8]} held the state"
                self._wrong("outer", text, life, first)
                return
        digests = (first.shared.parameters, first.shared.momentum)
        state = first_state(self.method) if first.outer == 0 else self.known.get(digests)
        if state is None or state.outer != first.outer:
            self._wrong("outer", f"{life.peer[:8]} brought a state of its own", life, first)
            return
        self._in_force(step, state)

    def _reduce(self, step: int, life: Life, commit: Commit) -> None:
        section = section_of(self.method, commit.name)
        parts: list[Brought] = []
        for peer in commit.contributors:
            pupil = self.pupils.get(peer)
            brought = None if pupil is None else self._follow(pupil, step)
            if brought is None:
                text = f"reduction at step {step} counts {peer[:8]}, which brought nothing to it"
                self._wrong("arithmetic", text, life, commit)
                brought = Brought(np.zeros_like(self.states[-1].theta[section]), 0)
            parts.append(brought)
        self._in_force(step, reduce(self.method, self.states[-1], section, parts))

    # ---- each peer's story

    def _follow(self, pupil: _Pupil, until: int | None) -> Brought | None:
        """Follows a peer's story until it begins a reduction, or to the end; returns what it brings
        there."""
        story = pupil.life.story
        while pupil.place < len(story):
            told = story[pupil.place]
            if until is not None and _comes_after(told, until):
                return None
            pupil.place += 1
            brought = self._take(pupil, told)
            if isinstance(told, Begun) and told.step == until and is_reduction(told.name):
                return brought
        return None

    def _take(self, pupil: _Pupil, told: object) -> Brought | None:
        trainee, life = pupil.trainee, pupil.life
        match told:
            case Begun(step, name) if is_reduction(name):
                if trainee.fresh:
                    self._wrong("outer", f"{life.peer[:8]} reduces without a state", life, told)
                    trainee.enter(self._before(step))
                return trainee.bring(step, section_of(self.method, name), self._before(step))
            case Learnt(number):
                if trainee.fresh:
                    self._wrong("outer", f"{life.peer[:8]} learns without a state", life, told)
                    trainee.enter(self.states[-1])
                trainee.learn(number)
            case Commit() if is_reduction(told.name):
                pupil.reduced.add(told.step)
                if told.step not in trainee.flying:
                    text = f"{life.peer[:8]} was told of a reduction that it has not begun"
                    self._wrong("arithmetic", text, life, told)
                    return None
                after = self.states[self.places[told.step]]
                trainee.settled(told.step, section_of(self.method, told.name), after)
            case Commit() if is_sync(told.name):
                if trainee.fresh or pupil.joining:  # by this step, or by another round of it
                    pupil.joining, pupil.entry = True, told.step
                    trainee.enter(self._before(told.step + 1))
            case Failure() if told.error == "Excluded":
                trainee.excluded()
                pupil.outer = -1
                pupil.reduced.clear()
            case Failure():
                trainee.failed(told.step)
            case Entered():
                pupil.outer = told.outer
                pupil.joining = False
                self._compare(life, told, self._before(pupil.entry + 1))
            case Applied():
                self._applied(pupil, told)
        return None

    def _applied(self, pupil: _Pupil, told: Applied) -> None:
        life = pupil.life
        if told.step not in pupil.reduced:
            self._wrong("outer", f"{life.peer[:8]} applied what was not committed", life, told)
            return
        place = self.places[told.step]
        state = self.states[place]
        if pupil.reduced != {told.step} or told.outer != pupil.outer + 1:
            text = f"{life.peer[:8]}: reduction {pupil.outer + 1} had to be applied, then the next"
            self._wrong("outer", text, life, told)
        pupil.outer = told.outer
        pupil.reduced.clear()
        counted = state.tokens - self.states[place - 1].tokens
        if told.tokens not in (-1, counted):
            text = f"step {told.step}: {told.tokens} tokens were told, {counted} were brought"
            self._wrong("arithmetic", text, life, told)
        self._compare(life, told, state)
        other, first = self.told.setdefault(told.step, (life, told.shared))
        for what in ("inner", "tokens", "parameters", "momentum"):
            if getattr(first, what) != getattr(told.shared, what):
                text = f"after the reduction at step {told.step}: {what} differ"
                records = ((other.process, first), (life.process, told))
                self.found.append(Violation("parity", text, records))
        self._check_residual(pupil, told)

    def _compare(self, life: Life, told: Entered | Applied, state: State) -> None:
        outer = state.outer
        if told.outer != outer:
            text = f"{life.peer[:8]} has applied {told.outer} reductions, not {outer}"
            self._wrong("outer", text, life, told)
        digests = state.digests()
        for what, expected in zip(("parameters", "momentum"), digests, strict=True):
            if getattr(told.shared, what) != expected:
                text = f"{life.peer[:8]}: {what} are not those of {outer} reductions"
                self._wrong("arithmetic", text, life, told)

    def _check_residual(self, pupil: _Pupil, told: Applied) -> None:
        if not self.method.top_k:
            return
        trainee, life = pupil.trainee, pupil.life
        if told.shared.residual != digest([trainee.residual]):
            self._wrong("residual", f"{life.peer[:8]}: the residual is another", life, told)
        theta = self.states[self.places[told.step]].theta[0]
        if not ((theta == np.rint(theta)).all() and np.abs(theta).max() < WHOLE_MAX):
            text = "the parameters are not whole numbers, so sums prove nothing"
            self._wrong("residual", text, life, told)
        elif trainee.missing().any():
            count = int(np.count_nonzero(trainee.missing()))
            text = f"{life.peer[:8]}: {count} sums of what was sent and kept are not what it learnt"
            self._wrong("residual", text, life, told)


def _comes_after(told: object, step: int) -> bool:
    """Whether a peer was past the begin of a step when it wrote this."""
    match told:
        case Begun(begun, _):
            return begun > step
        case Commit():
            return told.step >= step
        case _:
            return False


def _holds(life: Life, step: int) -> bool:
    """Whether a peer held the state when it began a step."""
    held = False
    for told in life.story:
        match told:
            case Begun(begun, _) if begun >= step:
                return held and begun == step
            case Entered() | Applied():
                held = True
            case Failure() if told.error == "Excluded":
                held = False
    return False
