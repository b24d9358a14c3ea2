"""What the processes of a churn run and its nemesis wrote down, read back.

A *life* is one admission of one process: a process that was evicted may live again as another
peer.  Invariant: nothing here judges; a fact that cannot be read raises, because a history that
nobody understands proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.notes import Tail


@dataclass(frozen=True, slots=True)
class Commit:
    """One step that a peer was told is committed."""

    at: float
    step: int
    name: str
    epoch: int
    contributors: tuple[str, ...]
    digest: str
    retries: int
    wrong: int  # elements that are not what they must be
    lineage: int  # -1: this peer does not hold the state yet
    state: str  # hash of the state after the step


@dataclass(frozen=True, slots=True)
class Failure:
    """One step that ended in an error; step -1: it had not begun."""

    at: float
    step: int
    error: str
    restored: bool
    text: str


@dataclass(frozen=True, slots=True)
class Sight:
    """A view that a peer saw in force between two steps."""

    at: float
    epoch: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Begun:
    """A step that a peer has begun."""

    step: int
    name: str


@dataclass(frozen=True, slots=True)
class Learnt:
    """An inner step of a low-communication method, counted within this life."""

    number: int


@dataclass(frozen=True, slots=True)
class Shared:
    """What members of a low-communication run hold alike, as digests, and a peer's residual."""

    inner: int
    tokens: int
    parameters: str
    momentum: str
    residual: str


@dataclass(frozen=True, slots=True)
class Entered:
    """A peer has come in, with the state after so many reductions."""

    at: float
    outer: int
    shared: Shared


@dataclass(frozen=True, slots=True)
class Applied:
    """A reduction was applied: the `outer`-th, which was step `step`; `tokens` were in it (-1: it
    was not told)."""

    at: float
    outer: int
    step: int
    tokens: int
    shared: Shared


@dataclass(frozen=True, slots=True)
class OuterFailure:
    """What a method's `step` raised."""

    at: float
    error: str
    text: str


@dataclass(slots=True)
class Life:
    """One admission of a process; `events` are its commits and failures in their order, `story` has
    all that it wrote but views and sets."""

    process: str
    peer: str
    admitted_at: float
    invoked: list[tuple[float, int]] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    events: list[Commit | Failure] = field(default_factory=list)
    story: list[Told] = field(default_factory=list)
    sights: list[Sight] = field(default_factory=list)
    end: str | None = None
    end_at: float = 0.0
    end_text: str = ""
    sets: dict[int, tuple[str, ...]] = field(default_factory=dict)

    @property
    def last_at(self) -> float:
        """The last moment at which it certainly lived."""
        return max([self.admitted_at, self.end_at, *(e.at for e in self.events[-1:])])


class History:
    """All lives of one process; `poll` reads what it wrote since."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.pid = 0
        self.offset_s: float | None = None  # what to add to its clock; None: it is this machine's
        self.boot = ""
        self.wall_minus_clock_s = 0.0
        self.lives: list[Life] = []
        self.refused: list[tuple[float, str, str]] = []  # connects that failed: when, error, text
        self.connecting_at: float | None = None
        self.path = path
        self._tail = Tail(path)

    @property
    def ready(self) -> bool:
        return self.pid > 0

    @property
    def life(self) -> Life | None:
        """The life it leads now, or None."""
        last = self.lives[-1] if self.lives else None
        return None if last is None or last.end is not None else last

    def poll(self) -> None:
        for fact in self._tail():
            fact["at"] += self.offset_s or 0.0
            self._take(fact)

    def _take(self, fact: dict[str, Any]) -> None:
        at = fact["at"]
        if "ready" in fact:
            self.pid, self.boot = fact["ready"], fact["boot"]
            self.wall_minus_clock_s = fact["wall"] - at
        elif "connecting" in fact:
            self.connecting_at = at
        elif "admitted" in fact:
            self.lives.append(Life(self.name, fact["admitted"], at))
        elif self.life is None:
            self.refused.append((at, fact["end"], fact["text"]))
        else:
            _take_into(self.life, at, fact)


def _take_into(life: Life, at: float, fact: dict[str, Any]) -> None:
    if "invoke" in fact:
        life.invoked.append((at, fact["invoke"]))
        life.story.append(Begun(fact["invoke"], fact["name"]))
    elif "commit" in fact:
        commit = Commit(
            at=at,
            step=fact["commit"],
            name=fact["name"],
            epoch=fact["epoch"],
            contributors=life.sets[fact["set"]],
            digest=fact["digest"],
            retries=fact["retries"],
            wrong=fact["wrong"],
            lineage=fact["lineage"],
            state=fact["state"],
        )
        life.commits.append(commit)
        life.events.append(commit)
        life.story.append(commit)
    elif "failed" in fact:
        failure = Failure(at, fact["step"], fact["failed"], fact["restored"], fact["text"])
        life.failures.append(failure)
        life.events.append(failure)
        life.story.append(failure)
    elif "defines" in fact:
        life.sets[fact["defines"]] = tuple(fact["peers"])
    elif "view" in fact:
        life.sights.append(Sight(at, fact["view"], life.sets[fact["set"]]))
    elif "end" in fact:
        life.end, life.end_at, life.end_text = fact["end"], at, fact["text"]
    elif "learnt" in fact:
        life.story.append(Learnt(fact["learnt"]))
    elif "entered" in fact:
        life.story.append(Entered(at, fact["entered"], _shared(fact)))
    elif "outer" in fact:
        told = Applied(at, fact["outer"], fact["reduction"], fact["counted"], _shared(fact))
        life.story.append(told)
    elif "outer_failed" in fact:
        life.story.append(OuterFailure(at, fact["outer_failed"], fact["text"]))
    else:
        assert "stuck" in fact, f"a fact that nobody reads: {fact}"


def _shared(fact: dict[str, Any]) -> Shared:
    return Shared(*(fact[name] for name in Shared.__slots__))


Told = Begun | Commit | Failure | Learnt | Entered | Applied | OuterFailure


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing the nemesis did.  `until` is when it undid it; the end of the run if it never did.

    kind: of the events that docs/CHURN.md lists
    processes: those hit; hosts: those whose network it concerns (the coordinator's is "coord").
    """

    kind: str
    at: float
    until: float
    processes: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    text: str = ""


def lives_of(histories: Iterable[History]) -> list[Life]:
    return [life for history in histories for life in history.lives]
