"""What a call that fails tells, and how soon that must be."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

SOON_S = 15.0  # a lease is 3 s, a flush 2; the rest is for a busy machine


def told_by(call: Callable[[], Any]) -> tuple[str, str, float]:
    """Returns the class and the text of what a call raises, and how long that took."""
    began_s = time.monotonic()
    try:
        call()
    except Exception as error:
        assert isinstance(error, RuntimeError), repr(error)
        return type(error).__name__, str(error), time.monotonic() - began_s
    return "nothing", "", time.monotonic() - began_s
