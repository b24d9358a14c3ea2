"""Writes what a coordinator was given to a file of bounded size, beside the hot path.

The machine's task only appends to a queue; encoding and writing are a thread's.  When half of the
bytes are used the file becomes FILE.1, in place of the one that was, and a new one begins with the
machine's state, so whatever happens there is a beginning from which a replay can start, and at
least half of the bytes reach back from the end.  A file that an earlier coordinator left becomes
FILE.1 too: it may be the one somebody wants to look at.  One that a living coordinator still writes
is left alone: the file in use is locked.

When the disk is slower than the events, recording stops and begins anew with a state: a gap,
never a coordinator that waits.  A disk that fails ends the recording, with a line in the log.

Sensitive: the file holds every secret of the run; only its owner may read it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections import deque
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Final

from pccl.base.clock import Clock, system_clock
from pccl.base.log import get_logger
from pccl.base.private_files import make_private_file
from pccl.membership import flight
from pccl.membership.coordinator import Coordinator
from pccl.membership.events import Effect, Event

BYTES_MIN: Final = 1 << 16  # a state of a few peers, twice, and some events
BYTES_DEFAULT: Final = 64 << 20
QUEUED_MAX: Final = 65_536
STOP_S: Final = 10.0
_log = get_logger("membership")

_Make = Callable[[], flight.Entry]  # runs on the writing thread


def pccl_version() -> str:
    return metadata.version("pccl")


def _require_unused(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


class Recorder:
    """A coordinator that is recorded; it stands where the machine would.

    Threads: all methods on the event loop's, except where the writing thread runs `_write`.
    """

    def __init__(
        self,
        machine: Coordinator,
        path: Path,
        *,
        bytes_max: int = BYTES_DEFAULT,
        clock: Clock = system_clock,
    ) -> None:
        """Touches no file; `start` does."""
        self._machine = machine
        self._path = path
        self._half = max(bytes_max, BYTES_MIN) // 2
        self._clock = clock
        self._queue: deque[_Make | None] = deque()  # None: begin a new file
        self._news = threading.Event()
        self._full = False  # half of the bytes are used; set by the writing thread
        self._asked = False  # a new file is queued already
        self._gap = False
        self._broken = False
        self._stopping = False
        self._written = 0
        self._file = -1
        self._thread: threading.Thread | None = None
        self._open_with_state()

    def start(self) -> None:
        """Makes the file and writes from now on what is queued.

        Raises:
            BlockingIOError: another coordinator writes that file.
            OSError: the file cannot be made.
        """
        _require_unused(self._path)
        self._file = self._begin_file()
        self._thread = threading.Thread(target=self._write, name="pccl-recorder", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ as a machine

    @property
    def deadline_s(self) -> float | None:
        return self._machine.deadline_s

    @property
    def urgent(self) -> bool:
        return self._machine.urgent

    @property
    def outdated(self) -> str:
        return self._machine.outdated

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        self._prepare()
        effects = self._machine.handle(event, now_s)
        done = tuple(effects)
        self._note(lambda: flight.arrived(event, now_s, flight.digest(done)))
        return effects

    def on_deadline(self, now_s: float) -> list[Effect]:
        self._prepare()
        effects = self._machine.on_deadline(now_s)
        done = tuple(effects)
        self._note(lambda: flight.TimePassed(now_s, flight.digest(done)))
        return effects

    def dropped_frame(self) -> None:
        self._prepare()
        self._machine.dropped_frame()
        self._note(flight.Misfit)

    def close(self) -> None:
        """Writes what is queued and the status at the end; waits for that, `STOP_S` at most."""
        if self._thread is not None and not self._stopping:
            now_s = self._clock()
            end = flight.End(now_s, self._machine.status(now_s))
            self._note(lambda: end)
            self._stopping = True
            self._news.set()
            self._thread.join(STOP_S)

    def _prepare(self) -> None:
        """Begins a new file, if one is wanted, with the state before the next event."""
        if self._broken:
            return
        after_gap = self._gap and not self._queue
        if after_gap or (self._full and not self._asked and not self._gap):
            self._gap, self._asked = False, True
            self._queue.append(None)
            self._open_with_state()

    def _open_with_state(self) -> None:
        for entry in flight.begin(self._machine, version=pccl_version(), now_s=self._clock()):
            self._queue.append(lambda entry=entry: entry)  # type: ignore[misc]

    def _note(self, make: _Make) -> None:
        if self._broken or self._gap:
            return
        if len(self._queue) >= QUEUED_MAX:
            self._gap = True
            _log.warning("the flight recorder cannot keep up; it begins anew when it has written")
            return
        self._queue.append(make)
        self._news.set()

    # ------------------------------------------------------------------ the writing thread

    def _write(self) -> None:
        try:
            while not self._stopping or self._queue:
                self._news.wait(1.0)
                self._news.clear()
                self._write_queued()
        except Exception as error:
            self._broken = True
            self._queue.clear()
            _log.error("the flight recorder stops: %s", error)
        with contextlib.suppress(OSError):
            os.close(self._file)

    def _write_queued(self) -> None:
        while self._queue:
            batch = bytearray()
            while self._queue and len(batch) < self._half // 8:
                make = self._queue.popleft()
                if make is None:
                    self._put(batch)
                    batch.clear()
                    os.close(self._file)
                    self._file = self._begin_file()
                else:
                    batch += flight.to_bytes(make())
            self._put(batch)

    def _put(self, data: bytearray) -> None:
        view = memoryview(bytes(data))
        while view:
            view = view[os.write(self._file, view) :]
        self._written += len(data)
        if self._written >= self._half:
            self._full = True

    def _begin_file(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        file = make_private_file(self._path)
        fcntl.flock(file, fcntl.LOCK_EX)  # of a file that nobody else has seen
        os.write(file, flight.MAGIC)
        self._written = len(flight.MAGIC)
        self._full = self._asked = False
        return file
