"""The one thread of a process that completes futures.

Who waits for a Work drives the engine itself and needs no thread.  But a torch future is completed
by somebody: DDP and comm hooks never call `wait`, they chain callbacks.  All futures of all groups
are completed here, in the order in which their operations were decided.

Nobody who waits for a future watches the operation's own deadline either, so this thread does.

Invariant: the thread runs from the first future on until `stop`, and no longer than the process's
groups live: a thread inside torch's C++ while the interpreter ends would abort the process.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import threading
from typing import Protocol

from pccl.base.clock import system_clock
from pccl.base.log import get_logger

JOIN_S = 10.0
IDLE_S = 60.0
_log = get_logger("pytorch")


class Awaited(Protocol):
    """What the completer knows of a Work."""

    def when_decided(self, notify: _Notice) -> None: ...
    def deadline_s(self) -> float: ...
    def on_deadline(self) -> float | None: ...
    def complete(self) -> None: ...


class _Notice:
    """Puts a Work into the queue, when its operations are decided."""

    __slots__ = ("_queue", "_work")

    def __init__(self, work: Awaited, into: queue.SimpleQueue[Awaited | threading.Event | None]):
        self._work, self._queue = work, into

    def __call__(self) -> None:
        self._queue.put(self._work)


class Completer:
    """Completes futures on a thread of its own.  Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._queue: queue.SimpleQueue[Awaited | threading.Event | None] = queue.SimpleQueue()
        # What is in flight, with its deadline: a few dozen at most; guarded by _lock.
        self._watched: dict[Awaited, float] = {}
        self._thread: threading.Thread | None = None

    def watch(self, work: Awaited) -> None:
        """Sees to it that `work.complete` is called once its operations are decided."""
        with self._lock:
            if os.getpid() != self._pid:
                self._forget()
            self._watched[work] = work.deadline_s()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, args=(self._queue,), name="pccl-futures", daemon=True
                )
                self._thread.start()
        work.when_decided(_Notice(work, self._queue))

    def flush(self) -> None:
        """Waits, within limits, until all that was decided before has been completed."""
        with self._lock:
            running = self._thread is not None and os.getpid() == self._pid
            if not running or self._thread is threading.current_thread():
                return
        passed = threading.Event()
        self._queue.put(passed)
        passed.wait(JOIN_S)

    def stop(self) -> None:
        """Ends the thread, if there is one; another begins when it is needed."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is None or os.getpid() != self._pid:
                return
            self._watched.clear()
        self._queue.put(None)
        if thread is not threading.current_thread():
            thread.join(JOIN_S)

    def _run(self, inbox: queue.SimpleQueue[Awaited | threading.Event | None]) -> None:
        while True:
            try:
                found = inbox.get(timeout=self._patience_s())
            except queue.Empty:
                self._act_on_deadlines()
                continue
            if found is None:
                return
            if isinstance(found, threading.Event):
                found.set()
                continue
            with self._lock:
                self._watched.pop(found, None)
            try:
                found.complete()
            except Exception:  # a callback of the program; the others must not wait for ever
                _log.exception("a future could not be completed")

    def _patience_s(self) -> float:
        with self._lock:
            first_s = min(self._watched.values(), default=math.inf)
        return min(IDLE_S, max(0.0, first_s - system_clock()))

    def _act_on_deadlines(self) -> None:
        now_s = system_clock()
        with self._lock:
            late = [work for work, at_s in self._watched.items() if at_s <= now_s]
        for work in late:
            again_s = None
            with contextlib.suppress(Exception):  # its end is told by its parts
                again_s = work.on_deadline()
            with self._lock:
                if work in self._watched:
                    self._watched[work] = math.inf if again_s is None else again_s


completer = Completer()
