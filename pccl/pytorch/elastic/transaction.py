"""One training step's reductions: an open step of the library, committed or undone as a whole.

    open --reduce--> open --commit--> COMMITTED   all results are in place, on every member
                                  └─> FAILED      every tensor is what it was, on every member

Reductions begin when they are posted and run while backward goes on; a member that dies meanwhile
makes the library run them again among those that are left, from the same inputs.

Invariant: besides the program's tensors each member contributes two flags, so all know alike
whether anybody's weight counts (`counts`), and whether somebody waits to come in (`awaited`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
import torch

from pccl.base.errors import Closed, DeadlineExceeded, PcclError, UsageError
from pccl.communicator import Communicator
from pccl.outcome import Outcome
from pccl.pytorch.elastic.device_reductions import DeviceReductions
from pccl.pytorch.errors import Misused
from pccl.pytorch.layout import require_dense
from pccl.pytorch.staged import Staging

FLAGS_TAG: Final = 1 << 30  # above all that programs choose
AWAITED, COUNTS = 0, 1
FLAGS: Final = 2


class Transaction:
    """Made by a group's `begin`.  `reduce` may be called from any thread."""

    def __init__(
        self,
        communicator: Communicator,
        name: str,
        timeout_s: float,
        *,
        replays: bool,
        staging: Staging | None = None,
    ) -> None:
        """Passes the gate.  Raises PcclError as `Communicator.step` does.

        Args:
            staging: of the group, for tensors of a device.
        """
        self._step = communicator.step(name, timeout_s)
        self._step.__enter__()
        self._replays, self._timeout_s = replays, timeout_s
        self._device = None if staging is None else DeviceReductions(staging, self._failed)
        self._lock = threading.Lock()
        # The engine works in their memory; each with its version when that began.
        self._tensors: list[tuple[torch.Tensor, int]] = []
        self._tags: set[int] = set()
        self._trouble: list[tuple[str, BaseException]] = []
        self._flags = np.zeros(FLAGS, np.uint8)
        self._counts = True  # something of weight, or nothing at all, is averaged
        self._weightless: list[tuple[torch.Tensor, torch.Tensor]] = []  # with what they held
        self._everyone = self._flags
        self._closed = False

    @property
    def epoch(self) -> int:
        return self._step.epoch

    @property
    def posted(self) -> bool:
        return bool(self._tensors)

    @property
    def touched(self) -> bool:
        """Says whether torch has changed a tensor since its reduction was posted."""
        return any(tensor._version != version for tensor, version in self._tensors)

    @property
    def trouble(self) -> tuple[str, BaseException] | None:
        """The first operation that went wrong since the beginning, and how."""
        return self._trouble[0] if self._trouble else None

    def note(self, error: BaseException, op: str) -> None:
        """Keeps an error until the commit, which is to fail on all members then."""
        with self._lock:
            self._trouble.append((op, error))

    def reduce(
        self, tensor: torch.Tensor, weight: float, tag: int | None, deterministic: bool
    ) -> None:
        """Starts to average a tensor in place, weighted, over the members.

        Args:
            tag: names the reduction within the step, alike on all members; None numbers them.

        Raises:
            Misused: the tensor is not dense, or on the CPU and not in one piece, or takes part
                already; or the tag is above those of programs, or was used in this step.
        """
        if tag is not None and not 0 <= tag < FLAGS_TAG:
            raise Misused(f"tag must be within 0 to {FLAGS_TAG - 1}, not {tag!r}", op="reduce")
        device = self._device
        lies_there = device is not None and device.owns(tensor)
        if not lies_there:
            require_dense(tensor)
            if not tensor.is_contiguous():
                raise Misused("a tensor of a training step must be contiguous", op="reduce")
        memory = tensor.detach()
        post = partial(self._post, weight=weight, tag=tag, deterministic=deterministic)
        with self._lock:
            self._enter(memory, tag, weight)
            if device is not None and lies_there:
                device.add(memory, partial(self._locked, post))
            elif device is not None and device.some and tag is None:  # in program order
                device.queue(partial(self._locked, post, memory))
            else:
                post(memory)

    def _enter(self, memory: torch.Tensor, tag: int | None, weight: float) -> None:
        if self._closed:
            raise Misused("this training step has been committed already", op="reduce")
        if tag in self._tags:
            raise Misused(
                "a second backward before commit, or a tag used twice; for several "
                "micro-batches use no_sync() (FSDP2: set_requires_gradient_sync(False)) for "
                "all but the last",
                op="reduce",
            )
        self._tags.update(() if tag is None else (tag,))
        self._tensors.append((memory, memory._version))
        self._counts = weight > 0

    def _post(
        self, memory: torch.Tensor, *, weight: float, tag: int | None, deterministic: bool
    ) -> None:
        given = memory
        if weight == 0:  # contributes zeros: what is not finite would still spoil the mean
            given = torch.zeros_like(memory)
            self._weightless.append((memory, memory.clone()))
        try:
            self._step.all_reduce(
                given, out=memory, op="avg", tag=tag, weight=weight, deterministic=deterministic
            )
        except Closed:
            raise  # this process was put out meanwhile
        except UsageError as error:
            raise Misused(str(error), op="reduce") from error

    def _locked(self, post: Callable[[torch.Tensor], None], memory: torch.Tensor) -> None:
        """On the launcher's thread, beside what the program posts itself."""
        with self._lock:
            post(memory)

    def _failed(self, error: Exception) -> None:
        self.note(error, "reduce_gradient")

    def await_device(self) -> None:
        """Waits until all that was handed in is on its way; else the step is to fail."""
        if self._device is not None and not self._device.drain(self._timeout_s):
            text = f"gradients were not computed within {self._timeout_s:g} s"
            self.note(DeadlineExceeded(text), "commit")

    def give_up(self, reason: str) -> None:
        """Ends the step without what this member has not posted: it fails on all.  Raises PcclError
        as `Step.give_up` does."""
        with self._lock:
            self._closed = True
        try:
            self._step.give_up(reason)
        finally:
            self._tensors.clear()

    def close(self, *, awaited: bool) -> Outcome:
        """Ends the step: returns how it was committed.

        Raises:
            PcclError: it was not, on any member, or this process is out.
        """
        with self._lock:
            self._closed = True
            self._flags[AWAITED] = awaited
            self._flags[COUNTS] = self._counts
            if self._replays:
                self._step.all_reduce(self._flags, op="max", tag=FLAGS_TAG)
            else:  # what every member sends to all cannot be had from fewer: no replay
                self._everyone = np.zeros((self._step.world_size, FLAGS), np.uint8)
                self._step.all_gather(self._flags, self._everyone, tag=FLAGS_TAG)
        try:
            self._step.__exit__(None, None, None)
        finally:
            self._tensors.clear()
        if not self.counts:  # so this member's did not, either
            for memory, held in self._weightless:
                memory.copy_(held)
        elif self._device is not None:
            self._device.land()
        return self._step.outcome

    @property
    def counts(self) -> bool:
        """Says, after `close`, whether some member's weight is above 0."""
        return bool(self._said(COUNTS))

    @property
    def awaited(self) -> bool:
        """Says, after `close`, whether some member knows of a newcomer."""
        return bool(self._said(AWAITED))

    def _said(self, flag: int) -> Any:
        return self._everyone.reshape(-1, FLAGS)[:, flag].max()

    def abandon(self) -> None:
        """Leaves the run: the program broke off inside the step, the others go on without it."""
        error = PcclError("the program broke off between begin and commit")
        self._step.__exit__(type(error), error, None)
