"""What lanes of a story's peers are made of: PEER_TRANSPORT in its environment says so.

Empty: what pccl takes by itself.  "ucx": all bytes between peers go through UCX, also within a
machine; "ucx and memory": large payloads within a machine go through memory beside it.

Invariant: a peer over UCX writes to its standard error what UCX chose, so `went_by_ucx` tells a run
over UCX from one that stayed on TCP without a word.
"""

from __future__ import annotations

import logging
import os
from typing import Any

CHOSEN = "moves the lanes' bytes by"


def asked_for_ucx() -> bool:
    return os.environ.get("PEER_TRANSPORT", "").startswith("ucx")


def wire() -> dict[str, Any]:
    """Returns the story's arguments of `pccl.connect`."""
    if not asked_for_ucx():
        return {}
    logging.basicConfig(level=logging.WARNING)
    in_memory = "memory" in os.environ["PEER_TRANSPORT"]
    return {"transport": "ucx", "shared_memory": None if in_memory else False}


def went_by_ucx(errors: str) -> bool:
    """Tells by what a peer wrote to its standard error."""
    return CHOSEN in errors
