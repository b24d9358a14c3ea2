"""A run inside one process: engines that agree through shared memory, and agents that say nothing.

`FakeRun` keeps the promises of the real thing in the plainest way: a step commits when every live
peer has sealed it, its results are computed from all their inputs at once, and a peer that dies or
closes is simply missing from the next attempt.  Stories call it from a few threads.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from pccl.base.errors import Closed, DeadlineExceeded, PcclError, UsageError
from pccl.communicator import Communicator
from pccl.membership import messages as m
from pccl.membership.agent import MemberAgent, Standing
from pccl.membership.member import Ended
from pccl.outcome import Peer
from pccl.session import Session
from pccl.transport.engine_api import (
    STEP_COMMITTED,
    STEP_FAILED,
    STEP_OPEN,
    BegunStep,
    EngineView,
    StepResult,
)
from pccl.transport.engine_letters import LetterEnd, LetterResult

CODES = ("f8", "f4", "f2", "", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?")
REDUCE: dict[int, Callable[[list[Any], list[float]], Any]] = {
    0: lambda parts, _: np.sum(parts, axis=0, dtype=parts[0].dtype),
    1: lambda parts, weights: np.average(parts, axis=0, weights=weights),
    2: lambda parts, _: np.prod(parts, axis=0, dtype=parts[0].dtype),
    3: lambda parts, _: np.min(parts, axis=0),
    4: lambda parts, _: np.max(parts, axis=0),
}


@dataclass
class Post:
    source: Any
    target: Any
    op: int
    weight: float


@dataclass
class FakeStep:
    posts: dict[bytes, dict[int, Post]] = field(default_factory=dict)
    sealed: set[bytes] = field(default_factory=set)
    result: StepResult | None = None


class FakeRun:
    """The shared truth of one run."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.live: list[bytes] = []
        self.steps: dict[int, FakeStep] = {}
        self.epoch = 0
        self.before_commit: Callable[[int], None] = lambda step: None

    def join(self, name: bytes, next_step: int = 0) -> FakeEngine:
        with self.changed:
            engine = FakeEngine(self, name.ljust(16, b"."), next_step)
            self.live.append(engine.peer_id)
            self.epoch += 1
            return engine

    def remove(self, peer: bytes) -> None:
        with self.changed:
            if peer in self.live:
                self.live.remove(peer)
                self.epoch += 1
            for number in list(self.steps):
                self.judge(number)
            self.changed.notify_all()

    def judge(self, number: int) -> None:
        step = self.steps[number]
        if step.result is not None or not self.live or not step.sealed.issuperset(self.live):
            return
        self.before_commit(number)
        if step.result is not None or not step.sealed.issuperset(self.live):
            return
        posts = [step.posts.get(peer, {}) for peer in self.live]
        results = {tag: self.reduce([mine[tag] for mine in posts]) for tag in posts[0]}
        for mine in posts:
            for tag, post in mine.items():
                post.target[...] = results[tag]
        self.decide(step, STEP_COMMITTED)

    def reduce(self, posts: list[Post]) -> Any:
        parts = [post.source.copy() for post in posts]
        return REDUCE[posts[0].op](parts, [post.weight for post in posts])

    def decide(self, step: FakeStep, state: int, code: int = 0, text: str = "") -> None:
        step.result = StepResult(
            state, self.epoch, 0, tuple(self.live), (0,) * len(self.live), 64, code, text
        )
        self.changed.notify_all()


