"""The threads of a process that complete futures.

Who waits for a Work drives the engine itself and needs no thread.  But a torch future is completed
by somebody: DDP and comm hooks never call `wait`, they chain callbacks.  All futures of all groups
are completed here, begun in the order in which their operations were decided.

A callback may wait for another future (PowerSGD's does), so whoever runs one leaves somebody behind
who takes what comes next: mostly there are two threads, one of which sleeps.

Nobody who waits for a future watches the operation's own deadline either, so these threads do.

Invariant: a thread is idle as long as fewer than `READERS_MAX` run.  They run from the first future
on until `stop`, and no longer than the process's groups live: a thread inside torch's C++ while the
interpreter ends would abort the process.
"""

from __future__ import annotations

import contextlib
import enum
import math
import os
import queue
import threading
from typing import Protocol, TypeAlias

from pccl.base.clock import system_clock
from pccl.base.log import get_logger

JOIN_S = 10.0
READERS_MAX = 16
IDLE_S = 60.0
_log = get_logger("pytorch")


class Awaited(Protocol):
    """What the completer knows of a Work."""

    def when_decided(self, notify: _Notice) -> None: ...
    def deadline_s(self) -> float: ...
    def on_deadline(self) -> float | None: ...
    def complete(self) -> None: ...


class _Word(enum.Enum):
    """What a reader is told besides."""

    LOOK = enum.auto()  # deadlines have changed
    END = enum.auto()


_Inbox: TypeAlias = "queue.SimpleQueue[Awaited | _Word]"


class _Notice:
    """Puts a Work into the queue, when its operations are decided."""

    __slots__ = ("_due", "_queue", "_work")

    def __init__(self, work: Awaited, due: set[Awaited], into: _Inbox):
        self._work, self._due, self._queue = work, due, into

    def __call__(self) -> None:
        self._due.add(self._work)  # at once, as all methods of a set
        self._queue.put(self._work)


class Completer:
    """Completes futures on threads of its own.  Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._queue: _Inbox = queue.SimpleQueue()
        # What is in flight, with its deadline: a few dozen at most; guarded by _changed.
        self._watched: dict[Awaited, float] = {}
        self._readers: list[threading.Thread] = []
        self._busy = 0  # readers that complete something
        self._due: set[Awaited] = set()  # what is decided and not completed
        self._looks_s = math.inf  # when deadlines are looked at next, at the latest

    def watch(self, work: Awaited) -> None:
        """Sees to it that `work.complete` is called once its operations are decided."""
        if os.getpid() != self._pid:
            self._forget()
        deadline_s = work.deadline_s()
        with self._changed:
            self._watched[work] = deadline_s
            self._see_to_readers()
            sooner = deadline_s < self._looks_s
        if sooner:
            self._queue.put(_Word.LOOK)  # somebody looks at the time again
        work.when_decided(_Notice(work, self._due, self._queue))

    def _see_to_readers(self) -> None:
        if self._busy < len(self._readers) or len(self._readers) == READERS_MAX:
            return
        reader = threading.Thread(
            target=self._run, args=(self._queue,), name="pccl-futures", daemon=True
        )
        self._readers.append(reader)
        reader.start()

    def flush(self) -> None:
        """Waits, within limits, until all that was decided before has been completed."""
        if os.getpid() != self._pid or threading.current_thread() in self._readers:
            return
        with self._changed:
            if self._readers:
                decided = self._due.copy()
                self._changed.wait_for(lambda: decided.isdisjoint(self._due), JOIN_S)

    def stop(self) -> None:
        """Ends the threads, if there are some; others begin when they are needed."""
        if os.getpid() != self._pid:
            return
        with self._changed:
            readers, self._readers = self._readers, []
            inbox, self._queue = self._queue, queue.SimpleQueue()
            self._watched.clear()
            self._due = set()
        for _ in readers:
            inbox.put(_Word.END)
        by_s = system_clock() + JOIN_S
        for reader in readers:
            if reader is not threading.current_thread():
                reader.join(max(0.0, by_s - system_clock()))

    def _run(self, inbox: _Inbox) -> None:
        while True:
            try:
                found = inbox.get(timeout=self._patience_s())
            except queue.Empty:
                self._act_on_deadlines()
                continue
            if found is _Word.END:
                return
            if found is _Word.LOOK:
                continue
            self._complete(found)
            del found  # with the tensors that it holds

    def _complete(self, work: Awaited) -> None:
        with self._changed:
            self._watched.pop(work, None)
            self._busy += 1
            if threading.current_thread() in self._readers:  # else it has been told to end
                self._see_to_readers()
        try:
            work.complete()
        except Exception:  # a callback of the program; the others must not wait for ever
            _log.exception("a future could not be completed")
        finally:
            with self._changed:
                self._busy -= 1
                self._due.discard(work)
                self._changed.notify_all()

    def _patience_s(self) -> float:
        now_s = system_clock()
        with self._changed:
            first_s = min(self._watched.values(), default=math.inf)
            patience_s = min(IDLE_S, max(0.0, first_s - now_s))
            self._looks_s = now_s + patience_s
        return patience_s

    def _act_on_deadlines(self) -> None:
        now_s = system_clock()
        with self._changed:
            late = [work for work, at_s in self._watched.items() if at_s <= now_s]
            self._watched.update(dict.fromkeys(late, math.inf))  # no other thread acts, too
        for work in late:
            again_s = None
            with contextlib.suppress(Exception):  # its end is told by its parts
                again_s = work.on_deadline()
            with self._changed:
                if work in self._watched and again_s is not None:
                    self._watched[work] = again_s


completer = Completer()
