"""Errors of the torch backend: what `torch.distributed` programs catch, told in its hierarchy.

    dist.DistError (a RuntimeError)
    └── dist.DistBackendError
        └── PcclDistError        [pccl:FAILED]      anything else; the base of all below
            ├── Misused          [pccl:MISUSED]     the call itself is wrong (also a ValueError)
            ├── Mismatch         [pccl:MISMATCH]    ranks called different things; names both
            ├── TimedOut         [pccl:TIMED_OUT]   on all ranks (also a TimeoutError)
            ├── Aborted          [pccl:ABORTED]     the group was aborted or shut down here
            └── PeerLost         [pccl:PEER_LOST]   a rank is gone (also a dist.DistNetworkError)
                └── StaleView    [pccl:STALE_VIEW]  a call on a group that has lost a rank before

Each text begins with its token, `[pccl:PEER_LOST epoch=3 op=all_reduce]`, because DDP and futures
hand on the text alone.  The library's own error is the `__cause__`.

Invariant: a static group is over after PeerLost, StaleView or Aborted, and goes on after others.
"""

from __future__ import annotations

from typing import ClassVar, Final

from torch.distributed import DistBackendError, DistNetworkError

from pccl.base import errors as e


class PcclDistError(DistBackendError):
    """Base of what the torch backend raises."""

    code: ClassVar[str] = "FAILED"
    ends_group: ClassVar[bool] = False

    def __init__(
        self, reason: str, *, op: str = "", epoch: int | None = None, ranks: tuple[int, ...] = ()
    ) -> None:
        words = [f"pccl:{self.code}"]
        words += [] if epoch is None else [f"epoch={epoch}"]
        words += [f"op={op}"] if op else []
        super().__init__(f"[{' '.join(words)}] {reason}")
        self.reason, self.op, self.epoch, self.ranks = reason, op, epoch, ranks


class Misused(PcclDistError, ValueError):
    """The call is wrong as it stands; nothing was sent."""

    code = "MISUSED"


class Mismatch(PcclDistError):
    """Ranks called different collectives, or with tensors that do not fit; nothing was changed."""

    code = "MISMATCH"


class TimedOut(PcclDistError, TimeoutError):
    """The operation was not done in time, and all ranks have given it up; nothing was changed."""

    code = "TIMED_OUT"


class Aborted(PcclDistError):
    """The group was aborted, shut down or destroyed in this process."""

    code = "ABORTED"
    ends_group = True


class PeerLost(PcclDistError, DistNetworkError):
    """A rank of the group has gone.  `ranks` says which, as far as that is known."""

    code = "PEER_LOST"
    ends_group = True


class StaleView(PeerLost):
    """The group has lost a rank before this call."""

    code = "STALE_VIEW"


_KINDS: Final[tuple[tuple[type[BaseException], type[PcclDistError]], ...]] = (
    (e.DescriptorMismatch, Mismatch),
    (e.DeadlineExceeded, TimedOut),
    (e.ViewChanged, PeerLost),
    (e.WorldTooSmall, PeerLost),
    (e.PeerLost, PeerLost),
    (e.StaleView, StaleView),
    (e.Excluded, PeerLost),
    (e.Evicted, PeerLost),
    (e.CoordinatorLost, PeerLost),
    (e.Left, Aborted),
    (e.Closed, Aborted),
    (e.UsageError, Misused),
)


def kind_of(error: BaseException) -> type[PcclDistError]:
    """Returns the class of this backend that stands for an error of the library."""
    for theirs, ours in _KINDS:
        if isinstance(error, theirs):
            return ours
    return PcclDistError


# Tracebacks and help() name them as programs import them.
for _kind in (PcclDistError, *{ours for _, ours in _KINDS}):
    _kind.__module__ = "pccl.pytorch"
del _kind
