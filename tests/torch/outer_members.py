"""Members that train with a low-communication method, and die where a test says.

The inner optimizer is a table of numbers: what member n subtracts from parameter p at inner step t
is a pure function of (n, t, p).  So `outer_replay` can compute the run anew, bit by bit, from the
history that members tell.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import pccl
from pccl.diloco import (
    AsyncDiLoCo,
    DiLoCo,
    OuterOptimizer,
    OuterStep,
    SparseLoCo,
    StreamingDiLoCo,
)
from pccl.state.joining import Joining
from pccl.step import Step, check_all_reduce
from pccl.ticket import Ticket
from tests.torch.members import Member

WIDTH = 16
LAYERS = 4
TOKENS = (1, 2, 1, 3, 2)  # of each member, per inner step
H = {"diloco": 3, "async": 3, "eager": 3, "streaming": 8, "sparse": 3}
FRAGMENTS, OVERLAP, ALPHA = 4, 1, 0.5
LATE_S = 8.0
OUTER_STEP, SYNC = "pccl.diloco", "pccl.sync"


def make_model(width: int = WIDTH) -> torch.nn.Sequential:
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(LAYERS)))
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.from_numpy(change(99, 0, number, tuple(parameter.shape))))
    return model


def change(member: int, inner_step: int, number: int, shape: tuple[int, ...]) -> Any:
    """What a member learns: multiples of 420, which 1 to 7 divide, so that means are whole too."""
    dice = np.random.default_rng([member, inner_step, number])
    return (420.0 * dice.integers(-3, 4, shape)).astype(np.float32)


def make(method: str, comm: pccl.Communicator, model: Any, **options: Any) -> Any:
    h = H[method]
    match method:
        case "diloco":
            return DiLoCo(comm, model, inner_steps=h, deterministic=True, **options)
        case "async" | "eager":
            eager = method == "eager"
            return AsyncDiLoCo(
                comm, model, inner_steps=h, eager=eager, deterministic=True, **options
            )
        case "streaming":
            return StreamingDiLoCo(
                comm,
                model,
                inner_steps=h,
                fragments=FRAGMENTS,
                overlap=OVERLAP,
                alpha=ALPHA,
                codec=None,
                deterministic=True,
                **options,
            )
        case _:
            return SparseLoCo(
                comm, model, inner_steps=h, top_k=8, value_bits=32, decay=1.0, **options
            )


@dataclass(slots=True)
class Trained:
    """What a member's program returns; arrays are numpy's, for tensors go through pipes as files.

    Attributes:
        history: per reduction its number, fragment, contributors and tokens.
        digests: per reduction that of the shared state after it.
        failed: inner steps after which `step` raised.
        entered: reductions that the state held when this member came in, each time.
    """

    number: int
    history: list[tuple[int, int | None, tuple[bytes, ...], int]] = field(default_factory=list)
    digests: dict[int, int] = field(default_factory=dict)
    failed: list[int] = field(default_factory=list)
    entered: list[int] = field(default_factory=list)
    retries: int = 0
    sent: list[int] = field(default_factory=list)  # bytes, each time that newcomers were sent some
    parameters: list[Any] = field(default_factory=list)
    momentum: list[Any] = field(default_factory=list)
    residual: Any = None
    gave_up: int = 0  # how often this member has left since its state did not come in time
    longest_s: float = 0.0  # of its calls of `step`


class Doom:
    """Where this process kills itself: at the `at`-th time that it comes to a place.

    inner     before an inner step is counted
    flying    the same, while a reduction is on its way in the background
    begin     a reduction has begun, and nothing of it is posted
    posted    all of it is posted, and not sealed
    sealed    it is sealed, and others may have received all
    reduce    3 ms later, in the midst of megabytes
    decided   it is committed, and nothing of it is applied
    between   it is applied, and the model goes on
    sync      a step is sealed in which joiners come in, or are given the state
    fetch     a joiner begins to fetch the state, beside the run
    complete  a joiner is in its first step, and asks what the state is now
    entry     joiners have the state; nothing is on its way
    """

    def __init__(self, place: str, at: int, how: str = "killed") -> None:
        """`how`: killed, stopped (until somebody lets it go on) or late, by LATE_S."""
        self._place, self._left, self._how = place, at, how
        self.sleeps_in = 0  # entries, until this one is too long for the others
        if place:
            self._watch()

    def pass_by(self, place: str, delay_s: float = 0.0) -> None:
        if place != self._place:
            return
        self._left -= 1
        if self._left == 0 and self._how == "late":
            time.sleep(LATE_S)
        elif self._left == 0 and self._how == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self._left == 0:
            threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
            if not delay_s:
                time.sleep(60.0)

    def _watch(self) -> None:
        enter, seal = Step.__enter__, Ticket.seal

        def entering(step: Step) -> Step:
            entered = enter(step)
            if step._name.startswith(OUTER_STEP):
                self.pass_by("begin")
            return entered

        def sealing(ticket: Ticket) -> None:
            outer = ticket.name.startswith(OUTER_STEP)
            self.pass_by("posted" if outer else "sync")
            seal(ticket)
            if outer:
                self.pass_by("sealed")
                self.pass_by("reduce", 0.003)

        for name in ("fetch", "complete"):
            self._watch_joining(name)
        _replace(Step, "__enter__", entering)
        _replace(Ticket, "seal", sealing)
        for owner, name in ((OuterOptimizer, "_commit"), (SparseLoCo, "_apply")):
            self._watch_decided(owner, name)

    def _watch_joining(self, name: str) -> None:
        act = getattr(Joining, name)

        def acting(*args: Any) -> Any:
            self.pass_by(name)
            return act(*args)

        _replace(Joining, name, acting)

    def _watch_decided(self, owner: type, name: str) -> None:
        apply = getattr(owner, name)

        def applying(*args: Any) -> Any:
            self.pass_by("decided")
            return apply(*args)

        _replace(owner, name, applying)


def spoil(at: int, is_meant: Callable[[str], bool]) -> None:
    """Makes this process post something else in its `at`-th step of a kind, so that it fails on
    all."""
    left = [at]
    seal = Ticket.seal

    def sealing(ticket: Ticket) -> None:
        if is_meant(ticket.name):
            left[0] -= 1
            if left[0] == 0:
                work = check_all_reduce(np.zeros(3), "sum", 1.0, None, False, "auto")
                ticket.post(work.descriptor, work.source, work.target, 77, 1.0)
        seal(ticket)

    _replace(Ticket, "seal", sealing)


def watch_what_is_sent(told: Trained) -> None:
    """Notes how much members bring to the steps in which newcomers are given what they lack."""
    post, seen = Ticket.post, set[Ticket]()

    def posting(ticket: Ticket, descriptor: Any, source: Any, *others: Any, **named: Any) -> None:
        if ticket.name == f"{SYNC}.data":
            if ticket not in seen:
                seen.add(ticket)
                told.sent.append(0)
            told.sent[-1] += source.byte_count
        post(ticket, descriptor, source, *others, **named)

    _replace(Ticket, "post", posting)


def _replace(owner: type, name: str, method: Callable[..., Any]) -> None:
    """In this process only, which is a member's."""
    setattr(owner, name, method)


