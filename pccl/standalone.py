"""Operations besides all-reduce, each as a step of its own.

Arguments, errors and costs are those of the functions of the same names on a step
(`pccl.step_collectives`); the step is named by what the operation is, so that a joiner enters where
the members do the same.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from functools import partial
from typing import Any

from pccl.base.errors import PcclError
from pccl.collectives import requests
from pccl.collectives.ops import ReduceOp
from pccl.collectives.placed import Request
from pccl.outcome import Outcome
from pccl.ticket import Ticket
from pccl.work import Work


class Collectives(ABC):
    """Operations that wait for their result, or with `async_op=True` return a Work.

    What makes an array returns it (None where this peer gets nothing); what works in place returns
    the Outcome, as `all_reduce` does.  A Work has both.

    Raises UsageError if an argument is not as described: nothing was changed, and members that have
    posted something get DescriptorMismatch at once.  Raises StepFailed, among them
    DescriptorMismatch and ViewChanged, and DeadlineExceeded if that is the decision on every
    member: inputs are as before.
    """

    @abstractmethod
    def _run(self, make: partial[Request], async_op: bool, timeout_s: float | None) -> Work: ...

    def broadcast(
        self,
        array: Any,
        root: int | bytes = 0,
        *,
        async_op: bool = False,
        timeout_s: float | None = None,
    ) -> Any:
        """Fills every member's `array` with the root's.  Returns the Outcome."""
        make = partial(requests.broadcast, array, root)
        return _outcome(self._run(make, async_op, timeout_s), async_op)

    def reduce(
        self,
        array: Any,
        root: int | bytes = 0,
        op: str | ReduceOp = "sum",
        *,
        weight: float = 1.0,
        out: Any = None,
        async_op: bool = False,
        timeout_s: float | None = None,
        deterministic: bool = False,
    ) -> Any:
        """Reduces `array` element-wise over the members, at the root.  Returns the Outcome."""
        make = partial(requests.reduce, array, root, op, weight, out, deterministic)
        return _outcome(self._run(make, async_op, timeout_s), async_op)

    def reduce_scatter(
        self,
        array: Any,
        out: Any = None,
        op: str | ReduceOp = "sum",
        *,
        counts: Any = None,
        weight: float = 1.0,
        async_op: bool = False,
        timeout_s: float | None = None,
        deterministic: bool = False,
    ) -> Any:
        """Reduces `array` element-wise over the members.  Returns this rank's part."""
        make = partial(requests.reduce_scatter, array, op, weight, out, deterministic, counts)
        return _result(self._run(make, async_op, timeout_s), async_op)

    def all_gather(
        self,
        array: Any,
        out: Any = None,
        *,
        counts: Any = None,
        async_op: bool = False,
        timeout_s: float | None = None,
    ) -> Any:
        """Returns the members' arrays in rank order, of shape [world, *array.shape]."""
        make = partial(requests.all_gather, array, out, counts)
        return _result(self._run(make, async_op, timeout_s), async_op)

    def gather(
        self,
        array: Any,
        root: int | bytes = 0,
        out: Any = None,
        *,
        counts: Any = None,
        async_op: bool = False,
        timeout_s: float | None = None,
    ) -> Any:
        """Returns the members' arrays in rank order at the root, elsewhere None."""
        make = partial(requests.gather, array, root, out, counts)
        return _result(self._run(make, async_op, timeout_s), async_op)

    def scatter(
        self,
        array: Any = None,
        root: int | bytes = 0,
        out: Any = None,
        *,
        async_op: bool = False,
        timeout_s: float | None = None,
    ) -> Any:
        """Returns this rank's part of the root's array, in `out`."""
        make = partial(requests.scatter, array, root, out)
        return _result(self._run(make, async_op, timeout_s), async_op)

    def all_to_all(
        self,
        array: Any,
        out: Any = None,
        send_counts: Any = None,
        receive_counts: Any = None,
        *,
        async_op: bool = False,
        timeout_s: float | None = None,
    ) -> Any:
        """Sends part q to rank q.  Returns what the members have sent here, in rank order."""
        make = partial(requests.all_to_all, array, out, send_counts, receive_counts)
        return _result(self._run(make, async_op, timeout_s), async_op)

    def barrier(self, *, async_op: bool = False, timeout_s: float | None = None) -> Any:
        """Waits until all members have come here.  Returns the Outcome."""
        return _outcome(self._run(partial(requests.barrier), async_op, timeout_s), async_op)


def _outcome(work: Work, async_op: bool) -> Work | Outcome:
    return work if async_op else work.outcome


def _result(work: Work, async_op: bool) -> Any:
    return work if async_op else work.result


def end_empty(ticket: Ticket) -> None:
    """Ends a step that has begun and will have no operation here, since its arguments do not fit.

    Whoever posted something is told of the mismatch, so nobody waits for this peer.
    """
    with contextlib.suppress(PcclError):
        ticket.seal()
        ticket.finish()
