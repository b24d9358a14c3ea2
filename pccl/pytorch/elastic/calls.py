"""An elastic group's collectives: local while it is by itself, and errors wait for the commit.

Invariant: what fails between `begin` and `commit` for the loss of a member raises nothing here; the
commit says it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from pccl.pytorch.elastic.run import ElasticRun
from pccl.pytorch.errors import Misused, PcclDistError
from pccl.pytorch.group_base import GroupBase
from pccl.pytorch.issue import Posting
from pccl.pytorch.layout import Finish
from pccl.pytorch.staged import HostGroup
from pccl.pytorch.work import PcclWork


class ElasticCalls(GroupBase):
    """How a call becomes a Work; to stand before the classes that make the calls."""

    run: ElasticRun
    _tells_failures = False  # to the caller, also those that the commit will tell

    def _launch(
        self,
        op: str,
        postings: list[Posting],
        result: list[torch.Tensor],
        finishes: list[Finish],
        opts: Any,
    ) -> PcclWork:
        if self.run.local:
            for posting in postings:
                _copy(posting)
            return self._noted(PcclWork(self.run, op, (), result, finishes))
        try:
            return super()._launch(op, postings, result, finishes, opts)
        except PcclDistError as error:
            told = isinstance(error, Misused) or self.run.absorb(error, op) is not None
            if told or self._tells_failures:
                raise
            work = PcclWork(self.run, op, (), result)
            work.absorbed = True
            return self._noted(work)


class ElasticHost(ElasticCalls, HostGroup):
    """The calls of an elastic group for tensors of a device, by their twins: twins of what has not
    begun must not be copied back, so whoever would do that is told."""

    _tells_failures = True


def _copy(posting: Posting) -> None:
    """What any collective does in a world of one."""
    source, target = posting.source, posting.target
    if source.byte_count and target.byte_count and source.address != target.address:
        ctypes.memmove(target.address, source.address, min(source.byte_count, target.byte_count))
