"""Who is to be told when a step is decided, or a message has ended.

Invariant: each callback is called once, or its asking raises and it is never called; once `end` was
called nobody waits.  Methods may be called from any thread; callbacks are called without a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pccl.transport.engine_events import LetterEnded, StepDecided

Notice = Callable[[], None]
Awaited = StepDecided | LetterEnded


class Notices:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[Awaited, list[Notice]] = {}
        self._over = False

    def wait(self, event: Awaited, notify: Notice, ask: Callable[[], None]) -> None:
        """Calls `notify` at the event, or at once if all is over; `ask` has the engine tell it.

        Raises:
            PcclError: what `ask` raises; `notify` is not called then.
        """
        with self._lock:
            over = self._over
            if not over:
                self._waiting.setdefault(event, []).append(notify)
        if over:
            return notify()
        try:
            ask()
        except BaseException:
            if not self._forget(event, notify):
                return None  # it has been told meanwhile
            raise
        return None

    def _forget(self, event: Awaited, notify: Notice) -> bool:
        with self._lock:
            waiting = self._waiting.get(event, [])
            if notify not in waiting:
                return False
            waiting.remove(notify)
            if not waiting:
                del self._waiting[event]
            return True

    def tell(self, event: Awaited) -> None:
        with self._lock:
            notices = self._waiting.pop(event, [])
        for notify in notices:
            notify()

    def end(self) -> None:
        """Nothing will be told any more: tells all."""
        with self._lock:
            self._over = True
            notices = [notify for calls in self._waiting.values() for notify in calls]
            self._waiting.clear()
        for notify in notices:
            notify()