class FakeEngine:
    """One peer's engine.  Set `decide_deadlines` to None to let proposals go unanswered."""

    port = 4000
    event_fd = -1
    leaving = False

    def __init__(self, run: FakeRun, peer_id: bytes, next_step: int) -> None:
        self.run = run
        self.peer_id = peer_id
        self.next_step = next_step
        self.error: PcclError | None = None
        self.gate_open = True
        self.paused = False
        self.refusals: list[PcclError] = []  # of the next begin_steps
        self.answers_proposals = True
        self.proposals: list[tuple[int, int, str]] = []
        self.overdue: list[tuple[int, int, str, float]] = []  # those for later; a story looks
        self.released: list[int] = []
        self.interrupt_next_wait: BaseException | None = None
        self.closed = False
        self.notices: list[int] = []
        self.collectives: list[tuple[Any, ...]] = []  # posted, and not carried out
        self.refused: list[Any] = []  # calls of which the other end is told that they were
        self.letters: dict[int, LetterResult] = {}  # a story says how they end
        self.posted: list[tuple[Any, ...]] = []
        self.cancelled: list[int] = []

    def begin_step(self, name: str, timeout_s: float) -> BegunStep:
        self.check()
        if self.refusals:
            raise self.refusals.pop(0)
        if not self.gate_open:
            raise DeadlineExceeded("no view")
        with self.run.changed:
            number = self.next_step
            self.next_step += 1
            self.run.steps.setdefault(number, FakeStep())
            rank = self.run.live.index(self.peer_id)
            return BegunStep(number, self.run.epoch, rank, len(self.run.live))

    def post_all_reduce(
        self,
        step: int,
        tag: int,
        input_address: int,
        output_address: int,
        count: int,
        dtype: int,
        op: int,
        weight: float,
        deterministic: bool,
        algorithm: int,
        last: bool = False,
        codec: int = 0,
        left_out: bool = False,
    ) -> None:
        self.check()
        source, target = (_memory(at, count, dtype) for at in (input_address, output_address))
        with self.run.changed:
            mine = self.run.steps[step].posts.setdefault(self.peer_id, {})
            mine[tag] = Post(source, target, op, weight)
        if last:
            self.seal(step)

    def post_collective(self, step: int, tag: int, *what: Any) -> None:
        self.check()
        self.collectives.append((step, tag, *what[:-1]))
        if what[-1]:
            self.seal(step)

    def seal(self, step: int) -> None:
        self.check()
        with self.run.changed:
            self.run.steps[step].sealed.add(self.peer_id)
            self.run.judge(step)

    def wait_step(self, step: int, timeout_s: float) -> bool:
        if self.interrupt_next_wait is not None:
            interruption, self.interrupt_next_wait = self.interrupt_next_wait, None
            raise interruption
        with self.run.changed:
            found = self.run.steps[step]
            self.run.changed.wait_for(
                lambda: found.result is not None or self.error is not None, timeout_s
            )
            if found.result is None:
                self.check()
            return found.result is not None

    def step_result(self, step: int) -> StepResult:
        if step in self.released:
            raise UsageError(f"step {step} was released")
        with self.run.changed:
            found = self.run.steps[step].result
            return found or StepResult(STEP_OPEN, 0, 0, (), (), 0, 0, "")

    def release_step(self, step: int) -> None:
        assert step not in self.released
        self.released.append(step)

    def propose_failure(self, step: int, code: int, text: str, after_s: float = 0.0) -> None:
        if after_s:
            self.overdue.append((step, code, text, after_s))
            return
        self.proposals.append((step, code, text))
        if self.answers_proposals:
            with self.run.changed:
                self.run.decide(self.run.steps[step], STEP_FAILED, code, text)

    def set_notify(self, step: int) -> None:
        self.notices.append(step)

    def post_letter(self, *what: Any) -> int:
        self.check()
        self.posted.append(what)
        number = len(self.posted)
        self.letters[number] = LetterResult(True, LetterEnd.DONE, bytes(16), -1, 0, "")
        return number

    def post_nothing(self, *what: Any) -> int:
        self.check()
        self.refused.append(what)
        number = -len(self.refused)
        self.letters[number] = LetterResult(True, LetterEnd.DONE, bytes(16), -1, 0, "")
        return number

    def end_letter(self, letter: int, end: LetterEnd, text: str = "") -> None:
        with self.run.changed:
            self.letters[letter] = LetterResult(False, end, b"other".ljust(16, b"."), 1, 7, text)
            self.run.changed.notify_all()

    def wait_letter(self, letter: int, timeout_s: float) -> bool:
        if self.interrupt_next_wait is not None:
            interruption, self.interrupt_next_wait = self.interrupt_next_wait, None
            raise interruption
        with self.run.changed:
            self.run.changed.wait_for(
                lambda: not self.letters[letter].open or self.error is not None, timeout_s
            )
            self.check()
            return not self.letters[letter].open

    def letter_result(self, letter: int) -> LetterResult:
        self.check()
        return self.letters[letter]

    def cancel_letter(self, letter: int) -> None:
        self.cancelled.append(letter)
        self.end_letter(letter, LetterEnd.CANCELLED)

    def release_letter(self, letter: int) -> None:
        assert not self.letters[letter].open or self.error is not None
        del self.letters[letter]

    def set_letter_notify(self, letter: int) -> None:
        self.notices.append(letter)

    def fail(self, code: str, text: str) -> None:
        with self.run.changed:
            self.error = Closed(text)
            self.run.changed.notify_all()

    def view(self) -> EngineView:
        with self.run.changed:
            live = tuple(self.run.live)
            rank = live.index(self.peer_id) if self.peer_id in live else -1
            return EngineView(self.run.epoch, rank, 1, self.paused, live, (0,) * len(live))

    def close(self) -> None:
        self.closed = True
        self.error = self.error or Closed()
        self.run.remove(self.peer_id)

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    # What only a real agent calls.
    def drain_events(self) -> list[Any]:
        return []

    def admit(self, **named: Any) -> None: ...
    def prepare_view(self, generation: int, epoch: int, members: Sequence[Any]) -> None: ...
    def hold(self, generation: int, epoch: int) -> int:
        return 0

    def entry_within(self, name: str) -> int:
        return 1

    def activate(self, *args: Any) -> None: ...
    def cancel_plan(self, generation: int, epoch: int) -> None: ...
    def install(self, *args: Any) -> None: ...
    def exclude(self, generation: int, epoch: int, text: str, code: int) -> None: ...
    def stats(self) -> dict[str, int]:
        return {}


