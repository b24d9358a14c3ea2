"""How groups end with their process, however that ends.

A program may forget to destroy its groups, and an interpreter that ends while a thread of ours is
inside torch aborts the process.  So all groups of a process are closed at its end, too: by
`atexit`, and in children of multiprocessing, which leave without that, by its finalizers.

Invariant: in a fork nothing of the parent's groups is touched.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref
from multiprocessing import util

from pccl.pytorch import hosting
from pccl.pytorch.completer import completer
from pccl.pytorch.run import Run
from pccl.pytorch.work import forget_dropped

FIRST = 1000  # of multiprocessing's finalizers; its queues and pipes are still there then
_open: weakref.WeakSet[Run] = weakref.WeakSet()
_noted_in = 0  # the process that has registered its end


def note(run: Run) -> None:
    """Sees to it that a run is closed at the end of this process at the latest."""
    global _noted_in
    _open.add(run)
    if _noted_in != os.getpid():
        _noted_in = os.getpid()
        atexit.register(_close_all)
        util.Finalize(None, _close_all, exitpriority=FIRST)


def close(run: Run, reason: str) -> None:
    """Closes a run, completes the futures that fail by it, and ends the completer with the last."""
    if run.process_id != os.getpid():
        return
    run.close(reason)
    completer.flush()
    _open.discard(run)
    if not _open:
        completer.stop()
        forget_dropped()


def _close_all() -> None:
    for run in list(_open):
        with contextlib.suppress(Exception):  # whatever became of one, the others are closed
            close(run, "the process ended")
    completer.stop()
    hosting.join_retired()
