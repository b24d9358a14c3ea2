"""The elastic ProcessGroup: the same object while its members die and join.

    group = pccl.pytorch.elastic_group()
    group.begin(state)          all members (and joiners) meet; rank and size are those of the view
    ... backward ...            gradients are reduced meanwhile (`wrapping`)
    if group.commit(): ...      all members: the reductions are in place; or none: everything is as
                                it was before

Before the first `begin` the group is alone: rank 0 of 1, and collectives are local.  That is where
models are built and wrapped, at whatever moment of the run this process comes.

Invariant: rank, size and members change in `begin` and `commit` only.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch

from pccl.base.clock import Deadline
from pccl.base.errors import DeadlineExceeded, DescriptorMismatch, Excluded, PcclError, StepFailed
from pccl.base.log import get_logger
from pccl.outcome import Peer
from pccl.pytorch.elastic.calls import ElasticCalls, ElasticHost
from pccl.pytorch.elastic.meeting import OUT, Healing, Meeting
from pccl.pytorch.elastic.replica import Replica
from pccl.pytorch.elastic.run import ElasticRun
from pccl.pytorch.elastic.state import State
from pccl.pytorch.elastic.transaction import Transaction
from pccl.pytorch.errors import Mismatch, Misused, PcclDistError
from pccl.pytorch.group import ProcessGroupPccl
from pccl.pytorch.untraced import untraced
from pccl.pytorch.wording import by_ranks

EVENTS_KEPT: Final = 1024
STEP: Final = "torch step"
RESERVED_FROM: Final = 1 << 20  # tags of wrapped modules; those below are the program's
REFUSED: Final = "commit(ok=False)"  # why a step was given up, as the others are told
_log = get_logger("pytorch")


@dataclass(frozen=True, slots=True)
class Committed:
    """A training step that all `members` hold, after so many replays."""

    step: int
    epoch: int
    members: tuple[Peer, ...]
    retries: int


@dataclass(frozen=True, slots=True)
class RolledBack:
    """A training step that nobody holds; its batch is offered again."""

    step: int
    reason: str


class ElasticGroup(ElasticCalls, ProcessGroupPccl):  # type: ignore[misc]
    """Made by torch with `pg_options=Options(elastic=True, ...)`."""

    run: ElasticRun
    _host_type = ElasticHost

    def __init__(self, run: ElasticRun, timeout_s: float) -> None:
        super().__init__(run, timeout_s)
        self._state: State | None = None
        self.turn = 0  # counts steps that were opened
        self._next_tag = RESERVED_FROM
        self._begun_with = 1  # members, when the open step began
        self._failures = 0
        self._mismatches = 0
        self._weight = 1.0
        self._events: deque[Committed | RolledBack | Healing] = deque(maxlen=EVENTS_KEPT)
        self.replica = Replica(run)
        self._before_commit: list[Any] = []
        self._warned = False  # that nothing was reduced

    def __repr__(self) -> str:
        place = self.run.place
        return f"<ElasticGroup {self._group_name}: rank {place.rank} of {place.size}>"

    # ---- who is in

    @property
    def members(self) -> tuple[Peer, ...]:
        """The peers of this group, in rank order."""
        return self.run.members

    @property
    def epoch(self) -> int:
        """Counts views; the open training step's, or the latest."""
        transaction = self.run.transaction
        return self.run.communicator.view.epoch if transaction is None else transaction.epoch

    def events(self) -> list[Committed | RolledBack | Healing]:
        """Returns what has happened lately, oldest first (the last 1024)."""
        return list(self._events)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Within it the group is rank 0 of 1: for building and wrapping models later than at the
        start.  Not between `begin` and `commit`."""
        if self.run.transaction is not None:
            raise Misused("not between begin and commit", op="alone")
        with self.run.apart():
            yield

    # ---- the training step

    def begin(self, state: State, *, timeout_s: float | None = None) -> None:
        """Meets the other members where that is needed, heals joiners, and opens a training step.

        Args:
            state: what joiners receive.  A joiner's own is overwritten.
            timeout_s: for the meeting; None takes the group's.  Waiting for `min_world` members
                counts.

        Raises:
            TimedOut: not enough members in time.
            Aborted: this member has left as it had asked to, or the group was shut down.
            PcclDistError: this process is out of the run, and does not rejoin.

        Cost: nothing but the library's gate, unless somebody was lost or waits to come in; then
        one round, and for a joiner one broadcast of the state.
        """
        run = self.run
        run.check("begin")
        if run.transaction is not None:
            raise Misused("the step before has not been committed: call commit()", op="begin")
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        deadline = Deadline(limit_s)
        self._state, self._weight = state, 1.0
        while run.transaction is None:
            try:
                if run.must_meet or run.out:
                    self._meet(state, deadline)
                    run.must_meet = False
                run.transaction = Transaction(
                    run.communicator,
                    STEP,
                    self._timeout_s,
                    replays=run.options.on_loss == "replay",
                    staging=self._staging,
                )
            except (StepFailed, *OUT) as error:  # at the gate: nothing has begun
                run.must_meet = True
                if isinstance(error, Excluded) and self.replica.divided:
                    run.communicator.session.close("one process of this replica was excluded")
                    raise run.translate(error, "begin") from error
                run.synced = run.synced and not isinstance(error, (Excluded, *OUT))
                if deadline.passed() or not (run.options.rejoin or not run.out):
                    raise run.translate(error, "begin") from error
            except PcclError as error:
                raise run.translate(error, "begin") from error
        self._begun_with = self.replica.share[1]
        self.turn += 1

    def weigh(self, weight: float) -> None:
        """Sets the weight of this member's gradients in the averages of the open step, for example
        its number of samples; 0 if it has none but takes part.  Without a call it is 1."""
        if self._open("weigh").posted:
            raise Misused("gradients are on their way already: weigh before backward", op="weigh")
        if not (math.isfinite(weight) and weight >= 0):
            raise Misused(f"weight must be finite and not negative: {weight!r}", op="weigh")
        self._weight = float(weight)

    def _meet(self, state: State, deadline: Deadline) -> None:
        for queue in self.run.queues:  # what was called among those of before concerns them
            queue.drain(deadline.remaining_s())
        if self.run.alone:
            self.replica.gather()
        meeting = Meeting(
            self.run,
            state,
            self.replica,
            check=self.run.options.check_state,
            deadline=deadline,
        )
        try:
            meeting.meet()
        finally:
            self._events.extend(meeting.healings)

    def reduce_gradient(self, tensor: torch.Tensor, tag: int | None = None) -> None:
        """Starts to average a tensor in place over the members, by their weights; the result is
        there once `commit` has returned True.  Returns at once, may be called inside backward.

        Args:
            tensor: dense, on the CPU and contiguous, or on CUDA; shape, dtype, tag alike on all
                members; not to be touched before the commit.
            tag: names the reduction within the step; None numbers them in program order.
        """
        if self.run.local:
            return  # a world of one: its own mean
        transaction = self._open("reduce_gradient")
        try:
            transaction.reduce(tensor, self._weight, tag, self.run.options.deterministic)
        except Misused:
            raise
        except PcclError as error:
            transaction.note(error, "reduce_gradient")

    def reserve_tags(self, count: int) -> int:
        """Returns the first of so many tags that nobody else uses; called in the same order on all
        members, as modules are wrapped."""
        first, self._next_tag = self._next_tag, self._next_tag + count
        return first

    def before_commit(self, call: Any) -> None:
        """Has `call()` called at the beginning of each commit, to post what is still to be."""
        self._before_commit.append(call)

    def commit(self, ok: bool = True) -> bool:
        """Ends the training step: True if all members hold its results, False if none does and
        every reduced tensor is what it was before.

        Args:
            ok: False gives the step up, on all members, at whatever point: for example before
                backward, since a loss is not finite.  Its batch would give the same again: `steps`
                goes on with the next of a loader with `advance`; a function gets the same step.

        Raises:
            Mismatch: members called different collectives, or posted different reductions, twice;
                said on all of them.  Once, if this one is new and does not fit in with the others.
            PcclDistError: too many steps failed one after the other; or this process is out of
                the run and does not rejoin.
        """
        transaction, run = self._open("commit"), self.run
        assert self._state is not None
        self._warn_of_nothing(transaction)
        try:
            for call in self._before_commit if ok else ():
                call()
            transaction.await_device()
            if transaction.touched:
                raise Misused(
                    "a gradient was changed between backward and commit, while it was being "
                    "reduced; read, clip and scale gradients after commit() has returned True",
                    op="commit",
                )
        except BaseException:
            self.abandon()  # the others must not wait for what this member cannot post
            raise
        trouble = transaction.trouble
        try:
            if trouble is not None:
                self._count_mismatch(trouble[1])
            if trouble is not None or not ok:
                transaction.give_up(REFUSED if trouble is None else "{}: {}".format(*trouble))
            outcome = transaction.close(awaited=run.someone_waits)
        except PcclError as error:
            return self._failed(error)
        finally:
            run.transaction = None
        changed = outcome.contributors != run.members
        run.frame(outcome.contributors)
        spoiled, run.must_meet = self.replica.agreed(
            not transaction.counts, transaction.awaited or changed
        )
        if spoiled:
            parts = ", or parts of replicas averaged with different ones" * self.replica.divided
            return self._rolled_back(f"the weights of all members add up to 0{parts}")
        self._failures = self._mismatches = 0
        self._state.step += 1
        self._state.advance(self._begun_with)
        self._events.append(
            Committed(self._state.step, outcome.epoch, outcome.contributors, outcome.retries)
        )
        return True

    def _failed(self, error: PcclError) -> bool:
        run = self.run
        run.must_meet = True
        if isinstance(error, DeadlineExceeded) and REFUSED in str(error) and self._state:
            self._state.advance(self._begun_with)
        if isinstance(error, DescriptorMismatch):
            self._count_mismatch(error, put_out=run.communicator.session.engine.view().rank < 0)
        if isinstance(error, (Excluded, *OUT)):
            run.synced = False
            if self.replica.divided and not run.out:  # one part of a replica is behind
                run.communicator.session.close("one process of this replica was excluded")
            if run.out and not (run.options.rejoin and not self.replica.divided):
                raise run.translate(error, "commit") from error
        return self._rolled_back(by_ranks(str(error), run.members))

    def _warn_of_nothing(self, transaction: Transaction) -> None:
        """The likeliest mistake of all is a model that was not wrapped."""
        idle = not transaction.posted and not self._before_commit and self.run.place.size > 1
        if idle and not self._warned:
            self._warned = True
            _log.warning(
                "no gradient was reduced in a training step, so members' models will differ: "
                "wrap the model by elastic_ddp or elastic_fsdp, or call group.reduce_gradient"
            )

    def _count_mismatch(self, error: BaseException, put_out: bool = False) -> None:
        """Once it may be that members went different ways when one was lost; twice it is a bug, and
        so it is where the others go on without this member."""
        self._mismatches += isinstance(error, (DescriptorMismatch, Mismatch))
        if put_out or self._mismatches > 1:
            self.run.leave_at_once("members called different collectives")
            raise self.run.translate(error, "commit") from error

    def _rolled_back(self, reason: str) -> bool:
        assert self._state is not None
        self._failures += 1
        self._events.append(RolledBack(self._state.step, reason))
        _log.warning("training step %d was rolled back: %s", self._state.step, reason)
        if self._failures > self.run.options.failures_max:
            self.run.leave_at_once("too many training steps have failed")
            raise PcclDistError(
                f"{self._failures} training steps failed one after the other; the last: {reason}",
                op="commit",
            )
        return False

    def _open(self, op: str) -> Transaction:
        transaction = self.run.transaction
        if transaction is None:
            self.run.check(op)
            raise Misused("call begin() first", op=op)
        return transaction

    def abandon(self) -> None:
        """Leaves the run in the middle of a step; the others go on without this member."""
        transaction, self.run.transaction = self.run.transaction, None
        if transaction is not None:
            transaction.abandon()

    def quit(self, reason: str) -> None:
        """Leaves the run at once, whether a step is open or not."""
        self.abandon()
        self.run.leave_at_once(reason)

    @property
    def leaving(self) -> bool:
        """Says whether this member has asked to leave, or is asked to by SIGTERM."""
        return self.run.communicator.leaving

    def leave(self, deadline_s: float = 30.0) -> None:
        """Asks to leave without a step being aborted; returns at once.  Go on as before: some
        later `begin` raises Aborted, by which `steps` ends."""
        try:
            self.run.communicator.leave(deadline_s)
        except PcclError as error:
            raise self.run.translate(error, "leave") from error


for _kind in (ElasticGroup, ElasticCalls):
    untraced(_kind)
