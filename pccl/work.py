"""A handle on one operation in flight.

Invariant: a Work never holds up its operation, nor ends it: dropping it, or giving up waiting,
changes nothing.  Its result may be read when its step has been decided, not before, since an
attempt that is undone gives the inputs back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator
from typing import Any

from pccl.base.clock import system_clock
from pccl.base.errors import DeadlineExceeded, UsageError
from pccl.outcome import Outcome
from pccl.ticket import Ticket


class Work:
    """One posted operation.  Wait with `wait()` or `await`; both return the step's Outcome."""

    def __init__(self, ticket: Ticket, result: Any) -> None:
        self._ticket = ticket
        self._result = result

    def __repr__(self) -> str:
        state = "done" if self._ticket.decided else "in flight"
        return f"<Work of step {self._ticket.begun.step} ({self._ticket.name}), {state}>"

    @property
    def ticket(self) -> Ticket:
        """The step, for the library's own front ends."""
        return self._ticket

    def done(self) -> bool:
        """Says whether the step is decided, without waiting."""
        return self._ticket.poll()

    @property
    def outcome(self) -> Outcome:
        """The step's outcome.  Raises UsageError while it is not decided, else what it ended
        with."""
        if not self.done():
            raise UsageError("the operation is still in flight; wait() for it first")
        return self._ticket.result()

    @property
    def result(self) -> Any:
        """The array with the result.  Raises as `outcome`."""
        _ = self.outcome
        return self._result

    def wait(self, timeout_s: float | None = None) -> Outcome:
        """Waits until the step is decided.

        Args:
            timeout_s: None waits for the step's own deadline and then asks the members to decide.

        Returns:
            The outcome; the result array then holds the result.

        Raises:
            UsageError: called inside the step that the operation belongs to.
            DeadlineExceeded: `timeout_s` is over; the operation goes on.  Or the members decided
                that the step's own deadline is over; then the inputs are as they were.
            StepFailed: the members decided so; the inputs are as they were.
            OutcomeUnknown: the step's own deadline is over and no decision came either; this peer
                has left the run.
            KeyboardInterrupt: and this peer has left the run.
        """
        self.settle(timeout_s)
        return self._ticket.result()

    def settle(self, timeout_s: float | None = None) -> None:
        """As `wait()`, for who needs no Outcome."""
        self._require_sealed()
        ticket = self._ticket
        try:
            if timeout_s is None:
                ticket.settle()
                return
            if not ticket.wait(min(timeout_s, ticket.deadline.remaining_s())):
                if not ticket.deadline.passed():
                    raise DeadlineExceeded(self._patience(timeout_s))
                ticket.propose_deadline()
                if not ticket.wait_for_decision(timeout_s):
                    if timeout_s >= ticket.session.decision_s:
                        raise ticket.leave_undecided()
                    raise DeadlineExceeded(self._patience(timeout_s))
            ticket.require()
        except KeyboardInterrupt as error:
            ticket.session.leave_after(error)
            raise

    def __await__(self) -> Generator[Any, None, Outcome]:
        return self._wait_async().__await__()

    async def _wait_async(self) -> Outcome:
        """As `wait()` without a limit, on the caller's event loop; cancelling it only stops the
        waiting."""
        self._require_sealed()
        ticket = self._ticket
        if not await self._decided_by(ticket.deadline.at_s):
            ticket.propose_deadline()
            began_s = system_clock()
            # A coordinator that comes back meanwhile may say that a decision may take longer.
            while not await self._decided_by(began_s + ticket.session.decision_s):
                if system_clock() >= began_s + ticket.session.decision_s:
                    raise await asyncio.to_thread(ticket.leave_undecided)  # that takes seconds
        return ticket.result()

    async def _decided_by(self, at_s: float) -> bool:
        """Waits until that time; says whether the step is decided."""
        if not self._ticket.poll():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, at_s - system_clock())):
                    await self._notice()
        return self._ticket.poll()

    async def _notice(self) -> None:
        """Returns when the step is decided or the session has ended."""
        loop = asyncio.get_running_loop()
        decided = asyncio.Event()

        def notify() -> None:
            with contextlib.suppress(RuntimeError):  # the caller's loop is closed
                loop.call_soon_threadsafe(decided.set)

        session = self._ticket.session
        try:
            session.agent.when_decided(self._ticket.begun.step, notify)
        except UsageError:
            if not self._ticket.poll():  # else another thread has settled it just now
                raise
        while not self._ticket.poll():
            session.check()
            await decided.wait()
            if not self._ticket.poll():
                session.check()
                decided.clear()

    def _require_sealed(self) -> None:
        if not self._ticket.sealed:
            raise UsageError(
                "the results of a step exist when its block has ended, because the step may be "
                "retried until then; wait() after the with block"
            )

    def _patience(self, timeout_s: float) -> str:
        return (
            f"step {self._ticket.begun.step} ({self._ticket.name}) is not decided after "
            f"{timeout_s:g} s; it goes on, wait() again"
        )
