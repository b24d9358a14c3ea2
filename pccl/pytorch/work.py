"""A torch Work over steps and messages in flight.

    posted --decided--> finished: results are copied to where they belong, once
                            └── wait() returns or raises, the future is completed

Invariant: a Work is finished once, by whoever learns of the decision first; from then on its error,
or that it has none, never changes.  It never holds its group's ProcessGroup object.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final, Protocol, runtime_checkable

import torch
import torch.distributed as dist

from pccl.base.clock import system_clock
from pccl.base.errors import DeadlineExceeded, PcclError, UsageError
from pccl.pytorch.completer import completer
from pccl.pytorch.errors import PcclDistError
from pccl.pytorch.layout import Finish
from pccl.pytorch.run import Run
from pccl.pytorch.staging import Landing
from pccl.work import Work as StepWork

FOREVER: Final = timedelta(0)  # as torch has it
DROPPED_MAX: Final = 64
_dropped: deque[PcclWork] = deque(maxlen=DROPPED_MAX)


class Part(Protocol):
    """One thing in flight: a step, or a message."""

    def wait(self, timeout_s: float | None = None) -> object: ...
    def done(self) -> bool: ...


@runtime_checkable
class Later(Part, Protocol):
    """A part that is yet to become steps or messages."""

    def deadline_s(self) -> float: ...
    def on_deadline(self) -> float | None: ...


class PcclWork(dist.Work):
    """What every call on a group returns."""

    def __init__(
        self,
        run: Run,
        op: str,
        parts: Sequence[Part],
        result: list[torch.Tensor],
        finishes: Sequence[Finish] = (),
        landings: Sequence[Landing] = (),
    ) -> None:
        super().__init__()
        self._run = run
        self._op = op
        self._parts = parts
        self._result = result
        self._finishes = finishes
        self._landings = landings  # results that go on to a device
        self._lock = threading.Lock()
        self._finished = not parts and not finishes  # nothing is left to be done
        self._error: PcclDistError | None = None
        self._trigger: torch.futures.Future[Any] | None = None
        self._future: torch.futures.Future[Any] | None = None
        self._undecided = 0
        self.absorbed = False  # it has failed, and the commit of the training step says so
        self.deferred = False  # inside a coalescing block, where nothing is waited for yet

    @classmethod
    def of_all(cls, run: Run, op: str, works: Sequence[PcclWork]) -> PcclWork:
        """Returns a Work that is done when all of `works` are."""
        parts = [part for work in works for part in work._parts]
        result = [tensor for work in works for tensor in work._result]
        landings = [landing for work in works for landing in work._landings]
        return cls(run, op, parts, result, [work.settle for work in works], landings)

    def settle(self) -> None:
        """Waits, for a Work that this one is a part of."""
        self._drive(None)
        if self._error is not None:
            raise self._error.with_traceback(None)

    @property
    def finished(self) -> bool:
        return self._finished

    def outwait(self) -> None:
        """Waits until this Work has written all that it will write, however it ends.

        Raises:
            TimedOut: it is not even decided.
        """
        self._drive(None)
        for landing in self._landings:
            landing.join()

    def __del__(self) -> None:
        """Keeps what was dropped in flight for a while: torch's C++ may hold it still (DDP's join
        does), and without its Python half it would wait in torch's base class for ever."""
        if not getattr(self, "_finished", True):
            _dropped.append(self)

    def __repr__(self) -> str:
        return f"<PcclWork of {self._op}, {'done' if self._finished else 'in flight'}>"

    # ---- torch's interface

    def wait(self, timeout: timedelta = FOREVER) -> bool:
        """Waits, driving the engine on this thread.

        Raises:
            TimedOut: `timeout` is over and the operation goes on, or all ranks have given it up.
            PcclDistError: what the operation ended with.
        """
        if self.deferred:
            return True
        if not self._finished:
            self._drive(timeout.total_seconds() if timeout else None)
        if self._error is not None:
            raise self._error.with_traceback(None)
        for landing in self._landings:
            landing.join()
        return True

    def synchronize(self) -> None:
        self.wait()

    block_current_stream = synchronize

    def is_completed(self) -> bool:
        if not self._finished and all(part.done() for part in self._parts):
            self._drive(None)
        return self._finished

    def is_success(self) -> bool:
        return self.is_completed() and self._error is None

    def exception(self) -> PcclDistError | None:
        return self._error if self.is_completed() else None

    def result(self) -> list[torch.Tensor]:
        self.wait()
        return self._result

    def source_rank(self) -> int:
        """Returns whom a received message came from."""
        try:
            return self._run.rank_of(self._parts[0].peer)  # type: ignore[attr-defined]
        except (PcclError, AttributeError, IndexError, ValueError) as error:
            text = f"{self._op} has no source (yet)"
            raise self._run.translate(UsageError(text), self._op) from error

    def _source_rank(self) -> int:
        return self.source_rank()

    def get_future(self) -> torch.futures.Future[Any]:
        """Returns a future of the result tensors.

        It is the child of a trigger, since only what a callback raises becomes an error of torch's
        own: DDP takes a future that was given an exception for a value, and crashes.
        """
        with self._lock:
            if self._future is not None:
                return self._future
            devices = {d for landing in self._landings for d in landing.devices}
            trigger: torch.futures.Future[Any] = torch.futures.Future(devices=[*devices])
            self._future = future = trigger.then(self._conclude)
            self._trigger = trigger
        if self._finished:
            self._pull()
        else:
            completer.watch(self)
        return future

    # ---- for the launcher of calls that wait for their device

    @property
    def parts(self) -> Sequence[Part]:
        return self._parts

    def parts_done(self) -> bool:
        return all(part.done() for part in self._parts)

    def wait_parts(self, timeout_s: float | None) -> None:
        """Waits, and raises the library's own errors."""
        for part in self._parts:
            part.wait(timeout_s)

    # ---- for the completer

    def when_decided(self, notify: Callable[[], None]) -> None:
        """Calls `notify` once, when all parts are decided."""
        if not self._parts:
            notify()
            return
        self._undecided = len(self._parts)
        lock = threading.Lock()

        def one() -> None:
            with lock:
                self._undecided -= 1
                left = self._undecided
            if left == 0:
                notify()

        for part in self._parts:
            _when_decided(part, one)

    def deadline_s(self) -> float:
        return min(map(_deadline_s, self._parts), default=math.inf)

    def on_deadline(self) -> float | None:
        """The step's own deadline is over and nobody waits who would say so: asks the members to
        decide, and leaves the run if they cannot.  Returns when to look again."""
        for part in self._parts:
            if isinstance(part, Later) and not part.done():
                return part.on_deadline()
            if not isinstance(part, StepWork) or part.done():
                continue
            if part.ticket.proposed:
                part.ticket.leave_undecided()
                return None
            part.ticket.propose_deadline()
            return system_clock() + part.ticket.session.decision_s
        return None

    def complete(self) -> None:
        """Finishes what is decided and completes the future."""
        self._drive(None)
        self._pull()

    # ---- the end

    def _drive(self, timeout_s: float | None) -> None:
        error: BaseException | None = None
        for part in self._parts:
            try:
                if isinstance(part, StepWork):
                    part.settle(timeout_s)
                else:
                    part.wait(timeout_s)
            except DeadlineExceeded as late:
                if not part.done():
                    raise self._run.translate(late, self._op) from late
                error = error or late
            except (PcclError, PcclDistError) as failure:
                error = error or failure
        self._finish(error)

    def _finish(self, error: BaseException | None) -> None:
        with self._lock:
            if self._finished:
                return
            if error is None:
                try:
                    for finish in self._finishes:
                        finish()
                except RuntimeError as failure:  # torch cannot write the caller's tensor
                    error = failure
            if error is not None:
                self._error = self._run.absorb(error, self._op)
                self.absorbed = self._error is None
                if self._error is not None and self._error is not error:
                    self._error.__cause__ = error
            self._finishes = ()
            self._finished = True

    def _pull(self) -> None:
        with self._lock:
            trigger, self._trigger = self._trigger, None
        if trigger is None:
            return
        with contextlib.ExitStack() as streams:
            for landing in self._landings:
                streams.enter_context(landing.storing())
            # The future notes where the streams of the copies are, on behalf of who waits for it.
            landed = bool(self._landings) and self._error is None
            trigger.set_result(self._result if landed else None)

    def _conclude(self, _: torch.futures.Future[Any]) -> list[torch.Tensor]:
        if self._error is not None:
            raise self._error.with_traceback(None)
        return self._result


def forget_dropped() -> None:
    """The last group has ended: nobody waits for anything any more."""
    _dropped.clear()


def _deadline_s(part: Part) -> float:
    if isinstance(part, StepWork):
        return part.ticket.deadline.at_s
    return part.deadline_s() if isinstance(part, Later) else math.inf


def _when_decided(part: Part, notify: Callable[[], None]) -> None:
    if not isinstance(part, StepWork):
        part.when_done(notify)  # type: ignore[attr-defined]
        return
    ticket = part.ticket
    try:
        ticket.session.agent.when_decided(ticket.begun.step, notify)
    except UsageError:
        if not part.done():
            raise
        notify()  # another thread has settled it just now
