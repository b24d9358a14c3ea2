"""What all low-communication methods have in common: the shared state, its joiners, its counters.

    shared   parameters θ and outer momentum, f32, section by section; counters.  The same bits on
             every member between outer steps, whatever happened to whom
    own      the model's tensors, the inner optimizer, tokens since the last outer step, residuals

A method calls `_pass_entry` where joiners may come in: at an instant at which no reduction is on
its way, so that a joiner takes part in every reduction that its state does not hold yet, and in no
other.  Between two entries all members call the same steps in the same order.  An entry that fails
is due until it is passed; the schedule stands still meanwhile.

Invariant: shared state changes in `_commit` only, after a step committed, all of it or nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pccl.arguments import check_number, check_seconds, optional_seconds
from pccl.base.errors import CorruptResult, Excluded, PcclError, UsageError
from pccl.collectives.nonfinite import parse_policy
from pccl.communicator import Communicator
from pccl.diloco.exchange import (
    MASK,
    Reduced,
    Wire,
    check_tokens,
    digest_of,
    digests_agree,
    refuse_nonfinite,
)
from pccl.diloco.outer import Nesterov
from pccl.diloco.parameters import FlatParameters, Model
from pccl.diloco.report import OuterStep
from pccl.diloco.shared import OUTER_STEPS, SharedParameters, as_tensor, refuse_late_shards
from pccl.outcome import Outcome
from pccl.state.catching_up import HOLD_S_MAX

INNER_STEPS, TOKENS, ENTRIES = range(OUTER_STEPS + 1, 4)  # places in the counters


class OuterOptimizer(ABC):
    """The outer half of a low-communication method; the inner half is the program's own optimizer.

    Not thread-safe.  Call `step` after every inner step, as often on all peers.
    """

    def __init__(
        self,
        comm: Communicator,
        model: Model,
        *,
        inner_steps: int,
        outer: Nesterov,
        sections: Sequence[Sequence[str]] | None = None,
        extra: Mapping[str, Any] | None = None,
        state: Mapping[str, Any] | None = None,
        codec: str | None = None,
        deterministic: bool = False,
        parity: bool = True,
        nonfinite: str = "drop_contributor",
        hold: Callable[[OuterOptimizer], bool] | None = None,
        timeout_s: float | None = None,
        join_timeout_s: float = HOLD_S_MAX,
    ) -> None:
        """Enters the run: a collective call, which brings a joiner the members' state.

        Args:
            comm: the run.  Founders call `comm.wait_for(...)` before.
            model: a module, or named tensors; its trainable parameters are overwritten with the
                run's.  Of one that FSDP2 shards, the shards of this process, whose peers are those
                that hold the same ones (`connect(peer_group=...)`).
            inner_steps: H, calls of `step` between outer steps (of one fragment, if streaming).
            extra: arrays of the program that a joiner receives too, writable, alike in form on all
                peers; equal on all members whenever `step` is called.
            state: what `state_dict()` returned, to resume a run; alike on all founders.
            codec, deterministic: as in `Step.all_reduce`, for pseudo-gradients; alike on all peers.
            parity: whether each outer step compares a digest of the members' states.
            nonfinite: raise (on all members), drop_contributor (and count it) or allow.
            hold: called at each entry; while it says True on all members, they stay for newcomers.
            timeout_s: of each step; None takes the communicator's.
            join_timeout_s: how long members wait for this peer as a joiner (for others theirs
                counts), half of a step's time-out at most; then it fetches on, or is CannotCatchUp.

        Raises:
            UsageError: an argument is not as described, or this model is not the members'.
            PcclError: as `pccl.sync_state`.
        """
        self.comm = comm
        self.outer = outer
        self.inner_steps = check_number("inner_steps", inner_steps, 1)
        self._parameters = FlatParameters(model, sections)
        self._extra = dict(extra or {})
        self._parity = bool(parity)
        self._nonfinite = parse_policy(nonfinite)
        self._hold = hold
        self._timeout_s = optional_seconds("timeout_s", timeout_s)
        self._wire = Wire(codec, bool(deterministic), self._timeout_s)
        self._theta = [self._parameters.read(s) for s in range(len(self._parameters))]
        has = bool(outer.momentum)  # without momentum there is nothing to keep, or to bring
        self._momentum = [torch.zeros_like(t if has else t[:0]) for t in self._theta]
        self._counters = np.zeros(4, np.int64)
        self._synced = self._entry_due = False  # due: an entry failed, on all or here
        self._unreported: OuterStep | None = None  # applied just before that
        self._since = self._tokens = 0  # inner steps since the last entry or outer step
        kept = self._theta, self._momentum, self._counters
        join_s = check_seconds("join_timeout_s", join_timeout_s)
        self._shared = SharedParameters(comm, *kept, self._change, join_s)
        try:
            self._prepare()
            if state is not None:
                self.load_state_dict(state)
                self._counters[ENTRIES] = 0  # a run that begins anew
            self._join()
        except BaseException:
            self._shared.close()
            raise

    # ---- what a program calls

    def step(self, tokens: int = 1) -> OuterStep | None:
        """Says that one inner step is done; does what is due, an outer step for instance.

        Args:
            tokens: of this peer's batch, its weight in the mean; alike everywhere is fine.

        Returns:
            What was committed and applied just now, if anything was.

        Raises:
            StepFailed, DeadlineExceeded: the members decided so, all alike; shared state and
                residuals are as before, the model goes on from where it is, and the next call
                tries again.  No pseudo-gradient is lost.
            CorruptResult: the members' states differ; nothing was applied.
            NonFiniteContribution: with nonfinite="raise", on all members; nothing was applied.
            Evicted, OutcomeUnknown: this peer is out; connect again and make a new one.

        A peer that the others did not wait for (Excluded) comes in again by itself, as a joiner.
        """
        self._tokens += check_tokens(tokens)
        self._since += 1
        try:
            if self._synced:
                self._shared.check_inside()
            if self._entry_due:
                self._since -= 1  # the schedule stands still until all have passed the entry
                return self._pass_entry(None)
            if self._synced:
                return self._advance()
        except Excluded:
            self._shared.outside()
        self._join()
        return None

    def finish(self) -> OuterStep | None:
        """Ends training: applies what is on its way, and gives the model the shared parameters.

        A collective call, made by all members after the same outer step.  What this peer has
        learnt since its last contribution is dropped.
        """
        report = self._drain()
        self._write_all()
        self._shared.close()
        return report

    @property
    def outer_step(self) -> int:
        """Reductions committed and applied; the same on all members."""
        return int(self._counters[OUTER_STEPS])

    @property
    def inner_step(self) -> int:
        """Inner steps since the run began, those before this peer joined included: what a schedule
        of the inner learning rate goes by."""
        return int(self._counters[INNER_STEPS]) + self._since

    @property
    def tokens(self) -> int:
        """Tokens of all peers that are in the shared parameters."""
        return int(self._counters[TOKENS])

    def parameters(self) -> list[Tensor]:
        """Returns the shared parameters θ, one f32 vector per section: the memory itself, which
        changes with each outer step, and is not to be changed otherwise."""
        return list(self._theta)

    def momentum(self) -> list[Tensor]:
        """Returns the outer momentum, as `parameters`."""
        return list(self._momentum)

    def digest(self) -> int:
        """Returns a hash of 64 bits of parameters, momentum and counters; local, 1 GB/s."""
        return digest_of([*self._theta, *self._momentum], self._counters)

    def verify(self) -> None:
        """Compares the members' shared states, by a step of 16 bytes; a collective call.

        Raises:
            CorruptResult: they differ; nothing was changed.
        """
        own = self.digest()
        pair = np.array([own, ~own & MASK], np.uint64)
        with self.comm.step("pccl.diloco.verify", self._timeout_s) as step:
            step.all_reduce(pair, op="max")
        if not digests_agree(int(pair[0]), int(pair[1])):
            raise CorruptResult("the members' shared states differ")

    @contextmanager
    def shared_parameters(self) -> Iterator[None]:
        """Lets the model hold the shared parameters inside the block, to evaluate or save it."""
        own = [self._parameters.read(s) for s in range(len(self._parameters))]
        self._write_all()
        try:
            yield
        finally:
            for section, flat in enumerate(own):
                self._parameters.write(section, flat)

    def shared_arrays(self) -> dict[str, Any]:
        """Returns the shared state by name, without the program's `extra`; what a joiner gets."""
        return {**self._shared.arrays, **self._shared.counters}

    def state_dict(self) -> dict[str, Any]:
        """Returns copies of the shared state and of this peer's own, for `state=` of a new run.

        Raises:
            UsageError: a reduction is on its way; take it right after `step` returned a report, or
                after `finish`.
        """
        self._check_idle()
        shared = {
            name: torch.as_tensor(a, device="cpu").clone()
            for name, a in self.shared_arrays().items()
        }
        return {**shared, **{name: tensor.clone() for name, tensor in self._own_arrays().items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned, and gives the model its parameters; before this
        peer comes in, so by `state=`: members change their state by reductions only.

        Raises:
            UsageError: it is of another method or model, or this peer is in; nothing was changed.
        """
        if self._synced:
            raise UsageError("the run has begun; load a state as it begins, with state=")
        self._shared.load(state, self._own_arrays())
        self._since = self._tokens = 0
        self._write_all()
        self._reset()

    # ---- what a method says

    @abstractmethod
    def _advance(self) -> OuterStep | None:
        """Does what is due after an inner step."""

    def _prepare(self) -> None:  # noqa: B027  (most methods need nothing)
        """Makes what the method needs besides, once the parameters are known."""

    @abstractmethod
    def _joined(self, running: bool) -> None:
        """Goes on as the members do after an entry, with the state that they hold; `running` says
        that the run has begun before."""

    def _go_on(self) -> OuterStep | None:
        """Does what follows an entry, on members; returns what was applied just now."""
        return None

    def _drain(self) -> OuterStep | None:
        """Applies what is on its way."""
        return None

    def _idle(self) -> bool:
        """Says whether nothing is on its way."""
        return True

    def _reset(self) -> None:  # noqa: B027
        """Forgets what this peer has learnt since its last contribution."""

    def _own_arrays(self) -> dict[str, Tensor]:
        """Returns what belongs to this peer alone and must survive a restart."""
        return {}

    # ---- for the methods

    def _join(self) -> None:
        """Comes in, however often the others do not wait for this peer meanwhile."""
        while True:
            self._synced = self._entry_due = False
            self._unreported = None
            self._counters[ENTRIES] += 1
            refuse_late_shards(self.comm)
            try:
                self._enter()
                running = int(self._counters[ENTRIES]) > 1
                self._since = self._tokens = 0
                self._write_all()
                self._joined(running)
            except Excluded:
                self._shared.outside()
                continue
            except PcclError:
                self._synced = False  # the next call of `step` begins here again
                raise
            return

    def _pass_entry(self, report: OuterStep | None) -> OuterStep | None:
        """An entry, and what follows it.  Returns what was applied before.

        If it fails, newcomers are still at it, or come to it again; so members do, with their next
        call of `step`, before anything else.
        """
        if not self._entry_due:
            self._counters[ENTRIES] += 1  # before, so that a joiner is told of the same entry
            self._entry_due, self._unreported = True, report
        self._enter()
        self._entry_due = False
        report, self._unreported = self._unreported, None
        return self._go_on() or report

    def _enter(self) -> None:
        """The entry: joiners come in and get the members' state.  Nothing may be on its way."""
        assert self._idle() or not self._synced  # else what was on its way is over here
        rest = {f"extra.{name}": array for name, array in self._extra.items()}
        while True:
            self._shared.bring(rest, self._synced, self._timeout_s)
            self._synced = True
            if self._hold is None or not self._hold(self):
                return

    def _state_digest(self) -> int:
        return self.digest() if self._parity else 0

    def _commit(self, section: int, reduced: Reduced) -> OuterStep:
        """Applies a committed mean to one section.

        Raises:
            NonFiniteContribution: as the policy says; nothing was applied.
        """
        refuse_nonfinite(reduced.left_out, reduced.left_out_peers, self._nonfinite)
        self._shared.changed(reduced.step, section, reduced.tokens, reduced.mean)
        fragment = section if len(self._parameters) > 1 else None
        return self._count(fragment, reduced.tokens, reduced.left_out, reduced.outcome)

    def _change(self, section: int, *results: Any) -> None:
        """Applies a mean to the memory of one section; at a newcomer, one that it replays."""
        (mean,) = results
        theta, momentum = self._theta[section], self._momentum[section]
        after, velocity = self.outer.update(theta, momentum, as_tensor(mean))
        theta.copy_(after)
        momentum.copy_(velocity)

    def _count(
        self, fragment: int | None, tokens: int, left_out: int, outcome: Outcome, retries: int = 0
    ) -> OuterStep:
        self._counters[OUTER_STEPS] += 1
        self._counters[TOKENS] += tokens
        return OuterStep(
            outer_step=self.outer_step,
            fragment=fragment,
            tokens=tokens,
            dropped=left_out,
            contributors=outcome.contributors,
            epoch=outcome.epoch,
            retries=outcome.retries + retries,
            wire_bytes=outcome.wire_bytes,
        )

    def _count_inner_steps(self) -> None:
        """Makes the inner steps that all members have done since part of the shared state."""
        self._counters[INNER_STEPS] += self._since
        self._since = 0

    def _write_all(self) -> None:
        for section, theta in enumerate(self._theta):
            self._parameters.write(section, theta)

    def _check_idle(self) -> None:
        if not self._idle():
            raise UsageError("a reduction is on its way; finish() first, or wait for its report")
