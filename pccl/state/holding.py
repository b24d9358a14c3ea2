"""Ends the members' wait for a newcomer in its first step: the one rule for all ways to come in.

    step begun --first answer--> hold_s --not released--> the others run the step without this peer

Theory.  Members wait in that step for whatever the newcomer still does: to fetch, to replay, to
hash.  None of these can be broken off by a look at a clock between two of its parts, so the clock
is another thread's, which asks at the end of the time that this peer be left out, whatever the
program's thread is at.  Where this process runs no Python at all (something keeps the GIL) the
engine's control thread asks, OVERDUE_S later; of one that is stopped the coordinator's detectors
get rid.

Invariant: once `release` has said True this peer is not put out by this; until then members wait
`hold_s` from the first answer, or `first_s` if nobody answers, and once more only if they asked for
no less: if too few would be left without it.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Protocol

from pccl.base.clock import Deadline
from pccl.base.errors import PcclError

STEP_BACK_S = 0.25  # then it is asked for again: it may not have been heard
STEP_BACKS = 4  # then this peer is needed, and goes on where it is
OVERDUE_S = 0.5  # for this process's own thread, which can say what has happened


class Ended(Protocol):
    """The step in which members wait; a `Ticket`."""

    def wait(self, timeout_s: float) -> bool: ...

    def step_back(self, why: str) -> None: ...

    def step_back_after(self, why: str, after_s: float) -> None: ...

    def stay(self) -> None: ...


class Hold:
    """One newcomer's first step.  `close` it, whatever happens.

    Args:
        hold_s: how long members wait, from the first answer of one of them on.
        first_s: how long they wait for that answer; a state must be hashed for it.
    """

    def __init__(self, ticket: Ended, hold_s: float, first_s: float) -> None:
        self._ticket = ticket
        self._hold_s = hold_s
        self._turn = threading.Condition()
        self._answered = self._closed = self._asking = self._out = False
        self._spent = 0
        self.deadline = Deadline(first_s)
        """Of what is done while members wait; it may come nearer when the first one answers."""
        name = "pccl-hold"
        self._thread = threading.Thread(target=self._watch, name=name, daemon=True)
        self._arm(self.deadline)
        self._thread.start()

    def answered(self, said_s: float) -> None:
        """A member has answered, at that time of the clock, and waits since."""
        with self._turn:
            if not self._answered and not self._closed:
                self._answered = True
                self.deadline = Deadline(self._hold_s)
                self.deadline.at_s = said_s + self._hold_s
                self._arm(self.deadline)
                self._turn.notify_all()

    def _arm(self, until: Deadline) -> None:
        """Has the engine watch this process, until a while after then."""
        with contextlib.suppress(PcclError):  # as in _watch
            left_s = max(0.0, until.remaining_s()) + OVERDUE_S
            self._ticket.step_back_after("it runs no Python any more", left_s)

    def _disarm(self) -> None:
        with contextlib.suppress(PcclError):
            self._ticket.stay()

    @property
    def spent(self) -> int:
        """How often the time was over."""
        return self._spent

    def settle(self) -> None:
        """Waits until the members have heard, if they are being asked to go on without this peer;
        a second at most."""
        with self._turn:
            self._turn.wait_for(self._settled, 2 * STEP_BACK_S * STEP_BACKS)

    def _settled(self) -> bool:
        """Nobody asks, and nobody is about to: the time may be over, and the other thread not awake
        yet, whose engine may have asked already."""
        over = self._closed or self._out or not self._thread.is_alive()
        return not self._asking and (over or not self.deadline.passed())

    def release(self) -> bool:
        """Ends the watch, since this peer has what it needs.  False: it is out already."""
        self.settle()
        with self._turn:
            self._closed = not self._asking and not self._out
            if self._closed:
                self._disarm()
            self._turn.notify_all()
            return self._closed

    def close(self) -> None:
        with self._turn:
            self._closed = True
            self._disarm()
            self._turn.notify_all()

    def _watch(self) -> None:
        with contextlib.suppress(PcclError):  # the session is over, and nobody waits any more
            while self._time_is_over():
                self._step_back()
        with self._turn:
            self._asking = False
            self._turn.notify_all()

    def _time_is_over(self) -> bool:
        """Waits for it; False if the watch has ended before."""
        with self._turn:
            while not self._closed and not self._out and not self.deadline.passed():
                self._turn.wait(self.deadline.remaining_s())
            self._asking = not self._closed and not self._out
            if self._asking:
                self._spent += 1
                self._arm(Deadline(STEP_BACK_S * STEP_BACKS))  # Python runs, and asks itself
            return self._asking

    def _step_back(self) -> None:
        why = f"its state has not come in {self._hold_s:.3g} s"
        decided = False
        for _ in range(STEP_BACKS):
            self._ticket.step_back(why)
            decided = self._ticket.wait(STEP_BACK_S)
            if decided or self._closed:
                break
        with self._turn:
            self._asking, self._out = False, decided
            self.deadline = Deadline(self._hold_s)
            if not decided and not self._closed:
                self._arm(self.deadline)
            self._turn.notify_all()
