"""What collectives and messages of a group share: how a call becomes a Work.

Invariant: a call inside a coalescing block is issued like any other, but its Work waits for nothing
before the block ends; the block's own Work covers all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from pccl.base.errors import PcclError
from pccl.collectives.placed import Request
from pccl.pytorch.errors import Misused
from pccl.pytorch.issue import PlacedPosting, Posting
from pccl.pytorch.layout import Finish, refuse_shared
from pccl.pytorch.meaning import Meaning
from pccl.pytorch.ordering import Copies
from pccl.pytorch.run import Run
from pccl.pytorch.work import PcclWork

Tensor = torch.Tensor
Given = ParamSpec("Given")
Group = TypeVar("Group", bound="GroupBase")


class GroupBase:
    """The part of a group that knows its run and its time-out."""

    run: Run
    _timeout_s: float
    _batch: list[PcclWork] | None  # works of an open coalescing block
    _copies: Copies | None = None  # None: whoever makes the calls keeps their order

    # ---- coalescing blocks

    def _start_coalescing(self, device: Any = None) -> None:
        if self._batch is not None:
            raise Misused("a coalescing block is open on this group already")
        self._batch = []

    def _end_coalescing(self, device: Any = None) -> PcclWork:
        """Returns a Work that covers all that was issued since the block began."""
        batch, self._batch = self._batch or [], None
        for work in batch:
            work.deferred = False
        return PcclWork.of_all(self.run, "coalesced", batch)

    start_coalescing = _start_coalescing
    end_coalescing = _end_coalescing

    # ---- what they share

    def _launch(
        self,
        op: str,
        postings: list[Posting],
        result: list[Tensor],
        finishes: list[Finish],
        opts: Any,
    ) -> PcclWork:
        if not postings:  # an empty list of tensors
            return self._noted(PcclWork(self.run, op, (), result))
        if finishes:
            refuse_shared(result, op)
        step = self.run.issue(op, postings, self._limit_s(opts))
        work = PcclWork(self.run, op, (step,), result, finishes)
        if finishes and self._copies is not None:
            self._copies.add(work, result)
        return self._noted(work)

    def _noted(self, work: PcclWork) -> PcclWork:
        if self._batch is not None:
            work.deferred = True
            self._batch.append(work)
        return work

    def _refuse(self, op: str) -> None:
        """A call is refused here that other ranks may have posted."""
        self.run.refuse(op, self._timeout_s)

    def _limit_s(self, opts: Any) -> float:
        timeout = getattr(opts, "timeout", opts)
        seconds = timeout.total_seconds() if hasattr(timeout, "total_seconds") else -1.0
        return float(seconds) if seconds > 0 else self._timeout_s

    @property
    def _deterministic(self) -> bool:
        return self.run.options.deterministic

    def _placed(
        self, op: str, make: Callable[[], Request], meaning: Meaning | None = None
    ) -> Posting:
        return self._place(op, self._request(op, make), meaning)

    def _request(self, op: str, make: Callable[[], Request]) -> Request:
        try:
            request: Request = make()
        except PcclError as error:
            raise self.run.translate(error, op) from error
        return request

    def _place(self, op: str, request: Request, meaning: Meaning | None) -> Posting:
        try:
            return PlacedPosting(request, self.run.seat, meaning)
        except PcclError as error:
            raise self.run.translate(error, op) from error

    def _check_length(self, op: str, found: int, name: str) -> None:
        if found != self.run.place.size:
            raise Misused(f"{found} {name} for {self.run.place.size} ranks", op=op)


def called_by_all(
    method: Callable[Concatenate[Group, Given], PcclWork],
) -> Callable[Concatenate[Group, Given], PcclWork]:
    """Marks a collective: what is refused here is an error on the other ranks, too, at once.

    They may have made a proper call, and would wait for this rank's.
    """

    @functools.wraps(method)
    def call(self: Group, /, *args: Given.args, **named: Given.kwargs) -> PcclWork:
        try:
            return method(self, *args, **named)
        except Misused:
            self._refuse(method.__name__)
            raise

    return call


def one(items: Any) -> Any:
    """Returns the only item of a list that torch means for several devices per process."""
    if len(items) != 1:
        raise Misused(f"one tensor (or list) per call and rank, not {len(items)}")
    return items[0]
