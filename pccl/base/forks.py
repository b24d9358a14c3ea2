"""Which process this is, without asking the kernel: a child of a fork has another generation.

Invariant: `generation()` never changes in a process, and differs from its parent's.
"""

from __future__ import annotations

import os

_generation = 0


def generation() -> int:
    """Returns how many forks lie between the first process and this one."""
    return _generation


def _count() -> None:
    global _generation
    _generation += 1


os.register_at_fork(after_in_child=_count)
