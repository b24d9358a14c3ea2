"""torch >= 2.14: a device backend beside the group.

From 2.14 on `torch._C._distributed_c10d.Backend` can be subclassed in Python, and torch asks the
device's backend for batched messages, pipelining and asynchronous checkpoints; a group without one
lacks these.  So the group registers a thin backend that hands every call back to it.

**Not tested**: this project is built and tested with torch 2.13, where such a class cannot be made.
It is written from torch's published interface, and reached on newer versions only.

Invariant: on 2.13 and before nothing here touches torch's classes; the backend holds its group
weakly, since the group owns it.
"""

from __future__ import annotations

import weakref
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist

VERSION: Final = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
WANTED: Final = VERSION >= (2, 14)
FORWARDED: Final = (
    "allreduce allreduce_coalesced broadcast allgather allgather_coalesced all_gather_single "
    "all_gather_single_coalesced _allgather_base allgather_into_tensor_coalesced reduce_scatter "
    "reduce_scatter_single reduce_scatter_single_coalesced _reduce_scatter_base "
    "reduce_scatter_tensor_coalesced all_to_all_single alltoall_base alltoall reduce gather "
    "scatter barrier monitored_barrier send recv recv_anysource abort shutdown set_timeout "
    "get_reconfigure_handle reconfigure"
).split()


def register_device_backend(group: Any) -> None:
    """Gives a group its device backend where this version of torch has such."""
    if not WANTED:
        return
    backend = _backend_class()(weakref.ref(group), group.rank(), group.size())
    kind = dist.ProcessGroup.BackendType.CUSTOM
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for device in devices:
        group._register_backend(torch.device(device), kind, backend)
    group._set_default_backend(kind)


def _backend_class() -> Any:
    base: Any = torch._C._distributed_c10d.Backend

    def __init__(self: Any, group: weakref.ref[Any], rank: int, size: int) -> None:
        base.__init__(self, rank, size)
        self._group = group
        self._options = base.Options("pccl", timedelta(minutes=30))

    body: dict[str, Any] = {
        "__init__": __init__,
        "options": property(lambda self: self._options),
        "getBackendName": lambda self: "pccl",
        "name": lambda self: "pccl",
        "supports_coalescing": property(lambda self: False),
        "supports_splitting": property(lambda self: False),
        "supports_reconfigure": property(lambda self: True),
    }
    body.update({name: _forward(name) for name in FORWARDED})
    return type("BackendPccl", (base,), body)


def _forward(name: str) -> Any:
    def forward(self: Any, *args: Any, **named: Any) -> Any:
        group = self._group()
        if group is None:
            raise RuntimeError("the group of this backend is gone")
        return getattr(group, name)(*args, **named)

    return forward
