"""The order of calls that share memory, where copies stand between tensors and the engine.

What the engine cannot take as it lies (views with gaps, lists, tensors of a device) is copied: an
input when the call is made, an output when its Work is finished.  The engine knows the copies only.
So a call waits here first for whatever still uses, or is yet to write, the memory of its tensors.

Invariant: calls on tensors that share memory give what they would give one after the other, in
whatever order their Works are waited for.  Messages are not held up, since the other side may wait
for a later one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import torch

from pccl.base.errors import DeadlineExceeded, PcclError, UsageError
from pccl.collectives.buffers import Buffer
from pccl.collectives.dtypes import Dtype
from pccl.pytorch.overlap import extent, overlap
from pccl.session import Session

Tensor = torch.Tensor
UNFINISHED_MAX: Final = 256  # then the oldest is finished, whether its owner asks for it or not


class Unfinished(Protocol):
    """What is known here of a Work."""

    @property
    def finished(self) -> bool: ...
    def outwait(self) -> None:
        """Waits until it is decided and finished, however it ends."""


class Copies:
    """The Works of one group that are yet to write tensors.  May be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._works: list[tuple[Unfinished, list[Tensor]]] = []

    @property
    def some(self) -> bool:
        return bool(self._works)

    def add(self, work: Unfinished, written: Sequence[Tensor]) -> None:
        with self._lock:
            self._works = [known for known in self._works if not known[0].finished]
            self._works.append((work, [tensor.detach() for tensor in written]))
            oldest = self._works[0][0] if len(self._works) > UNFINISHED_MAX else None
        if oldest is not None:
            oldest.outwait()

    def settle(self, tensors: Sequence[Tensor]) -> None:
        """Finishes what is yet to write memory of these tensors."""
        with self._lock:
            works = self._works = [known for known in self._works if not known[0].finished]
        for work, written in works:
            if any(overlap(t, w) for t in tensors for w in written):
                work.outwait()


def await_users(session: Session, source: Buffer, target: Buffer, timeout_s: float) -> None:
    """Waits until no step in flight uses this memory in conflict.

    Raises:
        UsageError: an open training step does.
        DeadlineExceeded: one still does after `timeout_s`.
    """
    for ticket in session.users_of(source, target):
        if not ticket.sealed:
            raise UsageError(
                "this memory is being reduced by the open training step; read and change "
                "gradients after commit()"
            )
        if not ticket.wait(timeout_s):
            raise DeadlineExceeded(
                f"an earlier operation on the same memory is not done after {timeout_s:g} s"
            )


def await_tensors(
    session: Session,
    tensors: Sequence[tuple[Tensor, bool]],
    timeout_s: float,
    translate: Callable[[PcclError], BaseException],
) -> None:
    """Waits as `await_users`, for tensors of the CPU that are copied; True: it is written."""
    for tensor, written in tensors:
        begin, end = extent(tensor)
        if end == 0 or tensor.device.type != "cpu":
            continue
        memory = Buffer(tensor, begin, end - begin, Dtype.U8, (end - begin,), True)
        nothing = Buffer(tensor, begin, 0, Dtype.U8, (0,), True)
        try:
            await_users(session, memory, memory if written else nothing, timeout_s)
        except PcclError as error:
            raise translate(error) from error
