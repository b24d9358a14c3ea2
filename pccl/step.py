"""A step: the unit of outcome.

    BEGUN --post--> BEGUN --block ends--> SEALED --all members agree--> COMMITTED
                      |                      |                             or raised on all members
                      +-- exception: this peer leaves, the others retry without it

Invariant: results exist when the block has ended without an error, and are then the same bits on
every member; until then an attempt may be undone and run again under another view.
"""

from __future__ import annotations

from functools import lru_cache
from types import TracebackType
from typing import Any, Self

from pccl.base.errors import PcclError, UsageError
from pccl.collectives.buffers import Buffer, describe_pair
from pccl.collectives.codecs import Codec, check_codec, parse_codec
from pccl.collectives.descriptor import Descriptor
from pccl.collectives.dtypes import Dtype
from pccl.collectives.nonfinite import NonFinite, count_not_finite, parse_nonfinite
from pccl.collectives.ops import (
    COMPLEX_PARTS,
    Algorithm,
    ReduceOp,
    check_meaning,
    check_weight,
    parse_algorithm,
    parse_op,
)
from pccl.collectives.placed import Request
from pccl.collectives.requests import as_floats
from pccl.outcome import Outcome
from pccl.session import Session
from pccl.step_collectives import StepCollectives
from pccl.ticket import Ticket
from pccl.work import Work


class Step(StepCollectives):
    """A block of operations that commit or are retried as one; get it from `comm.step()`."""

    def __init__(
        self, session: Session, name: str, timeout_s: float, *, gate_s: float | None = None
    ) -> None:
        self._session = session
        self._gate_s = gate_s
        self._name = name
        self._timeout_s = timeout_s
        self._ticket: Ticket | None = None
        self._outcome: Outcome | None = None
        self._in_background = False

    def __enter__(self) -> Self:
        if self._ticket is not None:
            raise UsageError("a step is entered once; call comm.step() for the next one")
        self._ticket = self._session.begin(self._name, self._timeout_s, self._gate_s)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        ticket = self._begun()
        if (
            self._in_background
        ):  # sealed: nobody waits for anything that this block still has to say
            return
        if error is not None:
            self._session.leave_after(error)
            return
        try:
            ticket.seal()
            self._outcome = ticket.finish()
        except PcclError:
            raise
        except BaseException as interruption:
            self._session.leave_after(interruption)
            raise

    def give_up(self, reason: str) -> None:
        """Makes the step fail on all members, whatever they have posted; ends the block's use.

        Raises:
            DeadlineExceeded: it has failed so, with this reason, on every member; inputs are as
                they were before.
            PcclError: it ended otherwise.
        """
        ticket = self._open()
        try:
            ticket.give_up(reason)
            ticket.finish()
        except PcclError:
            raise
        except BaseException as interruption:
            self._session.leave_after(interruption)
            raise

    def commit_async(self) -> Work:
        """Ends the step's operations without waiting for its outcome; the block may then be left.

        Returns:
            A Work for the whole step: `wait()` returns its Outcome, or raises what it ended with.
            Arrays are borrowed until it is decided.

        Raises:
            UsageError: it was called before, or outside of the block.
        """
        ticket = self._open()
        ticket.seal()
        self._in_background = True
        return Work(ticket, None)

    @property
    def outcome(self) -> Outcome:
        """The outcome, once the block has ended.  Raises UsageError before."""
        if self._in_background and self._begun().poll():
            return self._begun().result()
        if self._outcome is None:
            raise UsageError("a step has an outcome when its block has ended without an error")
        return self._outcome

    @property
    def ticket(self) -> Ticket:
        """Within the library: what it shares with its works."""
        return self._begun()

    @property
    def number(self) -> int:
        """Its number in program order, the same on all members."""
        return self._begun().begun.step

    @property
    def epoch(self) -> int:
        """The view of the first attempt; `outcome.epoch` is the one that counts."""
        return self._begun().begun.epoch

    @property
    def rank(self) -> int:
        """This peer's rank in the first attempt."""
        return self._begun().begun.rank

    @property
    def world_size(self) -> int:
        """The number of members in the first attempt; `outcome.contributors` is what counts."""
        return self._begun().begun.world_size

    def all_reduce(
        self,
        array: Any,
        op: str | ReduceOp = "sum",
        tag: int | None = None,
        weight: float = 1.0,
        out: Any = None,
        *,
        deterministic: bool = False,
        algorithm: str | Algorithm = "auto",
        codec: str | Codec | None = None,
        nonfinite: str | NonFinite = "ignore",
    ) -> Work:
        """Starts to reduce `array` element-wise over the members.

        Args:
            array: numpy array, torch CPU tensor or other shared memory; C-contiguous; element
                count, dtype, op and tag alike on all members; shapes are not compared, [2, 3] is as
                good as [3, 2].  Borrowed until the step ends.
                Complex numbers have sum and avg, 8-bit floats nothing.
            op: sum, avg (or mean), prod (or product), min or max.
            tag: names the operation within the step; None numbers operations in program order.
            weight: of this peer's contribution to an avg; finite, not negative.
            out: where the result goes; None reduces in place.  Shape and dtype as `array`.
            deterministic: adds contributions in rank order, so that runs of as many members can be
                repeated exactly, on other machines too; with algorithm="ring" in the ring's order,
                which begins with another rank for each of its shards.
            algorithm: auto, exchange, direct or ring; alike on all members.
            codec: int8, int4, fp8 or a Codec quantises what travels, of sums and averages of
                floating-point numbers; alike on all members.  Each result is rounded twice however
                many members there are, contributions once and the sum once, and is the same bits on
                all; a member's own contribution to its share of the result is not rounded, nor is
                anything without other members.
            nonfinite: what becomes of a contribution that holds NaN or infinities.  "ignore":
                nobody looks.  "allow": they are counted (`Communicator.nonfinite`).  "raise":
                counted, and the step ends with NonFiniteContribution on all members at once, naming
                this peer; what is posted later in the block goes nowhere.  "drop_contributor":
                counted, and a sum or avg is made as if this member had contributed zeros with
                weight 0; if all do so, a sum is 0 and an avg NaN.  A member alone keeps what it
                has.

        Returns:
            A Work whose result may be read when the block has ended.

        Raises:
            UsageError: an argument is not as described; nothing was sent or changed.
        """
        ticket = self._open()
        work = check_all_reduce(array, op, weight, out, deterministic, algorithm, codec, nonfinite)
        number = ticket.choose_tag(tag)
        self._session.check_free(work.source, work.target)
        post_all_reduce(ticket, work, number)
        return Work(ticket, array if out is None else out)

    def _post(self, request: Request, tag: int | None) -> Work:
        ticket = self._open()
        placed = request.place(ticket.seat)
        number = ticket.choose_tag(tag)
        self._session.check_free(placed.source, placed.target)
        ticket.post_collective(placed, number)
        return Work(ticket, placed.result)

    def _open(self) -> Ticket:
        """Returns the ticket of a step that takes operations.  Raises UsageError after its end."""
        ticket = self._begun()
        if ticket.sealed or self._session.closed:
            self._session.check()
            raise UsageError("the step has ended; post operations inside its block")
        return ticket

    def _begun(self) -> Ticket:
        if self._ticket is None:
            raise UsageError("enter the step first: with comm.step() as step: ...")
        return self._ticket


