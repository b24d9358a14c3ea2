"""Computes a low-communication run anew, from what its peers wrote down.  Pure; numpy only.

A `Trainee` is one peer: fed with what that peer wrote, in its order, it says what the peer must
have brought to each reduction.  `reduce` makes the next shared state of that.  All arithmetic is
f32, each operation rounded once and in rank order, so the results are the library's bit by bit or
something is wrong.

Invariant: an inner step is part of one contribution at most, and leaves a trainee only by a
reduction that was committed with it, or when the peer came in anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.churn import lessons
from tests.churn.lessons import LAYERS, WIDTH, Method

F32 = np.float32


@dataclass(frozen=True, slots=True)
class State:
    """What members hold alike after `outer` reductions: f32 vectors, section by section."""

    outer: int
    theta: tuple[Any, ...]
    momentum: tuple[Any, ...]
    inner: int = 0
    tokens: int = 0

    def digests(self) -> tuple[str, str]:
        return lessons.digest(self.theta), lessons.digest(self.momentum)


def first_state(method: Method) -> State:
    theta = tuple(flat(lessons.first_parameters(), layers) for layers in method.sections)
    kept = bool(method.momentum)
    momentum = tuple(np.zeros(part.size if kept else 0, F32) for part in theta)
    return State(0, theta, momentum)


def flat(model: Any, layers: Sequence[int]) -> Any:
    """Returns some layers of a model [LAYERS, WIDTH], one after the other."""
    return model[list(layers)].reshape(-1)


@dataclass(frozen=True, slots=True)
class Brought:
    """A peer's part in one reduction; the places that a sparse method sends."""

    payload: Any
    tokens: int
    sent: Any = None


@dataclass(slots=True)
class Trainee:
    """One peer.

    Attributes:
        fresh: it has come in anew and holds no state yet.
        model: f32 [LAYERS, WIDTH].
        seen, used: tokens since it came in, and how many of them are in each section.
        learnt, given, lost: exact sums of what it has learnt; of what it has sent by committed
            reductions; of what it threw away when it came in anew.  Sparse methods only.
    """

    method: Method
    peer: bytes
    fresh: bool = True
    model: Any = None
    begin: Any = None
    seen: int = 0
    used: list[int] = field(default_factory=list)
    tokens: int = 0
    residual: Any = None
    learnt: Any = None
    given: Any = None
    lost: Any = None
    pending: Any = None  # learnt since its last contribution, exact
    flying: dict[int, tuple[int, Brought]] = field(default_factory=dict)  # by step; tokens seen
    carried: Brought | None = None

    def __post_init__(self) -> None:
        size = LAYERS * WIDTH
        self.residual = np.zeros(size, F32)
        self.learnt, self.given, self.lost, self.pending = (
            np.zeros(size, np.int64) for _ in range(4)
        )

    def excluded(self) -> None:
        """It is out, and what it has learnt since its last contribution is lost."""
        self.fresh = True
        self.flying.clear()
        self.carried = None

    def enter(self, state: State) -> None:
        """It has come in and holds the members' state."""
        self.fresh = False
        self.model = np.empty((LAYERS, WIDTH), F32)
        for section in range(len(self.method.sections)):
            self._write(section, state.theta[section])
        self.begin = state.theta[0]
        self.seen = self.tokens = 0
        self.used = [0] * len(self.method.sections)
        self.lost += self.pending
        self.pending[:] = 0

    def learn(self, number: int) -> None:
        lesson = lessons.lesson(self.peer, number, self.model)
        self.model -= lesson
        exact = lesson.reshape(-1).astype(np.int64)
        self.learnt += exact
        self.pending += exact
        tokens = lessons.tokens_of(self.method, self.peer)
        self.tokens += tokens
        self.seen += tokens

    def bring(self, step: int, section: int, state: State) -> Brought:
        """It begins a reduction; returns what it brings."""
        theta = state.theta[section]
        if self.method.delayed:
            brought = self._bring_delayed(theta)
        elif len(self.method.sections) > 1:
            delta = theta - self._read(section)
            brought = _weighed(delta, self.seen - self.used[section])
        elif self.method.top_k:
            accumulated = self.residual + (theta - self._read(0))
            brought = Brought(accumulated, self.tokens, largest(accumulated, self.method.top_k))
        else:
            brought = _weighed(theta - self._read(0), self.tokens)
        self.flying[step] = (self.seen, brought)
        return brought

    def _bring_delayed(self, theta: Any) -> Brought:
        payload, tokens = self.begin - self._read(0), self.tokens
        if self.carried is not None:
            payload, tokens = payload + self.carried.payload, tokens + self.carried.tokens
            self.carried = None
        self.tokens = 0
        self._write(0, theta)
        self.begin = theta
        return _weighed(payload, tokens)

    def failed(self, step: int) -> None:
        """A reduction failed on all."""
        found = self.flying.pop(step, None)
        if found is not None and self.method.delayed:
            self.carried = found[1]

    def settled(self, step: int, section: int, after: State) -> None:
        """A reduction was committed with it."""
        seen, brought = self.flying.pop(step)
        theta = after.theta[section]
        if self.method.delayed:
            return
        if len(self.method.sections) > 1:
            self.used[section] = seen
            kept = self._read(section) * F32(self.method.alpha)
            self._write(section, kept + theta * F32(1.0 - self.method.alpha))
            return
        if self.method.top_k:
            self.residual = brought.payload.copy()
            self.residual[brought.sent] = 0
            self.given[brought.sent] += brought.payload[brought.sent].astype(np.int64)
            self.pending[:] = 0
        self.tokens = 0
        self._write(0, theta)

    def missing(self) -> Any:
        """Returns what is neither sent, nor kept, nor lost nor still to be contributed; exact."""
        kept = self.residual.astype(np.int64)
        return self.learnt - self.lost - self.pending - self.given - kept

    def _read(self, section: int) -> Any:
        return flat(self.model, self.method.sections[section])

    def _write(self, section: int, theta: Any) -> None:
        layers = self.method.sections[section]
        self.model[list(layers)] = theta.reshape(len(layers), WIDTH)


