"""One step of this peer, from the gate to its outcome.

Steps and works are two faces of a Ticket.  It holds the buffers that the engine may touch, and lets
go of them only when the step is decided and nobody waits on it inside the engine any more.

Invariant: a ticket is settled once; from then on its outcome or its error never changes.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

from pccl.base.clock import Deadline, system_clock
from pccl.base.errors import (
    CorruptResult,
    DeadlineExceeded,
    DescriptorMismatch,
    Excluded,
    Left,
    NonFiniteContribution,
    OutcomeUnknown,
    PcclError,
    StepFailed,
    UsageError,
    ViewChanged,
    WorldTooSmall,
)
from pccl.base.numbers import whole_number
from pccl.collectives.buffers import Buffer, SpanSet
from pccl.collectives.descriptor import Descriptor
from pccl.collectives.placed import Placed, Seat
from pccl.outcome import Outcome
from pccl.transport import engine_api
from pccl.transport.engine_api import STEP_COMMITTED, STEP_OPEN, BegunStep, StepResult
from pccl.transport.native_frames import SuspectCode

if TYPE_CHECKING:
    from pccl.session import Session

TAG_MAX = (1 << 32) - 1
TEXT_CHARACTERS_MAX = 200
THIS_PROCESS = " (this process)"
_AGREE = "make shape, dtype, op, tag and options agree on all peers"


class Ticket:
    """Made by `Session.begin`.  `post` and `seal` belong to one thread, the rest to any."""

    def __init__(
        self, session: Session, name: str, begun: BegunStep, timeout_s: float, deadline: Deadline
    ) -> None:
        self.session = session
        self.name = name
        self.begun = begun
        self.timeout_s = timeout_s
        self.sealed = False
        self.spans = SpanSet()
        self._deadline = deadline  # the call's that began it; it begins anew with the seal
        self._buffers: list[tuple[Buffer, Buffer]] = []
        self._tags: set[int] = set()
        self._next_tag = 0
        self._lock = threading.Lock()
        self._waiters = 0
        self._released = False
        self._proposed = False
        self._doomed = False
        self._decision: StepResult | None = None
        self._outcome: Outcome | None = None  # made when somebody asks for it
        self._error: PcclError | None = None

    # ---- the thread that began it

    def choose_tag(self, tag: int | None) -> int:
        """Returns `tag`, or the next free number.  Raises UsageError if it is taken or no tag."""
        if tag is None:
            while self._next_tag in self._tags:
                self._next_tag += 1
            return self._next_tag
        number = whole_number(tag)
        if number is None:
            raise UsageError(f"tag must be an integer, not {tag!r}")
        if not 0 <= number <= TAG_MAX:
            raise UsageError(f"tag must be within 0 to {TAG_MAX}, not {number}")
        if number in self._tags:
            raise UsageError(f"tag {number} is taken by another operation of this step")
        return number

    def post(
        self,
        descriptor: Descriptor,
        source: Buffer,
        target: Buffer,
        tag: int,
        weight: float,
        last: bool = False,
        left_out: bool = False,
    ) -> None:
        """Starts one operation whose arguments have been checked; with `last`, seals too.

        `left_out`: others get zeros of weight 0 from here.
        """
        if self._doomed:
            self.sealed = self.sealed or last
            return
        self._buffers.append((source, target))  # first: the engine must never outlive them
        self.session.engine.post_all_reduce(
            self.begun.step,
            tag,
            source.address,
            target.address,
            source.count,
            int(descriptor.dtype),
            int(descriptor.op),
            weight,
            descriptor.deterministic,
            int(descriptor.algorithm),
            last,
            0 if descriptor.codec is None else descriptor.codec.number,
            left_out,
        )
        if last:
            self._deadline = Deadline(self.timeout_s)  # before others look at it, since sealed
            self.sealed = True
        self._tags.add(tag)
        self.spans.add(source, target)

    def post_collective(self, placed: Placed, tag: int, last: bool = False) -> None:
        """As `post`, of an operation that has been placed in this step's view."""
        if self._doomed:
            self.sealed = self.sealed or last
            return
        self._buffers.append((placed.source, placed.target))  # first, as in post
        what = placed.descriptor
        self.session.engine.post_collective(
            self.begun.step,
            tag,
            int(what.collective),
            placed.source.address,
            placed.target.address,
            what.count,
            int(what.dtype),
            int(what.op),
            placed.weight,
            what.deterministic,
            placed.root,
            what.uneven,
            placed.send_counts,
            placed.receive_counts,
            last,
        )
        if last:
            self._deadline = Deadline(self.timeout_s)  # before others look at it, since sealed
            self.sealed = True
        self._tags.add(tag)
        self.spans.add(placed.source, placed.target)

    @property
    def seat(self) -> Seat:
        """Where this peer stands in the view that the step began in."""
        return Seat(self.begun.rank, self.begun.world_size, bytes(self.session.peer_id))

    def seal(self) -> None:
        """Says that no operation follows; the step may now commit."""
        self._deadline = Deadline(self.timeout_s)
        self.sealed = True
        if not self._doomed:
            self.session.engine.seal(self.begun.step)

    def give_up(self, reason: str) -> None:
        """Asks the members to fail the step; nothing more is posted here, and it is not sealed."""
        self._deadline = Deadline(self.timeout_s)
        self.sealed = True
        self._doom(SuspectCode.DEADLINE, f"given up on peer {self.session.peer_id}: {reason}")

    def refuse_nonfinite(self, what: str) -> None:
        """Has all members fail the step with NonFiniteContribution; the block may go on, but what
        it posts goes nowhere, until its end."""
        self._doom(SuspectCode.NONFINITE, f"peer {self.session.peer_id}: {what}")

    def step_back(self, why: str) -> None:
        """Asks that the others run this step without this peer, which stays in the run as a
        newcomer.  Nothing is posted here.  Not done while too few would be left; ask again."""
        text = why[:TEXT_CHARACTERS_MAX]
        self.session.engine.propose_failure(self.begun.step, int(SuspectCode.EXCLUDED), text)

    def step_back_after(self, why: str, after_s: float) -> None:
        """As `step_back`, then, by a thread that needs no Python; the newest call counts."""
        text = why[:TEXT_CHARACTERS_MAX]
        code = int(SuspectCode.EXCLUDED)
        self.session.engine.propose_failure(self.begun.step, code, text, after_s)

    def stay(self) -> None:
        """Takes `step_back_after` back."""
        self.session.engine.propose_failure(self.begun.step, 0, "", 1.0)

    def _doom(self, code: SuspectCode, text: str) -> None:
        self._doomed = True
        self._proposed = True
        text = text[:TEXT_CHARACTERS_MAX]
        self.session.engine.propose_failure(self.begun.step, int(code), text)

    # ---- any thread

    @property
    def deadline(self) -> Deadline:
        """The step's own deadline; it begins to run when the step is sealed."""
        return self._deadline

    @property
    def decided(self) -> bool:
        return self._decision is not None

    @property
    def proposed(self) -> bool:
        """Says whether this peer has asked the members to decide because time is up."""
        return self._proposed

    def poll(self) -> bool:
        """Says whether the step is decided, without waiting."""
        if not self.decided and self.sealed:
            with self._lock:
                if not self.decided:  # another thread may have released the step just now
                    self._settle(self.session.engine.step_result(self.begun.step))
        return self.decided

    def wait(self, timeout_s: float) -> bool:
        """Waits; says whether the step is decided.  Raises when the engine ended meanwhile."""
        with self._lock:
            if self._decision is not None:
                return True
            self._waiters += 1
        engine = self.session.engine
        done = False
        try:
            done = engine.wait_step(self.begun.step, timeout_s)
        finally:
            with self._lock:
                self._waiters -= 1
                if self._decision is not None:
                    self._settle(None)
                elif done:
                    self._settle(engine.step_result(self.begun.step))
        return done

    def finish(self) -> Outcome:
        """As `settle`; returns the outcome."""
        self.settle()
        return self.result()

    def settle(self) -> None:
        """Waits until the step's own deadline and then proposes to all that it has failed.

        Raises:
            StepFailed, DeadlineExceeded: decided so on every member.
            OutcomeUnknown: no decision came either; this peer has left the run.
        """
        if not self.wait(self._deadline.remaining_s()):
            self.propose_deadline()
            if not self.wait_for_decision():
                raise self.leave_undecided()
        self.require()

    def wait_for_decision(self, timeout_s: float = math.inf) -> bool:
        """Waits as long as a decision may take, at most `timeout_s`; says whether there is one.

        A coordinator that comes back meanwhile may say that it may take longer."""
        began_s = system_clock()
        while not self.wait(self._patience_left_s(began_s, timeout_s)):
            if self._patience_left_s(began_s, timeout_s) <= 0:
                return False
        return True

    def _patience_left_s(self, began_s: float, timeout_s: float) -> float:
        until_s = began_s + min(timeout_s, self.session.decision_s)
        return max(0.0, until_s - system_clock())

    def leave_undecided(self) -> OutcomeUnknown:
        """Leaves the run, because no decision came either; returns what to raise."""
        text = (
            f"step {self.begun.step} ({self.name}) was not decided within {self.timeout_s:g} s and "
            f"the {self.session.decision_s:g} s after it; this peer left the run, the others may "
            "hold the step as committed"
        )
        self.session.close(text)
        return OutcomeUnknown(text)

    def propose_deadline(self) -> None:
        """Asks the members to decide, because time is up here; at most once."""
        if self._proposed:
            return
        self._proposed = True
        self.session.engine.propose_failure(
            self.begun.step,
            int(SuspectCode.DEADLINE),
            f"{self.name!r} was not done after {self.timeout_s:g} s on peer {self.session.peer_id}",
        )

    def require(self) -> None:
        """Raises what a decided step ended with, if it has failed."""
        if self._error is not None:
            raise self._error.with_traceback(None)

    def result(self) -> Outcome:
        """Returns the outcome of a decided step, or raises what it ended with."""
        self.require()
        if self._outcome is None:
            assert self._decision is not None
            _, epoch, retries, contributors, groups, wire_bytes, _, _ = self._decision
            peers = self.session.peers(contributors)
            self._outcome = Outcome(peers, epoch, retries, wire_bytes, groups)
        return self._outcome

    def _settle(self, result: StepResult | None) -> None:
        """Takes note of a decision and releases the engine's step once.  The lock is held."""
        if result is not None and result.state != STEP_OPEN:
            if result.state != STEP_COMMITTED:
                own = str(self.session.peer_id)
                self._error = failure_of(result.code, result.text, self.begun.step, own)
                if result.code == SuspectCode.EXCLUDED or self._put_out(result.code):
                    self.session.was_excluded()
            self._decision = result
        if self._decision is not None and self._waiters == 0 and not self._released:
            self._released = True
            self._buffers.clear()
            self.session.engine.release_step(self.begun.step)
            self.session.forget(self)

    def _put_out(self, code: int) -> bool:
        """Says whether the members run this step without this peer, whose calls did not fit in."""
        return code == SuspectCode.DESCRIPTOR and self.session.engine.view().rank < 0


def failure_of(code: int, text: str, step: int, own: str = "") -> PcclError:
    """Returns the error of a step that all members decided to fail; `own` is this peer's name."""
    match code:
        case SuspectCode.DESCRIPTOR:
            if own:
                text = text.replace(f"peer {own} posted", f"peer {own}{THIS_PROCESS} posted")
            return DescriptorMismatch(f"{text}; {_AGREE}", step=step)
        case SuspectCode.DIGEST:
            return CorruptResult(text, step=step)
        case SuspectCode.DEADLINE:
            return DeadlineExceeded(f"step {step}: {text}")
        case SuspectCode.UNDERFLOW:
            return WorldTooSmall(text, step=step)
        case SuspectCode.VIEW_CHANGED:
            return ViewChanged(text, step=step)
        case SuspectCode.NONFINITE:
            return NonFiniteContribution(f"step {step}: {text}")
        case SuspectCode.EXCLUDED:
            return Excluded(text, step=step)
        case engine_api.STEP_LEFT_CODE:
            return Left(text)
        case _:
            return StepFailed(text, step=step)