def number_of_committed(committed: Step | Work) -> int:
    """Returns the number of a step that has committed, given itself or by a work of it.

    Raises:
        UsageError: it is neither, or not decided yet.
        PcclError: it has failed.
    """
    if isinstance(committed, Step):
        _ = committed.outcome
        return committed.number
    if isinstance(committed, Work):
        _ = committed.outcome
        return committed.ticket.begun.step
    raise UsageError(
        f"a revision is made by a committed step or work, not by a {type(committed).__name__}"
    )


class CheckedAllReduce:
    """The arguments of one all-reduce, all of them checked."""

    __slots__ = ("descriptor", "policy", "source", "target", "weight")

    def __init__(
        self,
        descriptor: Descriptor,
        source: Buffer,
        target: Buffer,
        weight: float,
        policy: NonFinite,
    ) -> None:
        self.descriptor = descriptor
        self.source = source
        self.target = target
        self.weight = weight
        self.policy = policy


def post_all_reduce(ticket: Ticket, work: CheckedAllReduce, tag: int, last: bool = False) -> None:
    """Looks at the contribution, and posts it as its policy says."""
    policy = work.policy
    found = count_not_finite(work.source, policy)
    if found:
        ticket.session.count_nonfinite(found, policy)
        if policy is NonFinite.RAISE:
            ticket.refuse_nonfinite(
                f"its contribution of tag {tag} holds {found} NaN or infinite elements of "
                f"{work.source.count}"
            )
    left_out = found > 0 and policy is NonFinite.DROP_CONTRIBUTOR
    ticket.post(
        work.descriptor, work.source, work.target, tag, work.weight, last=last, left_out=left_out
    )


def check_all_reduce(
    array: Any,
    op: str | ReduceOp,
    weight: float,
    out: Any,
    deterministic: bool,
    algorithm: str | Algorithm,
    codec: str | Codec | None = None,
    nonfinite: str | NonFinite = NonFinite.IGNORE,
) -> CheckedAllReduce:
    """Checks what can be checked on this peer alone; raises UsageError and changes nothing."""
    reduce_op = parse_op(op)
    checked_weight = check_weight(weight, reduce_op)
    plan = parse_algorithm(algorithm)
    quantised = parse_codec(codec)
    policy = parse_nonfinite(nonfinite, reduce_op)
    source, target = describe_pair(array, out)
    if source.dtype in COMPLEX_PARTS:
        in_place = target is source
        source = as_floats(source, reduce_op)
        target = source if in_place else as_floats(target, reduce_op)
    check_meaning(source.dtype, reduce_op)
    if quantised is not None:
        check_codec(quantised, source.dtype, reduce_op, plan)
    descriptor = _descriptor(
        source.dtype, source.count, reduce_op, bool(deterministic), plan, quantised
    )
    return CheckedAllReduce(descriptor, source, target, checked_weight, policy)


@lru_cache(maxsize=256)  # a program has a few, and makes each of them in every step
def _descriptor(
    dtype: Dtype,
    count: int,
    op: ReduceOp,
    deterministic: bool,
    plan: Algorithm,
    codec: Codec | None,
) -> Descriptor:
    return Descriptor(dtype, count, op, deterministic, plan, codec=codec)