def train(
    me: Member,
    method: str,
    until: int,
    *,
    start: int = 1,
    doom: str = "",
    doomed_at: int = 3,
    doomed_how: str = "killed",
    fetches: bool = True,
    width: int = WIDTH,
    pause_s: float = 0.0,
    spoil_at: int = 0,
    spoil_entry_at: int = 0,
    sleep_entry_at: int = 0,
    leave_at: int = 0,
    sleep_at: int = 0,
    straggler: float | None = None,
    place: str = "cpu",
    **options: Any,
) -> Trained:
    """Trains as one member until so many reductions are applied; comes back when evicted."""
    fate = Doom(doom, doomed_at, doomed_how)
    if not fetches:
        _replace(Joining, "fetch", lambda *_: _raise(pccl.StepFailed("no way leads there")))
    fate.sleeps_in = sleep_entry_at
    if spoil_at:
        spoil(spoil_at, lambda name: name.startswith(OUTER_STEP))
    if spoil_entry_at:
        spoil(spoil_entry_at, lambda name: name == SYNC)
    told = Trained(me.number)
    watch_what_is_sent(told)
    model = make_model(width)
    if place == "meta":
        torch.set_default_device("meta")
    if place == "cuda":
        model.to("cuda")
    wait_for = start
    while True:
        try:
            with pccl.connect(
                me.address, timeout_s=30, step_timeout_s=60, straggler=straggler
            ) as comm:
                me.introduce(bytes(comm.peer_id))
                comm.wait_for(wait_for, timeout_s=60)
                paces = pause_s, sleep_at, leave_at
                _train(me, comm, method, until, model, told, fate, paces, options)
            return told
        except pccl.CannotCatchUp:
            told.gave_up += 1
            wait_for = 1
        except pccl.Evicted:
            wait_for = 1


