"""What counts as a whole number: Python's, numpy's and torch's integers, and never a bool.

Invariant: whatever is passed, the answer is an int or None; nothing is raised.
"""

from __future__ import annotations

import operator
from typing import Any


def whole_number(value: Any) -> int | None:
    """Returns an integer of any kind as an int; None if `value` is none.

    An array says that it has an index, and has one only if it is a single integer.
    """
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except Exception:  # a stranger's __index__ may raise anything: torch's, RuntimeError
        return None
