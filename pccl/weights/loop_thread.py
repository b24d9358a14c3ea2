"""An event loop on a daemon thread of its own, for publisher and receiver.

Invariant: after `stop` returns True the thread has ended and everything it owned is closed.  What
`live` owns ends within it: connections by `Stream.end`, which waits for their transports; nothing
is left to the end of the loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from pccl.base.errors import Closed, DeadlineExceeded, Forked, PcclError
from pccl.base.event_loop import new_event_loop
from pccl.base.log import get_logger

T = TypeVar("T")
START_S = 10.0  # to bind a port, or to learn that it is taken
_log = get_logger("weights")


class LoopThread:
    """Runs `live()` until `stop`; other threads hand it calls and coroutines."""

    def __init__(self, live: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._live = live
        self._process = os.getpid()
        self._stopping = False
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self, timeout_s: float = START_S) -> None:
        """Starts it; returns once `live` has called `ready`, which it must within `timeout_s`.

        Raises:
            whatever ended `live` before that.
        """
        self._thread.start()
        if not self._ready.wait(timeout_s):
            self.stop(0.0)
            raise DeadlineExceeded(f"the listener did not start within {timeout_s:g} s")
        if self._failure is not None:
            raise self._failure

    def ready(self) -> None:
        """Called by `live` when what can fail at the start has been done."""
        self._ready.set()

    def require_here(self) -> None:
        """Raises Forked in a fork of the process that made it: the thread is not there."""
        if os.getpid() != self._process:
            raise Forked(
                "this publisher or receiver belongs to the parent process; make one in the child"
            )

    def call(self, function: Callable[[], object]) -> None:
        """Runs a function on the loop, soon; nothing if that has ended."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(function)

    def wait_for(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """Runs a coroutine on the loop and returns what it returns.

        Raises:
            TimeoutError: not within the time; it was cancelled.
            Closed: the loop has ended.
        """
        if self._loop is None or not self._thread.is_alive():
            work.close()
            raise Closed("it is closed; make a new one")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout_s)
        except concurrent.futures.CancelledError:
            raise Closed("it was closed meanwhile") from None
        finally:
            future.cancel()

    def stop(self, timeout_s: float) -> bool:
        """Ends `live` by cancelling it; says whether the thread has ended in time."""
        if os.getpid() != self._process:
            return True
        loop, task = self._loop, self._task
        if loop is not None and task is not None and not self._stopping:
            self._stopping = True  # a second word would cut off what the first one ends in order
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)
        if self._thread.ident is not None and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                self._loop = runner.get_loop()
                runner.run(self._run())
        except BaseException as error:
            self._failure = self._failure or error
            if not isinstance(error, asyncio.CancelledError | PcclError):
                _log.exception("the thread %s failed", self._thread.name)
        finally:
            self._ready.set()

    async def _run(self) -> None:
        self._task = asyncio.current_task()
        try:
            await self._live()
        except asyncio.CancelledError:
            return
        except PcclError as error:
            self._failure = error