class FakeAgent:
    """Stands for a MemberAgent that is admitted and stays so until `stop`."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.standing = Standing(
            admitted=m.Admitted(b"r" * 16, 1, 1, 1, b"s" * 16, 1, 0.25, 3.0, 0, 1)
        )
        self.credentials = None  # the run is not secured
        self.config = SimpleNamespace(group=0, seat=0)
        self.on_stream: Callable[[int, bytes], None] | None = None
        self.steps_decided = 0
        self.wanted: list[int] = []
        self.stopped: list[str] = []
        self.decided_below = 0
        self.drains: list[tuple[float, str]] = []
        self.on_wait: Callable[[], None] = lambda: None
        self.notices: dict[int, list[Callable[[], None]]] = {}

    def wait_until(self, holds: Callable[[Standing], bool], timeout_s: float) -> bool:
        self.on_wait()
        return holds(self.standing)

    def want_world(self, world_size: int) -> None:
        self.wanted.append(world_size)

    def when_decided(self, step: int, notify: Callable[[], None]) -> None:
        self.notices.setdefault(step, []).append(notify)

    def when_ended(self, letter: int, notify: Callable[[], None]) -> None:
        self.notices.setdefault(letter, []).append(notify)

    def announce(self, step: int) -> None:
        for notify in self.notices.pop(step, []):
            notify()

    def end(self, code: str, text: str) -> None:
        self.standing = Standing(ended=Ended(code, text))

    def leave(self, deadline_s: float, reason: str) -> None:
        self.drains.append((deadline_s, reason))

    def stop(self, reason: str, timeout_s: float, decided_below: int = 0) -> bool:
        self.stopped.append(reason)
        self.decided_below = decided_below
        return True


def sit(
    run: FakeRun, name: bytes, *, next_step: int = 0, step_timeout_s: float = 20.0
) -> tuple[Communicator, FakeEngine, FakeAgent]:
    """Lets a peer join and returns its communicator, engine and agent."""
    engine = run.join(name, next_step)
    agent = FakeAgent(engine)
    session = Session(
        engine,
        cast(MemberAgent, agent),
        Peer(engine.peer_id),
        step_timeout_s=step_timeout_s,
    )
    return Communicator(session), engine, agent


def _memory(address: int, count: int, dtype: int) -> Any:
    if count == 0:
        return np.zeros(0, CODES[dtype])
    size = count * np.dtype(CODES[dtype]).itemsize
    raw = (ctypes.c_uint8 * size).from_address(address)
    return np.ctypeslib.as_array(raw).view(CODES[dtype])
