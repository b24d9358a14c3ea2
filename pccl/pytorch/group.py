"""The ProcessGroup that torch is given: who it is, how long it waits, and how it ends.

Its collectives are in `group_collectives`, its messages in `group_messages`.  On torch 2.13 a
Python class can replace the whole group but no device backend; from 2.14 on both are wanted
(`hybrid`).

Invariant: rank and size change by `adopt` only, hence never in a static group; nothing but the
program keeps this object alive.
"""

from __future__ import annotations

import weakref
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import ErrorType

from pccl.pytorch import ending, hybrid
from pccl.pytorch.completer import completer
from pccl.pytorch.group_base import GroupBase
from pccl.pytorch.group_collectives import GroupCollectives
from pccl.pytorch.group_messages import GroupMessages
from pccl.pytorch.ordering import Copies
from pccl.pytorch.registration import DEVICES
from pccl.pytorch.run import Run
from pccl.pytorch.staged import HostGroup, StagedCalls, staging_of
from pccl.pytorch.untraced import untraced
from pccl.pytorch.work import PcclWork

if TYPE_CHECKING:
    from pccl.pytorch.reconfigure import Membership

NAME = "pccl"


def device_types() -> list[torch.device]:
    """The kinds of devices that groups take tensors of in this process."""
    return [torch.device(kind) for kind in DEVICES if kind == "cpu" or torch.cuda.is_available()]


class ProcessGroupPccl(  # type: ignore[misc]
    StagedCalls, GroupCollectives, GroupMessages, dist.ProcessGroup
):
    """One group of ranks whose world is fixed."""

    _host_type: type[HostGroup] = HostGroup  # launches calls on twins as this class does others

    def __init__(self, run: Run, timeout_s: float) -> None:
        base: Any = dist.ProcessGroup  # without the store, which it would keep alive
        base.__init__(self, run.place.rank, run.place.size)
        self._timeout_s = timeout_s
        self.membership: Membership | None = None
        self._forgotten: weakref.finalize[..., Any] | None = None
        self._group_name = run.place.group_id
        self._group_desc = "undefined"
        self.adopt(run)
        hybrid.register_device_backend(self)

    def adopt(self, run: Run) -> None:
        """Goes on with a run; a former one has been closed."""
        self.run = run
        self._batch = None
        self._copies = Copies()
        self._staging = staging_of(run, self._host_type)
        ending.note(run)
        if self._forgotten is not None:
            self._forgotten.detach()
        self._forgotten = weakref.finalize(self, ending.close, run, "the program forgot the group")

    def __repr__(self) -> str:
        place = self.run.place
        return f"<ProcessGroupPccl {self._group_name}: rank {place.rank} of {place.size}>"

    # ---- who it is; Python asks by one name, C++ by the other

    def rank(self) -> int:
        return self.run.place.rank

    def size(self) -> int:
        return self.run.place.size

    getRank = rank
    getSize = size

    def name(self) -> str:
        return NAME

    def getBackendName(self) -> str:
        return NAME

    def _get_backend_name(self) -> str:
        return NAME

    def setGroupName(self, name: str) -> None:
        self._group_name = name

    def getGroupName(self) -> str:
        return self._group_name

    def setGroupDesc(self, desc: str) -> None:
        self._group_desc = desc

    def getGroupDesc(self) -> str:
        return self._group_desc

    _set_group_name = setGroupName
    _set_group_desc = setGroupDesc

    @property
    def group_name(self) -> str:  # type: ignore[override]
        return self._group_name

    @property
    def group_desc(self) -> str:
        return self._group_desc

    if not hybrid.WANTED:  # with a device backend registered, torch's own answers hold

        @property
        def _device_types(self) -> list[torch.device]:
            return device_types()

        def _get_backend(self, device: torch.device | str) -> Any:
            """Returns what stands for the device's backend: this group itself."""
            if torch.device(device).type not in DEVICES:
                raise RuntimeError(f"the pccl backend has no {device} device, only cpu and cuda")
            return self

    # ---- what a device backend is asked

    supports_splitting = False
    supports_coalescing = False
    supports_time_estimate = False

    def supports_tensor_alloc(self, device: torch.device) -> bool:
        return False

    def get_error(self) -> Any:
        return ErrorType.SUCCESS if self.run.alive else ErrorType.COMM_ERROR

    def eager_connect_single_device(self, device: torch.device | None = None) -> None:
        """All ranks are connected already."""

    def _set_sequence_number_for_group(self) -> None:
        """Steps are numbered by the run."""

    def set_timeout(self, timeout: timedelta) -> None:
        """Sets how long operations of this group may take from now on."""
        self._timeout_s = max(timeout.total_seconds(), 0.001)

    _set_default_timeout = set_timeout

    @property
    def timeout_s(self) -> float:
        return self._timeout_s

    # ---- other members

    if hybrid.WANTED:
        supports_reconfigure = True

        def get_reconfigure_handle(self) -> str:
            from pccl.pytorch.reconfigure import handle_of

            return handle_of(self)

        def reconfigure(self, opts: Any) -> PcclWork:
            from pccl.pytorch.reconfigure import reconfigure

            return reconfigure(self, opts)

    # ---- the end

    def abort(self) -> None:
        """Ends the group here at once: what is in flight raises Aborted, on the others PeerLost."""
        self.run.close("the group was aborted", drain_s=0.0)
        completer.flush()

    def shutdown(self) -> None:
        """Ends the group here, giving what is in flight a moment to be decided."""
        ending.close(self.run, "the group was shut down")


for _kind in (ProcessGroupPccl, StagedCalls, GroupBase, GroupCollectives, GroupMessages, PcclWork):
    untraced(_kind)
