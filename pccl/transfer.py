"""A handle on one message between two programs.

Invariants: a Transfer never holds up its message, nor ends it: dropping it, or giving up waiting,
changes nothing.  Its memory is borrowed until it has ended, and it ends at the latest when its own
time is over.  It ends once, and what it ended with never changes.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pccl.base.clock import Deadline
from pccl.base.errors import (
    DeadlineExceeded,
    DescriptorMismatch,
    Excluded,
    Left,
    PcclError,
    PeerLost,
    UsageError,
)
from pccl.collectives.buffers import Buffer
from pccl.collectives.placed import NOTHING
from pccl.outcome import Peer
from pccl.transport.engine_letters import LetterEnd, LetterResult

if TYPE_CHECKING:
    from pccl.session import Session

WAIT_S = 3600.0  # of one call into the engine, where the message's own time ends the wait
_AGREE = "make element count and dtype agree on both ends"


class Transfer:
    """One message that is sent or received.  Wait with `wait()`; callable from any thread."""

    def __init__(
        self, session: Session, reads: Buffer, writes: Buffer, words: str, timeout_s: float
    ) -> None:
        self.letter = 0  # until it is posted; the memory is held before
        self.reads = reads
        self.writes = writes
        self._session = session
        self._words = words
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._waiters = 0
        self._released = False
        self._result: LetterResult | None = None
        self._error: PcclError | None = None

    def __repr__(self) -> str:
        return f"<Transfer: {self._words}, {'done' if self._over else 'under way'}>"

    def done(self) -> bool:
        """Says whether it has ended, well or not, without waiting."""
        if not self._over:
            with self._lock:
                if not self._over:
                    self._settle()
        return self._over

    def wait(self, timeout_s: float | None = None) -> None:
        """Waits until the message is there: at the other end, or in the array here.

        Args:
            timeout_s: None waits until the message's own time is over.

        Raises:
            DeadlineExceeded: `timeout_s` is over, and the message goes on.  Or the message's own
                time is, here or at the other end, and it is given up; the array of a receive then
                holds anything.
            DescriptorMismatch: the ends differ in element count or dtype; both are told.
            PeerLost: the other end is no member any more, or for a receive from any, one of those
                that might have sent is not.
            Left, Excluded, Closed, Evicted: this peer is out.
            KeyboardInterrupt: and the message is given up.
        """
        deadline = Deadline(WAIT_S if timeout_s is None else timeout_s)
        try:
            while not self._wait(deadline.remaining_s()):
                if timeout_s is not None:
                    raise DeadlineExceeded(
                        f"{self._words}: not done after {timeout_s:g} s; it goes on, wait() again"
                    )
                deadline = Deadline(WAIT_S)
        except KeyboardInterrupt:
            self.cancel()
            raise
        if self._error is not None:
            raise self._error.with_traceback(None)

    @property
    def session(self) -> Session:
        return self._session

    @property
    def source(self) -> int:
        """The sender's rank in the view in which the message came.  Raises UsageError before that,
        and what the transfer ended with if it failed."""
        return self._ended().rank

    @property
    def peer(self) -> Peer:
        """The other end's id.  Raises as `source`."""
        return Peer(self._ended().peer)

    def cancel(self) -> None:
        """Gives the message up, if it has not ended: the memory is free again.  A receiver waits on
        as if it had never been sent; a sender is told that nobody receives it."""
        if not self._over:
            with contextlib.suppress(UsageError):  # it has just ended, or all has
                self._session.engine.cancel_letter(self.letter)
        self.done()

    def when_done(self, callback: Callable[[], None]) -> None:
        """Calls `callback` once, on some thread, when the transfer has ended (`done()`), or at once
        if it has.  It should do little: other notices wait for it."""
        if self.done():
            return callback()
        try:
            self._session.agent.when_ended(self.letter, callback)
        except UsageError:  # released by another thread just now, or all is over
            if not self.done():
                raise
            callback()
        return None

    # ---- within

    @property
    def _over(self) -> bool:
        return self._result is not None or self._error is not None

    def _ended(self) -> LetterResult:
        if not self.done():
            raise UsageError("the message is still under way; wait() for it first")
        if self._error is not None:
            raise self._error.with_traceback(None)
        assert self._result is not None
        return self._result

    def _wait(self, timeout_s: float) -> bool:
        with self._lock:
            if self._over:
                return True
            self._waiters += 1
        try:
            self._session.engine.wait_letter(self.letter, timeout_s)
        except PcclError as error:
            self._error = self._error or error
        finally:
            with self._lock:
                self._waiters -= 1
                self._settle()
        return self._over

    def _settle(self) -> None:
        """Takes note of an end, and releases the engine's letter once.  The lock is held."""
        if not self._over and self.letter != 0:
            try:
                result = self._session.engine.letter_result(self.letter)
            except PcclError as error:  # the engine has ended, and holds no memory any more
                self._error = error
            else:
                if not result.open:
                    self._error = self._error_of(result)
                    self._result = result
        if self._over and self._waiters == 0 and not self._released:
            self._released = True
            self.reads = self.writes = NOTHING
            with contextlib.suppress(PcclError):
                self._session.engine.release_letter(self.letter)
            self._session.forget_transfer(self)

    def _error_of(self, result: LetterResult) -> PcclError | None:
        peer = str(Peer(result.peer))
        match result.end:
            case LetterEnd.DONE:
                return None
            case LetterEnd.DIFFERS:
                ends = (str(self._session.peer_id), peer)
                return DescriptorMismatch(f"{result.text}; {_AGREE}", peers=ends)
            case LetterEnd.LOST:
                return PeerLost(peer, epoch=result.epoch)
            case LetterEnd.GIVEN_UP:
                return DeadlineExceeded(f"{self._words}: peer {peer} has given up receiving it")
            case LetterEnd.LATE:
                return DeadlineExceeded(f"{self._words}: not done within {self._timeout_s:g} s")
            case LetterEnd.LEFT:
                return Left("this peer has left the run, as it was asked to")
            case LetterEnd.EXCLUDED:
                return Excluded("the others did not wait for this peer, and it is in no view now")
            case LetterEnd.CANCELLED:
                return PcclError(f"{self._words}: cancelled")
