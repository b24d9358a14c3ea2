"""The shipped outcome machine with ModelEngine's face: same world and data plane, C++ inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from pccl._native import OutcomeMachine, xxh3_64
from pccl.membership.messages import Install, MemberInfo
from pccl.transport.native_frames import OpenStep, Report
from tests.sim.model_engine import MANIFEST, Attempt, Done, Hooks, Pending, Post

MemberTuple = tuple[bytes, int, int]


class NativeEngine:
    def __init__(
        self, peer_id: bytes, incarnation: int, hooks: Hooks, peer_id_of: Callable[[int], bytes]
    ) -> None:
        self.incarnation = incarnation
        self.hooks = hooks
        self.generation = 0
        self.members: tuple[MemberInfo, ...] = ()
        self.pending: Pending | None = None
        self.open: dict[int, Attempt] = {}
        self._machine: Any = OutcomeMachine(peer_id, incarnation)
        self._posts: dict[tuple[int, int], set[int]] = {}
        self._peer_id_of = peer_id_of

    # ------------------------------------------------------------ questions

    @property
    def epoch(self) -> int:
        return int(self._machine.epoch)

    @property
    def paused(self) -> bool:
        return bool(self._machine.paused)

    @property
    def frozen(self) -> bool:
        return bool(self._machine.frozen)

    @property
    def next_step(self) -> int:
        return int(self._machine.next_step)

    @property
    def watermark(self) -> int:
        return int(self._machine.watermark)

    def is_member(self) -> bool:
        return int(self._machine.rank) >= 0

    # ------------------------------------------------------------ what moves it

    def begin(self, name: str) -> bool:
        before = self.next_step
        self.open[before] = Attempt(name)
        step, effects = self._machine.begin(xxh3_64(name.encode()))
        if step is None:
            self.open.pop(before)
        self._perform(effects)
        return step is not None

    def on_post(self, post: Post) -> None:
        self._posts.setdefault((post.epoch, post.step), set()).add(post.sender)
        attempt = self.open.get(post.step)
        if attempt is None or attempt.epoch != post.epoch or attempt.waiting or attempt.complete:
            return
        have = self._posts[post.epoch, post.step]
        if not self.frozen and all(p in have for p in attempt.participants):
            attempt.complete, attempt.result = True, attempt.participants
            self._perform(self._machine.seal(post.step, MANIFEST))
            digest = _digest(post.step, attempt.result)
            self._perform(self._machine.complete(post.step, post.epoch, digest))

    def on_done(self, done: Done) -> None:
        sender = self._peer_id_of(done.sender)
        digest = _digest(done.step, done.result)
        self._perform(self._machine.done(sender, done.step, done.epoch, MANIFEST, digest))

    def fence(self, generation: int, target: int) -> Report | None:
        if generation < self.generation:
            return None
        self.generation = generation
        said = self._machine.fence(generation, target)
        opened = tuple(OpenStep(*fields) for fields in said.pop("open"))
        committed = tuple(said.pop("committed"))
        return Report(**said, committed=committed, open=opened)

    def hold(self, generation: int, epoch: int) -> int:
        self.generation = max(self.generation, generation)
        return int(self._machine.hold(generation, epoch))

    def cancel_plan(self, generation: int, epoch: int) -> None:
        self._perform(self._machine.cancel_plan(generation, epoch))

    def activate(
        self, generation: int, epoch: int, members: tuple[MemberInfo, ...], step: int, name: str
    ) -> None:
        if epoch > self.epoch and not self.frozen:
            self.pending = Pending(epoch, members, step, name)
        effects = self._machine.activate(
            generation, epoch, _tuples(members), step, xxh3_64(name.encode())
        )
        self._perform(effects)

    def install(self, msg: Install) -> None:
        before = self.epoch
        self.generation = max(self.generation, msg.generation)
        decisions = [(d.step, d.outcome, d.code, d.text) for d in msg.decisions]
        # The view is adopted between the decisions and the steps that start in it.
        agrees, effects = self._machine.install(
            msg.generation,
            msg.epoch,
            _tuples(msg.members),
            msg.paused,
            msg.committed_below,
            decisions,
        )
        assert agrees, "the peer holds otherwise than was decided"
        first_start = next((i for i, e in enumerate(effects) if e[0] == "start"), len(effects))
        self._perform(effects[:first_start])
        if self.epoch > before:
            self._adopt(msg.members)
        self._perform(effects[first_start:])

    # ------------------------------------------------------------ what it does

    def _perform(self, effects: Iterable[tuple[Any, ...]]) -> None:
        for kind, *fields in effects:
            step = fields[0]
            if kind == "start":
                self._start(step, fields[1])
            elif kind == "send_done":
                self._send_done(step, fields[1])
            elif kind == "committed":
                attempt = self.open.pop(step)
                self.hooks.decided(step, "commit", attempt.result)
            elif kind == "failed":
                self.open.pop(step, None)
                self.hooks.decided(step, "fail", ())
            elif kind == "undo":
                self.open[step].waiting, self.open[step].complete = True, False
                self.hooks.undone(step)
            elif kind == "switched":
                assert self.pending is not None and self.pending.epoch == fields[0]
                known = {m.incarnation: m.first_step for m in self.members}
                self._adopt(
                    tuple(
                        replace(m, first_step=known.get(m.incarnation, fields[1]))
                        for m in self.pending.members
                    )
                )
                self.hooks.entered(fields[0], fields[1])
            else:
                raise AssertionError(f"unexpected effect {kind}")

    def _adopt(self, members: tuple[MemberInfo, ...]) -> None:
        self.members, self.pending = members, None
        self.hooks.in_force(self.epoch, members)

    def _start(self, step: int, epoch: int) -> None:
        attempt = self.open[step]
        attempt.waiting, attempt.complete, attempt.epoch = False, False, epoch
        attempt.participants = tuple(m.incarnation for m in self.members if m.first_step <= step)
        post = Post(self.incarnation, epoch, step)
        for peer in attempt.participants:
            if peer != self.incarnation:
                self.hooks.to_peer(peer, post)
        self.on_post(post)

    def _send_done(self, step: int, epoch: int) -> None:
        attempt = self.open[step]
        done = Done(self.incarnation, epoch, step, attempt.result)
        for peer in attempt.participants:
            if peer != self.incarnation:
                self.hooks.to_peer(peer, done)


def _tuples(members: tuple[MemberInfo, ...]) -> list[MemberTuple]:
    return [(m.peer_id, m.incarnation, m.first_step) for m in members]


def _digest(step: int, result: tuple[int, ...]) -> bytes:
    return hash((step, result)).to_bytes(16, "little", signed=True)