def _weighed(payload: Any, tokens: int) -> Brought:
    return Brought(payload if tokens else np.zeros_like(payload), tokens)


def largest(accumulated: Any, top_k: int) -> Any:
    """Returns the places of the largest magnitudes of each layer, of equals the first."""
    by_layer = np.abs(accumulated).reshape(LAYERS, WIDTH)
    places = np.argsort(-by_layer, axis=1, kind="stable")[:, :top_k]
    return np.sort((places + WIDTH * np.arange(LAYERS)[:, None]).reshape(-1))


def reduce(method: Method, state: State, section: int, parts: Sequence[Brought]) -> State:
    """Returns the state after one reduction of what was brought, in rank order."""
    tokens = sum(part.tokens for part in parts)
    theta, momentum = list(state.theta), list(state.momentum)
    if tokens and method.top_k:
        theta[0] = state.theta[0] - _sparse_mean(parts)
    elif tokens:
        mean, mu, rate = _mean(parts), F32(method.momentum), F32(method.rate)
        momentum[section] = state.momentum[section] * mu + mean
        theta[section] = theta[section] - rate * (momentum[section] * mu + mean)
    return State(state.outer + 1, tuple(theta), tuple(momentum), state.inner, state.tokens + tokens)


def _mean(parts: Sequence[Brought]) -> Any:
    if len(parts) == 1:
        return parts[0].payload  # a member alone keeps what it has, unrounded
    total, *others = (part.payload * F32(part.tokens) for part in parts)
    for weighed in others:
        total = total + weighed
    return total / F32(sum(part.tokens for part in parts))


def _sparse_mean(parts: Sequence[Brought]) -> Any:
    """The mean of each element over those who have sent it, else zero; weights are alike."""
    total, senders = np.zeros(LAYERS * WIDTH, F32), np.zeros(LAYERS * WIDTH, F32)
    for part in parts:
        if part.tokens:
            total[part.sent] += part.payload[part.sent]
            senders[part.sent] += F32(1)
    return np.divide(total, senders, out=np.zeros_like(total), where=senders > 0)
