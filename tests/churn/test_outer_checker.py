"""The checker of low-communication runs, shown what it must find.

`Stage` plays a sound run with two founders, a reduction that fails on all, and a newcomer, and
writes it down as the agents do.  Every rule is then shown a run in which something is wrong, in one
history or, as a broken method would make it, alike in all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tests.churn import lessons
from tests.churn.lessons import METHODS, digest
from tests.churn.outer_checker import check_outer
from tests.churn.outer_replay import State, Trainee, first_state, reduce
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
    Told,
)

A, B, C = "aa" * 16, "bb" * 16, "cc" * 16
ROUNDS = 6  # boundaries, or turns of all fragments
FAILS = 2  # the second reduction is given up by everybody
JOINS = 3  # before the third boundary
SPARSE_STEP = "pccl.diloco.sparse"


@dataclass(slots=True)
class Actor:
    life: Life
    trainee: Trainee
    learnt: int = 0


class Stage:
    """Plays one method; `broken` names what the library does wrong in it, alike everywhere."""

    def __init__(self, name: str, broken: str = "") -> None:
        self.name, self.method, self.broken = name, METHODS[name], broken
        self.actors: list[Actor] = []
        self.states = [first_state(self.method)]
        self.step = self.posted = 0
        self._join(A)
        self._join(B)
        self._sync()
        if self.method.delayed:
            self._delayed()
        elif len(self.method.sections) > 1:
            self._streaming()
        else:
            self._synchronous()

    @property
    def lives(self) -> list[Life]:
        return [actor.life for actor in self.actors]

    def _synchronous(self) -> None:
        name = SPARSE_STEP if self.method.top_k else "pccl.diloco"
        for turn in range(1, ROUNDS + 1):
            self._learn(self.method.inner_steps)
            while not self._post(name):
                self._fail()
                self._learn(1)
            self._apply(self._commit(name))
            self._boundary(turn)

    def _delayed(self) -> None:
        name, flies = "pccl.diloco.async", False
        for turn in range(1, ROUNDS + 1):
            self._learn(self.method.inner_steps)
            committed = -1
            if flies and self.posted == FAILS:
                self._fail()
                self.posted += 1  # it fails once
                self._learn(1)
            elif flies:
                committed = self._commit(name)
            self._boundary(turn)
            self._post(name, may_fail=False)
            flies = True
            for actor in self.actors if committed >= 0 else ():
                if any(isinstance(told, Learnt) for told in actor.life.story):  # no newcomer
                    self._told(actor, committed)
        self._apply(self._commit(name))

    def _streaming(self) -> None:
        every = self.method.inner_steps // len(self.method.sections)
        for turn in range(1, 2 * ROUNDS + 1):
            section = turn % len(self.method.sections)
            self._learn(every if turn == 1 else every - self.method.overlap)
            if section == 0:
                self._boundary(turn // 2)
            name = f"pccl.diloco.streaming.{section}"
            passes = self._post(name)
            self._learn(self.method.overlap)
            if passes:
                self._apply(self._commit(name))
            else:
                self._fail()

    # ---- what happens

    def _join(self, peer: str) -> None:
        life = Life(f"process of {peer[:2]}", peer, 0.0)
        self.actors.append(Actor(life, Trainee(self.method, bytes.fromhex(peer))))

    def _boundary(self, turn: int) -> None:
        if turn == JOINS:
            self._join(C)
        self._sync()

    def _sync(self) -> None:
        for actor in self.actors:
            actor.life.story += [Begun(self.step, lessons.SYNC), self._commit_of(lessons.SYNC)]
            if actor.trainee.fresh:
                actor.trainee.enter(self.states[-1])
                entered = Entered(0.0, self.states[-1].outer, self._shared(actor))
                if self.method.delayed and self.states[-1].outer:
                    continue  # it is written down behind the first reduction, as agents do
                actor.life.story.append(entered)
        self.step += 1

    def _learn(self, count: int) -> None:
        for actor in self.actors:
            for _ in range(count):
                actor.life.story.append(Learnt(actor.learnt))
                actor.trainee.learn(actor.learnt)
                actor.learnt += 1

    def _post(self, name: str, *, may_fail: bool = True) -> bool:
        """All begin a reduction; says whether it will be committed."""
        section = lessons.section_of(self.method, name)
        self.posted += 1
        self.parts = []
        for actor in self.actors:
            fresh = not any(isinstance(told, Entered) for told in actor.life.story)
            actor.life.story.append(Begun(self.step, name))
            self.parts.append(actor.trainee.bring(self.step, section, self.states[-1]))
            if fresh:
                entered = Entered(0.0, self.states[-1].outer, self._shared(actor))
                actor.life.story.append(entered)
        self.open = self.step
        self.step += 1
        return not may_fail or self.posted != FAILS

    def _fail(self) -> None:
        for actor in self.actors:
            error = "ViewChanged" if self.method.top_k else "StepFailed"
            actor.life.story.append(Failure(0.0, self.open, error, True, ""))
            actor.trainee.failed(self.open)
            if self.broken == "failed reductions are forgotten":
                actor.trainee.enter(self.states[-1])
                actor.trainee.carried = None
            if self.broken == "failed exchanges change the residual":
                sent = self.parts[self.actors.index(actor)]
                actor.trainee.residual = sent.payload.copy()
                actor.trainee.residual[sent.sent] = 0

    def _commit(self, name: str) -> int:
        section, parts = lessons.section_of(self.method, name), list(self.parts)
        if self.broken == "one is left out" and self.posted > FAILS:
            parts = parts[:-1]
        if self.broken == "one counts twice" and self.posted > FAILS:
            parts = [*parts, parts[0]]
        after = reduce(self.method, self.states[-1], section, parts)
        if self.broken == "momentum is lost" and self.posted > FAILS:
            after = replace(after, momentum=tuple(np.zeros_like(m) for m in after.momentum))
        self.states.append(after)
        for actor in self.actors:
            if (Begun(self.open, name)) in actor.life.story:
                commit = replace(self._commit_of(name), step=self.open)
                actor.life.story.append(commit)
                actor.trainee.settled(self.open, section, after)
        return self.open

    def _apply(self, step: int) -> None:
        for actor in self.actors:
            self._told(actor, step)

    def _told(self, actor: Actor, step: int) -> None:
        state = self.states[-1]
        counted = state.tokens - self.states[-2].tokens
        actor.life.story.append(Applied(0.0, state.outer, step, counted, self._shared(actor)))

    def _commit_of(self, name: str) -> Commit:
        contributors = tuple(actor.life.peer for actor in self.actors)
        return Commit(0.0, self.step, name, 1 + len(contributors), contributors, "", 0, 0, -1, "")

    def _shared(self, actor: Actor) -> Shared:
        state: State = self.states[-1]
        residual = digest([actor.trainee.residual]) if self.method.top_k else ""
        return Shared(0, state.tokens, *state.digests(), residual)


def written(stage: Stage) -> list[Life]:
    """Returns the lives as `records` reads them."""
    for life in stage.lives:
        life.commits = [told for told in life.story if isinstance(told, Commit)]
        life.end = "ended"
    return stage.lives


def rules(lives: list[Life], name: str) -> set[str]:
    return {violation.rule for violation in check_outer(lives, name)}


@pytest.mark.parametrize("name", METHODS)
def test_a_sound_run_has_no_contradictions(name: str) -> None:
    lives = written(Stage(name))
    assert not check_outer(lives, name)
    applied = [sum(isinstance(told, Applied) for told in life.story) for life in lives]
    assert len(lives) == 3 and applied[0] == applied[1] > applied[2] > 0


BROKEN = {
    "failed reductions are forgotten": METHODS,
    "one is left out": METHODS,
    "one counts twice": METHODS,
    "momentum is lost": ["diloco", "async-diloco", "streaming"],
    "failed exchanges change the residual": ["sparse-loco"],
}


@pytest.mark.parametrize(
    ("broken", "name"), [(broken, name) for broken, names in BROKEN.items() for name in names]
)
def test_what_all_do_wrong_alike_is_found(broken: str, name: str) -> None:
    found = rules(written(Stage(name, broken)), name)
    assert "arithmetic" in found, found


def change(life: Life, kind: type[Told], place: int, **changes: Any) -> None:
    """Changes the `place`-th record of a kind; names of `Shared` are those of what it shares."""
    where = [i for i, told in enumerate(life.story) if isinstance(told, kind)][place]
    told: Any = life.story[where]
    shared = {name: value for name, value in changes.items() if name in Shared.__slots__}
    if isinstance(told, Applied | Entered) and "told" not in changes and shared:
        changes = {"shared": replace(told.shared, **shared)}
    changes.pop("told", None)
    life.story[where] = replace(told, **changes)


def drop(life: Life, kind: type[Told], place: int, name: str = "") -> None:
    where = [
        i
        for i, told in enumerate(life.story)
        if isinstance(told, kind) and name in getattr(told, "name", "")
    ]
    del life.story[where[place]]


def begin_anew(life: Life) -> None:
    """The newcomer comes in with a state that nobody has learnt anything for."""
    state = first_state(METHODS["diloco"])
    shared = Shared(0, 0, *state.digests(), "")
    where = next(i for i, told in enumerate(life.story) if isinstance(told, Entered))
    life.story[where] = Entered(0.0, 0, shared)


Plant = Callable[[Life], object]
PLANTED: dict[str, tuple[str, int, Plant]] = {  # rule, which life, what is changed in it
    "other parameters": ("parity", 1, lambda b: change(b, Applied, 3, parameters="other")),
    "another momentum": ("parity", 1, lambda b: change(b, Applied, 3, momentum="other")),
    "other counters": ("parity", 1, lambda b: change(b, Applied, 3, inner=77)),
    "an inner step that nobody took": (
        "arithmetic",
        1,
        lambda b: b.story.insert(4, Learnt(1000)),
    ),
    "an inner step that is missing": ("arithmetic", 1, lambda b: drop(b, Learnt, 0)),
    "tokens that nobody brought": (
        "arithmetic",
        1,
        lambda b: change(b, Applied, 2, tokens=5, told=True),
    ),
    "a newcomer with another state": (
        "arithmetic",
        2,
        lambda c: change(c, Entered, 0, parameters="other"),
    ),
    "a newcomer that brings its own": ("outer", 2, begin_anew),
    "a reduction that was not applied": ("outer", 1, lambda b: drop(b, Applied, 1)),
    "a reduction that was not committed": ("outer", 1, lambda b: drop(b, Commit, 1, "diloco")),
    "a contribution that nobody began": ("arithmetic", 1, lambda b: drop(b, Begun, 0, "diloco")),
    "states that differ": (
        "parity",
        1,
        lambda b: b.story.append(OuterFailure(0.0, "StatesDiffer", "")),
    ),
    "a program that failed": ("outer", 1, lambda b: setattr(b, "end", "UsageError")),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_every_kind_of_contradiction_is_found(planted: str) -> None:
    rule, who, plant = PLANTED[planted]
    lives = written(Stage("diloco"))
    plant(lives[who])
    assert rule in rules(lives, "diloco")


def test_a_residual_that_is_another_is_found() -> None:
    lives = written(Stage("sparse-loco"))
    change(lives[0], Applied, 1, residual="other")
    assert rules(lives, "sparse-loco") == {"residual"}


def test_what_a_peer_loses_as_it_comes_in_anew_is_known_and_its_residual_stays() -> None:
    trainee = Trainee(METHODS["sparse-loco"], bytes.fromhex(A))
    state = first_state(trainee.method)
    trainee.enter(state)
    for number in range(3):
        trainee.learn(number)
    trainee.bring(0, 0, state)
    trainee.settled(0, 0, state)
    kept = trainee.residual.copy()
    trainee.learn(3)
    assert kept.any() and not trainee.missing().any()
    trainee.excluded()
    trainee.enter(state)
    assert (trainee.residual == kept).all() and trainee.lost.any()
    assert not trainee.missing().any()
    trainee.residual[np.flatnonzero(trainee.residual)[0]] += 1
    assert np.count_nonzero(trainee.missing()) == 1
