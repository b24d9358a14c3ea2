"""Messages between two ranks.  They belong to no step: see `Communicator.send`.

The other end is named by its peer id: ranks of the library's view move up when one is lost, those
of a torch group never do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from pccl.base.errors import PcclError
from pccl.pytorch.errors import Misused
from pccl.pytorch.group_base import GroupBase, one
from pccl.pytorch.layout import Finish, source_of, target_of
from pccl.pytorch.work import PcclWork

Tensor = torch.Tensor


class GroupMessages(GroupBase):
    """`send` and `recv` under the names that torch calls."""

    def send(self, tensors: list[Tensor], dstRank: int, tag: int = 0) -> Any:
        with self._told_if_refused(True, dstRank, tag):
            tensor = one(tensors)
            source = source_of(tensor)
        return self._message("send", [tensor], [], source, dstRank, tag)

    def recv(self, tensors: list[Tensor], srcRank: int, tag: int = 0) -> Any:
        return self._receive("recv", tensors, srcRank, tag)

    def recv_anysource(self, tensors: list[Tensor], tag: int = 0) -> Any:
        return self._receive("recv_anysource", tensors, None, tag)

    recvAnysource = recv_anysource

    def _receive(self, op: str, tensors: list[Tensor], source: int | None, tag: int) -> Any:
        finishes: list[Finish] = []
        with self._told_if_refused(False, source, tag):
            tensor = one(tensors)
            target = target_of(tensor, finishes)
        return self._message(op, [tensor], finishes, target, source, tag)

    @contextlib.contextmanager
    def _told_if_refused(self, sends: bool, other: int | None, tag: int) -> Iterator[None]:
        """What is refused in here is an error at the other end, too.  (What the library refuses of
        a message, it says there itself.)"""
        try:
            yield
        except Misused:
            self.run.refuse_message(sends, other, tag, self._timeout_s)
            raise

    def _message(
        self,
        op: str,
        result: list[Tensor],
        finishes: list[Finish],
        memory: Tensor,
        other: int | None,
        tag: int,
    ) -> PcclWork:
        self.run.check(op)
        communicator = self.run.communicator
        limit_s = self._timeout_s
        try:
            end = None if other is None else self.run.peer_of(other)
            if end is not None and op == "send":
                part = communicator.send(memory, end, tag, async_op=True, timeout_s=limit_s)
            else:
                part = communicator.recv(memory, end, tag, async_op=True, timeout_s=limit_s)
        except PcclError as error:
            raise self.run.translate(error, op) from error
        return self._noted(PcclWork(self.run, op, (part,), result, finishes))
