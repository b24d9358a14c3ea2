"""pccl for torch: the `torch.distributed` backend "pccl".

    torch.distributed.init_process_group("pccl")

needs no import of this package: torch finds `pccl.pytorch.registration` by its entry point.  Import
it for `Options` (to pass as `pg_options`) and for the errors, which all derive from
`torch.distributed.DistError`.

Invariant: this module imports no torch; its names load when they are asked for, and say what to
install where torch is missing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pccl.pytorch.elastic.batches import Batches
    from pccl.pytorch.elastic.group import ElasticGroup
    from pccl.pytorch.elastic.state import State
    from pccl.pytorch.elastic.steps import steps
    from pccl.pytorch.elastic.wrapping import elastic_ddp, elastic_fsdp, elastic_group
    from pccl.pytorch.errors import (
        Aborted,
        Mismatch,
        Misused,
        PcclDistError,
        PeerLost,
        StaleView,
        TimedOut,
    )
    from pccl.pytorch.group import ProcessGroupPccl
    from pccl.pytorch.options import Options

__all__ = [
    "Aborted",
    "Batches",
    "ElasticGroup",
    "Mismatch",
    "Misused",
    "Options",
    "PcclDistError",
    "PeerLost",
    "ProcessGroupPccl",
    "StaleView",
    "State",
    "TimedOut",
    "elastic_ddp",
    "elastic_fsdp",
    "elastic_group",
    "steps",
]

_HOMES: Final = {
    "Aborted": "errors",
    "Mismatch": "errors",
    "Misused": "errors",
    "PcclDistError": "errors",
    "PeerLost": "errors",
    "StaleView": "errors",
    "TimedOut": "errors",
    "Batches": "elastic.batches",
    "ElasticGroup": "elastic.group",
    "State": "elastic.state",
    "elastic_ddp": "elastic.wrapping",
    "elastic_fsdp": "elastic.wrapping",
    "elastic_group": "elastic.wrapping",
    "steps": "elastic.steps",
    "Options": "options",
    "ProcessGroupPccl": "group",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pccl.pytorch' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"pccl.pytorch.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "torch":
            raise
        raise ImportError(
            f"pccl.pytorch.{name} needs torch, which is not installed: pip install 'pccl[torch]'"
        ) from error
    return getattr(module, name)
