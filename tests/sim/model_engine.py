"""A model of the native outcome machine, with a data plane of contributor sets.

It follows native/src/outcome/outcome.cpp call by call.  An attempt completes here when a POST of
every participant has arrived in its epoch; its result is the set of them, so a wrong sum, a wrong
contributor and a mixed epoch all show as a different value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pccl.membership.messages import Install, MemberInfo, StepOutcome
from pccl.transport.native_frames import OpenStep, Report

OPEN_STEPS_MAX = 3
MANIFEST = bytes(16)


@dataclass
class Attempt:
    name: str
    epoch: int = 0
    waiting: bool = False
    complete: bool = False
    participants: tuple[int, ...] = ()
    result: tuple[int, ...] = ()


@dataclass
class Pending:
    epoch: int
    members: tuple[MemberInfo, ...]
    step: int
    name: str


@dataclass(frozen=True)
class Post:
    sender: int
    epoch: int
    step: int


@dataclass(frozen=True)
class Done:
    sender: int
    epoch: int
    step: int
    result: tuple[int, ...]


@dataclass
class Hooks:
    """What the engine tells the world."""

    to_peer: Callable[[int, Post | Done], None]
    decided: Callable[[int, str, tuple[int, ...]], None]
    undone: Callable[[int], None]
    entered: Callable[[int, int], None]  # epoch, step
    in_force: Callable[[int, tuple[MemberInfo, ...]], None]


@dataclass
class ModelEngine:
    incarnation: int
    hooks: Hooks
    generation: int = 0
    epoch: int = 0
    members: tuple[MemberInfo, ...] = ()
    paused: bool = False
    frozen_target: int = 0
    pending: Pending | None = None
    hold_from: int | None = None
    hold_epoch: int = 0
    entered_at: int | None = None
    next_step: int = 0
    watermark: int = 0
    decided: set[int] = field(default_factory=set)
    failed_ahead: set[int] = field(default_factory=set)
    open: dict[int, Attempt] = field(default_factory=dict)
    posts: dict[tuple[int, int], set[int]] = field(default_factory=dict)
    dones: dict[tuple[int, int], dict[int, tuple[int, ...]]] = field(default_factory=dict)

    # ------------------------------------------------------------ questions

    @property
    def frozen(self) -> bool:
        return self.frozen_target > self.epoch

    def is_member(self) -> bool:
        return any(m.incarnation == self.incarnation for m in self.members)

    def participants(self, step: int) -> tuple[int, ...]:
        return tuple(m.incarnation for m in self.members if m.first_step <= step)

    def may_start(self, step: int) -> bool:
        held = self.hold_from is not None and step >= self.hold_from
        # An activation ends the pause: its joiners may wait at a later step's name.
        paused = self.paused and self.pending is None
        return self.is_member() and not self.frozen and not paused and not held

    # ------------------------------------------------------------ the program

    def begin(self, name: str) -> bool:
        if len(self.open) >= OPEN_STEPS_MAX or any(a.waiting for a in self.open.values()):
            return False
        if self.next_step in self.failed_ahead and self.is_member() and not self.frozen:
            self.next_step += 1
            self._decide(self.next_step - 1, "fail", ())
            return True
        self._enter_if_due(self.next_step, name)
        if not self.may_start(self.next_step):
            return False
        step = self.next_step
        self.next_step += 1
        self.open[step] = Attempt(name)
        self._start(step)
        return True

    def _start(self, step: int) -> None:
        attempt = self.open[step]
        attempt.waiting = attempt.complete = False
        attempt.epoch, attempt.participants = self.epoch, self.participants(step)
        post = Post(self.incarnation, self.epoch, step)
        self.on_post(post)
        for peer in attempt.participants:
            if peer != self.incarnation:
                self.hooks.to_peer(peer, post)

    def _start_waiting(self) -> None:
        for step in sorted(self.open):
            attempt = self.open.get(step)
            if attempt is None or not attempt.waiting:
                continue
            self._enter_if_due(step, attempt.name)
            if not self.may_start(step):
                return
            self._start(step)

    # ------------------------------------------------------------ other peers

    def on_post(self, post: Post) -> None:
        self.posts.setdefault((post.epoch, post.step), set()).add(post.sender)
        attempt = self.open.get(post.step)
        if attempt is None or attempt.epoch != post.epoch or attempt.waiting or attempt.complete:
            return
        if self.frozen:
            return
        have = self.posts[post.epoch, post.step]
        if all(p in have for p in attempt.participants):
            attempt.complete = True
            attempt.result = attempt.participants
            done = Done(self.incarnation, post.epoch, post.step, attempt.result)
            for peer in attempt.participants:
                if peer != self.incarnation:
                    self.hooks.to_peer(peer, done)
            self.on_done(done)

    def on_done(self, done: Done) -> None:
        if self.frozen and done.epoch < self.frozen_target:
            return
        self.dones.setdefault((done.epoch, done.step), {})[done.sender] = done.result
        attempt = self.open.get(done.step)
        if attempt is None or not attempt.complete or attempt.epoch != done.epoch or self.frozen:
            return
        have = self.dones[done.epoch, done.step]
        if all(p in have for p in attempt.participants):
            assert len({have[p] for p in attempt.participants}) == 1, "results differ"
            self._decide(done.step, "commit", attempt.result)

    def _decide(self, step: int, outcome: str, contributors: tuple[int, ...]) -> None:
        self.open.pop(step, None)
        assert step >= self.watermark and step not in self.decided, f"step {step} decided twice"
        self.decided.add(step)
        while self.watermark in self.decided:
            self.decided.discard(self.watermark)
            self.watermark += 1
        self.hooks.decided(step, outcome, contributors)

    # ------------------------------------------------------------ the coordinator

    def fence(self, generation: int, target: int) -> Report | None:
        if generation < self.generation:
            return None
        self.generation = generation
        self.frozen_target = max(self.frozen_target, target)
        return Report(
            generation=generation,
            target=target,
            epoch=self.epoch,
            switched=self.entered_at is not None,
            switch_step=self.entered_at or 0,
            watermark=self.watermark,
            next_step=self.next_step,
            committed=tuple(sorted(self.decided)),
            open=tuple(
                OpenStep(
                    step=s,
                    epoch=a.epoch,
                    sealed=True,
                    complete=a.complete,
                    waiting=a.waiting,
                    manifest=MANIFEST,
                    digest=hash((s, a.result)).to_bytes(16, "little", signed=True),
                    name_hash=0,
                )
                for s, a in sorted(self.open.items())
            ),
        )

    def hold(self, generation: int, epoch: int) -> int:
        self.generation = max(self.generation, generation)
        if self.hold_from is not None and self.hold_epoch == epoch:
            return self.hold_from
        waiting = [s for s, a in self.open.items() if a.waiting]
        self.hold_from, self.hold_epoch = min([self.next_step, *waiting]), epoch
        return self.hold_from

    def cancel_plan(self, generation: int, epoch: int) -> None:
        if generation < self.generation or epoch <= self.epoch:
            return
        self.generation = generation
        if self.hold_epoch <= epoch:  # also a hold of a plan that an earlier coordinator forgot
            self.hold_from = None
        self._start_waiting()

    def activate(
        self, generation: int, epoch: int, members: tuple[MemberInfo, ...], step: int, name: str
    ) -> None:
        if generation < self.generation or epoch <= self.epoch or self.frozen:
            return
        self.generation = generation
        self.pending = Pending(epoch, members, step, name)
        self.hold_from = None
        self._start_waiting()

    def _enter_if_due(self, step: int, name: str) -> None:
        pending = self.pending
        if pending is None or self.frozen or step < pending.step or name != pending.name:
            return
        known = {m.incarnation: m.first_step for m in self.members}
        members = tuple(
            MemberInfo(
                m.peer_id,
                m.incarnation,
                m.secret,
                m.host,
                m.port,
                m.host_key,
                known.get(m.incarnation, step),
            )
            for m in pending.members
        )
        self._adopt(pending.epoch, members, paused=False)
        self.entered_at = step
        self.hooks.entered(self.epoch, step)

    def _adopt(self, epoch: int, members: tuple[MemberInfo, ...], *, paused: bool) -> None:
        assert epoch > self.epoch, "an epoch went back"
        self.epoch, self.members, self.paused = epoch, members, paused
        self.hold_from = self.pending = None
        self.hooks.in_force(epoch, members)
        for table in (self.posts, self.dones):
            for key in [k for k in table if k[0] < epoch and k[1] not in self.open]:
                del table[key]

    def install(self, msg: Install) -> None:
        if msg.generation < self.generation or msg.epoch <= self.epoch:
            return
        mine = next((m for m in msg.members if m.incarnation == self.incarnation), None)
        if mine is None:
            return
        self.generation = msg.generation
        newcomer = not self.is_member()
        assert newcomer or self.frozen, "an Install cut a member's open steps short"
        if newcomer:
            self.next_step = self.watermark = mine.first_step
        decisions = {d.step: d for d in msg.decisions}
        for step in sorted(self.open):
            self._apply(step, decisions[step].outcome)
        for d in msg.decisions:
            if d.outcome == StepOutcome.FAIL and d.step >= self.next_step:
                self.failed_ahead.add(d.step)
        self._adopt(msg.epoch, msg.members, paused=msg.paused)
        self.entered_at = None
        self._start_waiting()

    def _apply(self, step: int, outcome: int) -> None:
        attempt = self.open[step]
        if outcome == StepOutcome.COMMIT:
            assert attempt.complete, f"commit of step {step}, which is not complete here"
            self._decide(step, "commit", attempt.result)
        elif outcome == StepOutcome.FAIL:
            self._decide(step, "fail", ())
        else:
            if not attempt.waiting:
                self.hooks.undone(step)
            attempt.waiting, attempt.complete = True, False