def _raise(error: BaseException) -> None:
    raise error


def _train(
    me: Member,
    comm: pccl.Communicator,
    method: str,
    until: int,
    model: torch.nn.Module,
    told: Trained,
    fate: Doom,
    paces: tuple[float, int, int],
    options: dict[str, Any],
) -> None:
    def hold(_: object) -> bool:
        fate.pass_by("entry")
        fate.sleeps_in -= 1
        if fate.sleeps_in == 0:
            time.sleep(4.0)
        return False

    pause_s, sleep_at, leave_at = paces
    while True:
        try:
            outer = make(method, comm, model, hold=hold, **options)
            break
        except pccl.StepFailed:
            told.failed.append(-1)
    told.entered.append(outer.outer_step)

    def note(report: OuterStep | None) -> None:
        if report is None:
            return
        contributors = tuple(bytes(peer) for peer in report.contributors)
        told.history.append((report.outer_step, report.fragment, contributors, report.tokens))
        told.digests[report.outer_step] = _digest(outer)
        told.retries += report.retries
        fate.pass_by("between")
        me.say(report.outer_step)

    while outer.outer_step < until:
        learn(me.number, outer.inner_step, model)
        time.sleep(4.0 if sleep_at and outer.inner_step == sleep_at else pause_s)
        fate.pass_by("inner")
        if not outer._idle():
            fate.pass_by("flying")
        if outer.outer_step == leave_at and leave_at and not comm.leaving:
            comm.leave()
        began_s = time.monotonic()
        try:
            report = outer.step(tokens=TOKENS[me.number])
            told.longest_s = max(told.longest_s, time.monotonic() - began_s)
            note(report)
        except (pccl.StepFailed, pccl.DeadlineExceeded):
            told.failed.append(outer.inner_step)
    note(outer.finish())
    outer.verify()
    told.parameters = [theta.numpy().copy() for theta in outer.parameters()]
    told.momentum = [momentum.numpy().copy() for momentum in outer.momentum()]
    told.residual = outer.residual.numpy().copy() if method == "sparse" else None


def train_twice(
    me: Member, until: int, *, start: int = 1, first: int, finishes: bool, pause_s: float
) -> tuple[int, int]:
    """Trains with one optimizer for so many reductions, then with another one of the same form.

    Returns a digest of what the second one holds, and how many were in its last reduction.
    """
    with pccl.connect(me.address, timeout_s=30, step_timeout_s=60) as comm:
        me.introduce(bytes(comm.peer_id))
        comm.wait_for(start, timeout_s=60)
        contributors = 0
        kept: list[OuterOptimizer] = []  # one that is not finished goes on to exist
        for reductions in (first, until):
            if not reductions:
                continue
            outer = make("diloco", comm, model := make_model())
            kept.append(outer)
            while outer.outer_step < reductions:
                learn(me.number, outer.inner_step, model)
                time.sleep(pause_s)
                report = outer.step(tokens=TOKENS[me.number])
                if report is not None:
                    contributors = len(report.contributors)
                    me.say(report.outer_step + (first if reductions == until else 0))
            if finishes or reductions == until:
                outer.finish()
        outer.verify()
    return _digest(outer), contributors


def learn(member: int, inner_step: int, model: torch.nn.Module) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            learnt = change(member, inner_step, number, tuple(parameter.shape))
            parameter.sub_(torch.from_numpy(learnt).to(parameter.device))


def _digest(outer: Any) -> int:
    """Of parameters and momentum; counters of entries are another matter."""
    from pccl.diloco.exchange import digest_of

    return digest_of([*outer.parameters(), *outer.momentum()], np.zeros(0))


Program = Callable[..., Trained]
