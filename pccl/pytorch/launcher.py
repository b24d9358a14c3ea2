"""Operations that wait for a device before they begin, in the order in which they were called.

    called ──queued──> its inputs are on the host ──launched──> in flight, like any other

The caller goes on at once: one thread per group that has seen a device's tensor waits for the
copies and then makes the calls.  While something is queued, everything else that is called on the
group is queued behind it.

Invariant: calls are launched in the order in which they were submitted; each is launched once, or
has failed; after `close` there is no thread.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from pccl.base.clock import system_clock
from pccl.base.errors import DeadlineExceeded, UsageError
from pccl.base.log import get_logger
from pccl.pytorch.errors import Aborted, PcclDistError
from pccl.pytorch.staging import Mark
from pccl.pytorch.work import PcclWork

_log = get_logger("pytorch")
JOIN_S: Final = 10.0
LOOK_AGAIN_S: Final = 1.0  # for the deadline of a call that is not launched: it has none yet


class Pending:
    """A call that is yet to be launched; then, what it has become.  A part of a Work."""

    def __init__(
        self,
        op: str,
        marks: Sequence[Mark],
        make: Callable[[], PcclWork],
        translate: Callable[[BaseException, str], PcclDistError],
        limit_s: float,
    ) -> None:
        self.op = op
        self._marks: Sequence[Mark] = marks
        self._make: Callable[[], PcclWork] | None = make
        self._translate = translate
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._launched = threading.Event()
        self._decided = False
        self._notices: list[Callable[[], None]] = []
        self._work: PcclWork | None = None
        self._failure: PcclDistError | None = None

    def launch(self) -> None:
        """Waits for the device, then makes the call.  On the launcher's thread."""
        assert self._make is not None
        try:
            for mark in self._marks:
                mark.wait()
            self._work = self._make()
        except Exception as failure:  # told by the Work, on the thread that waits for it
            self._failure = self._translate(failure, self.op)
        self._make, self._marks = None, ()
        self._launched.set()
        if self._work is None or self._work.parts_done():
            self._tell()
        else:
            self._work.when_decided(self._tell)

    def _tell(self) -> None:
        with self._lock:
            self._decided = True
            notices, self._notices = self._notices, []
        for notice in notices:
            notice()

    def settle(self) -> None:
        """Finishes the call itself.  Raises what it ended with."""
        if self._failure is not None:
            raise self._failure
        assert self._work is not None
        self._work.settle()

    # ---- what a Work asks of its parts

    def wait(self, timeout_s: float | None = None) -> None:
        began_s = system_clock()
        limit_s = self._limit_s if timeout_s is None else timeout_s
        if not self._launched.wait(limit_s):
            raise DeadlineExceeded(f"{self.op} still waits for its device after {limit_s:g} s")
        if self._failure is not None:
            raise self._failure
        if self._work is not None:
            left_s = None if timeout_s is None else timeout_s - (system_clock() - began_s)
            self._work.wait_parts(None if left_s is None else max(left_s, 0.0))

    def done(self) -> bool:
        if not self._launched.is_set():
            return False
        return self._work is None or self._work.parts_done()

    def when_done(self, notify: Callable[[], None]) -> None:
        with self._lock:
            if not self._decided:
                self._notices.append(notify)
                return
        notify()

    def deadline_s(self) -> float:
        if not self._launched.is_set():
            return system_clock() + LOOK_AGAIN_S
        return math.inf if self._work is None else self._work.deadline_s()

    def on_deadline(self) -> float | None:
        at_s = self.deadline_s()
        if self._work is None or not self._launched.is_set() or at_s > system_clock():
            return at_s  # known only now
        return self._work.on_deadline()

    @property
    def peer(self) -> Any:
        """Whom a received message came from."""
        if self._work is None:
            raise UsageError(f"{self.op} is yet to be launched")
        message: Any = self._work.parts[0]
        return message.peer


class Launchable(Protocol):
    """What a launcher launches; then it forgets it."""

    op: str

    def launch(self) -> None:
        """Waits for the device, then begins.  On the launcher's thread."""


class Launcher:
    """Launches the calls of one group.  Its methods may be called from any thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._queue: deque[Launchable] = deque()  # as long as the program is ahead of its device
        self._launching = False
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def idle(self) -> bool:
        return not self._queue and not self._launching

    def submit(self, pending: Launchable) -> None:
        with self._changed:
            if self._closed:
                raise Aborted("the group is over", op=pending.op)
            self._queue.append(pending)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name=f"pccl-launch {self._name}", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> None:
        """Waits until everything is launched, `timeout_s` at most."""
        with self._changed:
            self._changed.wait_for(lambda: self.idle, timeout_s)

    def close(self) -> None:
        """Launches what is queued, which fails at once when the group is over, and ends the
        thread."""
        with self._changed:
            self._closed = True
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                self._launching = True  # first: `idle` is read without the lock
                pending = self._queue.popleft()
            try:
                pending.launch()
            except Exception:  # a callback of the program; what is queued must not wait for ever
                _log.exception("a call could not be launched")
            del pending  # with the tensors that it holds
            with self._changed:
                self._launching = False
                self._changed.notify_all()
