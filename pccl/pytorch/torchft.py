"""pccl under torchft: a process group that torchft's Manager configures for each quorum.

    manager = torchft.Manager(pg=ProcessGroupPCCL(), min_replica_size=2, ...)

torchft decides who takes part; for each quorum it calls `configure` with a prefix of a store that
is used once, and the replicas make a new group there, by the same bootstrap as any other: rank 0
hosts its coordinator.  What was in flight in the group before raises Aborted.

The Manager keeps an error until the step is committed or dropped.  torchft's own wrapper for DDP
does not get there when there are several buckets, so one is here that does, and that communicates
beside the backward pass.

Invariant: at most one group of a ProcessGroupPCCL is alive; `errored` tells why there is none, from
the moment on when an operation has found out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import AllreduceOptions, PrefixStore, Store, TCPStore

from pccl.pytorch import hybrid
from pccl.pytorch.bootstrap import create_group
from pccl.pytorch.errors import Aborted, Misused, PcclDistError
from pccl.pytorch.group import ProcessGroupPccl, device_types
from pccl.pytorch.options import Options
from pccl.pytorch.quorum import Quorum, quorum_of

try:
    from torchft.ddp import DistributedDataParallel as TorchftDDP
    from torchft.process_group import ProcessGroup
except ModuleNotFoundError as error:
    if error.name is None or error.name.split(".")[0] != "torchft":
        raise
    raise ImportError(
        "pccl.pytorch.torchft needs torchft, which is not installed: pip install 'pccl[torchft]'"
    ) from error

TIMEOUT: Final = timedelta(seconds=60)  # torchft's own default
OWN: Final = ("abort", "shutdown", "set_timeout", "get_reconfigure_handle", "reconfigure")
BLOCKS: Final = ("_start_coalescing", "_end_coalescing", "start_coalescing", "end_coalescing")
FORWARDED: Final = (*(name for name in hybrid.FORWARDED if name not in OWN), *BLOCKS)


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """What torch would tell the maker of a group."""

    store: Store
    group_rank: int
    group_size: int
    group_id: str
    timeout: timedelta


class ProcessGroupPCCL(ProcessGroup):  # type: ignore[misc]
    """torchft's ProcessGroup on the pccl backend.

    Args:
        timeout: how long `configure` and each operation may take.
        options: choices for every group that is made.
    """

    def __init__(self, timeout: timedelta = TIMEOUT, options: Options | None = None) -> None:
        super().__init__(0, 1)
        self._timeout = timeout
        self._options = options or Options()
        self._lock = threading.Lock()
        self._group: ProcessGroupPccl | None = None
        self._over: PcclDistError | None = None

    def __repr__(self) -> str:
        return f"ProcessGroupPCCL({self._group})"

    # ---- torchft's own

    def configure(self, *args: Any, **named: Any) -> None:
        """Makes a group of a quorum's members; blocks until all of them are in.

        Takes what `torchft.process_group.ProcessGroup.configure` takes, in any of its versions.

        Raises:
            PcclDistError: there is no group now; `errored` returns the same error.
        """
        asked = quorum_of(args, named)
        self._end("a new quorum was configured", lambda group: group.abort())
        try:
            group = create_group(self._meeting(asked), self._options)
        except PcclDistError as error:
            self._over = error
            raise
        with self._lock:
            self._group, self._over = group, None

    def _meeting(self, asked: Quorum) -> BackendOptions:
        at = asked.store
        try:
            store = TCPStore(
                at.host, at.port, is_master=False, timeout=self._timeout, wait_for_workers=False
            )
        except dist.DistError as error:
            raise PcclDistError(
                f"the store at {at.host} port {at.port} cannot be reached: {error}", op="configure"
            ) from error
        return BackendOptions(
            PrefixStore(at.prefix, store),
            asked.rank,
            asked.world_size,
            asked.name,
            self._timeout,
        )

    def abort(self, errored: bool = True) -> None:
        """Ends the group here at once; until the next `configure` all calls raise Aborted."""
        self._end("the group was aborted", lambda group: group.abort())

    def shutdown(self) -> None:
        """Ends the group here, giving what is in flight a moment to be decided."""
        self._end("the group was shut down", lambda group: group.shutdown())

    def _end(self, reason: str, how: Callable[[ProcessGroupPccl], None]) -> None:
        with self._lock:
            group, self._group = self._group, None
            if group is not None or self._over is None:
                self._over = Aborted(reason)
        if group is not None:
            how(group)

    def errored(self) -> Exception | None:
        """Returns why the group is over, or None if it is not, as far as this process knows."""
        group = self._group
        if group is None:
            return self._over
        try:
            group.run.check("errored")
        except PcclDistError as error:
            return error
        return None

    def set_timeout(self, timeout: timedelta) -> None:
        """Sets how long operations, and the next `configure`, may take."""
        self._timeout = timeout
        if self._group is not None:
            self._group.set_timeout(timeout)

    @property
    def parent(self) -> ProcessGroupPccl:
        """The group of the present quorum.  Raises Aborted or what ended it, if there is none."""
        group = self._group
        if group is not None:
            return group
        if self._over is None:
            raise Misused("the group has not been configured; torchft's Manager does that")
        raise self._over.with_traceback(None)

    # ---- who it is

    def size(self) -> int:
        group = self._group
        return 1 if group is None else group.size()

    def rank(self) -> int:
        group = self._group
        return 0 if group is None else group.rank()

    getSize = size
    getRank = rank

    def getBackendName(self) -> str:
        return "torchft-pccl"

    if not hybrid.WANTED:

        @property
        def _device_types(self) -> list[torch.device]:
            return device_types()

        def _get_backend(self, device: torch.device | str) -> Any:
            return self.parent._get_backend(device)


def _forward(name: str) -> Callable[..., Any]:
    def forward(self: ProcessGroupPCCL, *args: Any, **named: Any) -> Any:
        return getattr(self.parent, name)(*args, **named)

    forward.__name__ = name
    return forward


for _name in FORWARDED:
    setattr(ProcessGroupPCCL, _name, _forward(_name))


class DistributedDataParallel(TorchftDDP):  # type: ignore[misc]
    """torchft's wrapper for DDP, with a hook that keeps errors and does not wait.

    Gradients become the mean over the replicas that take part in the step.  After an error they are
    whatever they were, and the Manager drops the step.
    """

    # Without annotations, which DDP would compare with classes of its own.
    _comm_hook = staticmethod(lambda manager, bucket: _reduce(manager, bucket.buffer()))


def _reduce(manager: Any, buffer: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    """Begins the mean of one bucket; returns a future that is completed without an error."""
    kept: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    kept.set_result(buffer)
    if manager.errored():
        return kept
    manager.wait_quorum()
    if not manager.is_participating():  # its state is still on its way
        buffer.zero_()
    count = manager.num_participants()
    try:
        future = manager._pg.allreduce([buffer], AllreduceOptions()).get_future()
    except Exception as error:  # of any kind: it is the Manager's to judge
        manager.report_error(error)
        return kept

    def mean(done: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
        return done.value()[0].div_(count)

    wrapped: torch.futures.Future[torch.Tensor] = manager.wrap_future(future.then(mean), buffer)
    return wrapped
