"""Fault-tolerant collective communication for training over machines that come and go.

    with pccl.connect("127.0.0.1:48148", min_world=2) as comm:
        with comm.step() as step:
            work = step.all_reduce(x, op="sum")
        print(len(step.outcome.contributors))

Public names are those in `__all__`; everything else may change.

Invariant: importing this loads the errors and nothing else.  Every `import torch` comes by here
where pccl is installed (`pccl.pytorch.registration`), also in programs that never use it.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

from pccl.base.errors import (
    CannotCatchUp,
    Closed,
    ConnectError,
    CoordinatorLost,
    CorruptResult,
    DeadlineExceeded,
    DescriptorMismatch,
    Evicted,
    Excluded,
    Forked,
    Left,
    NonFiniteContribution,
    OutcomeUnknown,
    OutOfMemory,
    PcclError,
    PeerLost,
    RemoteError,
    StaleView,
    StepFailed,
    UsageError,
    ViewChanged,
    WorldTooSmall,
)

if TYPE_CHECKING:
    from pccl.collectives.codecs import Codec
    from pccl.communicator import Communicator
    from pccl.connecting import connect
    from pccl.outcome import Outcome, Peer
    from pccl.state.checkpoint import Checkpoints
    from pccl.state.shared import SharedState
    from pccl.state.told import SyncResult
    from pccl.state_transfer import sync_state
    from pccl.step import Step
    from pccl.transfer import Transfer
    from pccl.view import View
    from pccl.work import Work

__version__ = "0.1.0"

__all__ = [
    "CannotCatchUp",
    "Checkpoints",
    "Closed",
    "Codec",
    "Communicator",
    "ConnectError",
    "CoordinatorLost",
    "CorruptResult",
    "DeadlineExceeded",
    "DescriptorMismatch",
    "Evicted",
    "Excluded",
    "Forked",
    "Left",
    "NonFiniteContribution",
    "OutOfMemory",
    "Outcome",
    "OutcomeUnknown",
    "PcclError",
    "Peer",
    "PeerLost",
    "RemoteError",
    "SharedState",
    "StaleView",
    "Step",
    "StepFailed",
    "SyncResult",
    "Transfer",
    "UsageError",
    "View",
    "ViewChanged",
    "Work",
    "WorldTooSmall",
    "connect",
    "sync_state",
]


_HOMES: Final = {
    "Checkpoints": "state.checkpoint",
    "Codec": "collectives.codecs",
    "Communicator": "communicator",
    "Outcome": "outcome",
    "Peer": "outcome",
    "SharedState": "state.shared",
    "Step": "step",
    "SyncResult": "state.sync",
    "Transfer": "transfer",
    "View": "view",
    "Work": "work",
    "connect": "connecting",
    "sync_state": "state_transfer",
}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is asked for first."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pccl' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"pccl.{_HOMES[name]}"), name)
    globals()[name] = found
    return found
