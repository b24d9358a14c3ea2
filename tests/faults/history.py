"""Histories of peers, and what must hold between them whatever happened.

Every process writes down what it was told; nobody corrects it later.  `check` reads all histories
of a run, those of killed processes included, and looks for contradictions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.notes import Tail


@dataclass(frozen=True, slots=True)
class Commit:
    """One step that a process was told is committed."""

    at: float  # monotonic seconds, comparable between the processes of a machine
    step: int
    epoch: int
    contributors: tuple[str, ...]
    digest: str
    retries: int
    wrong: int  # elements that are not the sum of the contributors' values


@dataclass(slots=True)
class History:
    """What one process wrote down; `poll` reads what it wrote since."""

    path: Path
    peer: str = ""
    ready: bool = False
    connecting_at: float | None = None
    commits: list[Commit] = field(default_factory=list)
    end: str | None = None
    end_at: float = 0.0
    end_text: str = ""
    _tail: Tail = field(init=False)

    def __post_init__(self) -> None:
        self._tail = Tail(self.path)

    def poll(self) -> None:
        for fact in self._tail():
            self._take(fact)

    def _take(self, fact: dict[str, Any]) -> None:
        if "step" in fact:
            fact["contributors"] = tuple(fact["contributors"])
            self.commits.append(Commit(**fact))
        elif "ready" in fact:
            self.ready = True
        elif "connecting" in fact:
            self.connecting_at = fact["at"]
        elif "admitted" in fact:
            self.peer = fact["peer"]
        else:
            self.end, self.end_at, self.end_text = fact["end"], fact["at"], fact["text"]

    def first_commit(self, after: float, *, without: Iterable[str] = ()) -> Commit | None:
        """Returns the first commit later than `after` in which none of `without` takes part."""
        gone = frozenset(without)
        found = None
        for commit in reversed(self.commits):
            if commit.at <= after:
                break
            if gone.isdisjoint(commit.contributors):
                found = commit
        return found


def check(histories: Iterable[History], *, world_min: int) -> list[str]:
    """Returns every contradiction, one sentence each; none is the only good answer."""
    told: dict[int, tuple[str, Commit]] = {}
    found: list[str] = []
    for history in histories:
        found += _check_one(history, world_min)
        for commit in history.commits:
            other, first = told.setdefault(commit.step, (history.peer, commit))
            for what in ("epoch", "contributors", "digest"):
                one, two = getattr(first, what), getattr(commit, what)
                if one != two:
                    found.append(
                        f"step {commit.step}: {what} is {one} at {other[:8]}, "
                        f"{two} at {history.peer[:8]}"
                    )
    return found


def _check_one(history: History, world_min: int) -> Iterator[str]:
    who = history.peer[:8]
    for commit in history.commits:
        step = f"step {commit.step} at {who}"
        if commit.wrong:
            yield f"{step}: {commit.wrong} elements are not the sum of {commit.contributors}"
        if history.peer not in commit.contributors:
            yield f"{step}: committed, but not among the contributors"
        if len(set(commit.contributors)) != len(commit.contributors):
            yield f"{step}: a contributor is counted twice"
        if len(commit.contributors) < world_min:
            yield f"{step}: {len(commit.contributors)} contributors, fewer than {world_min}"
    for before, after in zip(history.commits, history.commits[1:], strict=False):
        if after.step != before.step + 1:
            yield f"{who}: step {before.step} is followed by {after.step}"
        if after.epoch < before.epoch:
            yield f"{who}: epoch {before.epoch} is followed by {after.epoch}"
