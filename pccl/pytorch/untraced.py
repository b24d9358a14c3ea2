"""Keeps torch.compile's tracer out of what is called from C++ inside a compiled function.

DDP's reducer, for one, broadcasts while it rebuilds its buckets, and the tracer would look into
every Python frame that this enters.  A frame's code can be marked as not to be traced, nor what it
calls; that costs nothing when it runs, and needs none of torch's compiler to be loaded.

Invariant: where a version of torch has no such mark, all but compiled DDP works all the same.
"""

from __future__ import annotations

import types
from typing import Any


def untraced(kind: type) -> None:
    """Marks all methods that a class defines itself."""
    try:
        from torch._C._dynamo import eval_frame
    except ImportError:
        return
    door: Any = eval_frame
    mark = getattr(door, "set_code_exec_strategy", None)
    if mark is None:
        return
    skip = door._FrameAction.SKIP
    strategy = door._FrameExecStrategy(skip, skip)
    for member in vars(kind).values():
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        if isinstance(function, types.FunctionType):
            mark(function.__code__, strategy)
