"""SIGTERM as a request to leave: what a machine gets that is about to go away.

    no handler --install--> armed --SIGTERM--> leave(), then the handler that was there before
                              |                  +-- SIGTERM at least AGAIN_S later
                              |                        --> as if this had never been here
                              +-- close --> the handler that was there before

Invariants: the previous handler is called as before, unless it was the system's own, which would
end the process; a second SIGTERM, and any once the session is over, does what it would have done
without us: who asks twice does not want to wait for the others.  One within AGAIN_S is the same
request: launchers signal the process group and the child besides.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from pccl.base.errors import UsageError

if TYPE_CHECKING:
    from pccl.session import Session

AGAIN_S: Final = 1.0  # who asks twice has waited for longer


class DrainOnSigterm:
    """Installed by the main thread; `restore` may be called by any."""

    def __init__(self, session: Session, deadline_s: float) -> None:
        self._session = session
        self._deadline_s = deadline_s
        self._pid = os.getpid()
        self._previous: Any = signal.SIG_DFL
        self._asked_s: float | None = None

    def install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise UsageError(
                "drain_on_sigterm_s works only in the main thread, which alone may set a signal "
                "handler; call comm.leave() from a handler of your own instead"
            )
        # None is a handler that was not set from Python, which Python cannot put back.
        self._previous = signal.signal(signal.SIGTERM, self._handle) or signal.SIG_DFL

    def restore(self) -> None:
        """Puts the previous handler back, unless the program has set another one since."""
        if signal.getsignal(signal.SIGTERM) != self._handle:
            return
        with contextlib.suppress(ValueError):  # not the main thread: from now on we only pass it on
            signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        again = self._asked_s is not None and now_s >= self._asked_s + AGAIN_S
        if again or self._session.closed or os.getpid() != self._pid:
            signal.signal(signal.SIGTERM, self._previous)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if self._asked_s is None:
            self._asked_s = now_s
            self._session.leave(self._deadline_s, "SIGTERM")
        if callable(self._previous):
            self._previous(number, frame)
