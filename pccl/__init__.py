"""Fault-tolerant collective communication for training over machines that come and go.

    with pccl.connect("127.0.0.1:48148", min_world=2) as comm:
        with comm.step() as step:
            work = step.all_reduce(x, op="sum")
        print(len(step.outcome.contributors))

Public names are those in `__all__`; everything else may change.
"""

from typing import TYPE_CHECKING, Any

from pccl.base.errors import (
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
from pccl.communicator import Communicator
from pccl.connect import connect
from pccl.outcome import Outcome, Peer
from pccl.step import Step
from pccl.transfer import Transfer
from pccl.view import View
from pccl.work import Work

if TYPE_CHECKING:
    from pccl.state_transfer import sync_state

__version__ = "0.1.0"

__all__ = [
    "Closed",
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
    "OutOfMemory",
    "Outcome",
    "OutcomeUnknown",
    "PcclError",
    "Peer",
    "PeerLost",
    "RemoteError",
    "StaleView",
    "Step",
    "StepFailed",
    "Transfer",
    "UsageError",
    "View",
    "ViewChanged",
    "Work",
    "WorldTooSmall",
    "connect",
    "sync_state",
]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: it brings numpy, which a coordinator does not need.
    if name == "sync_state":
        from pccl.state_transfer import sync_state

        return sync_state
    raise AttributeError(f"module 'pccl' has no attribute {name!r}")
