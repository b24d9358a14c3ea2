"""Host memory for tensors of a device: page-locked buffers, and the copies there and back.

    the program's stream ──mark──┐                                   ┌──join──> goes on
                                 └─> fetch, on a stream of its own   │
    host                             twin ──> the operation ──> twin │
    another stream of its own                                   store┘

A tensor on a device has a *twin*, a tensor of the same shape in page-locked memory, which the
operation works on.  Copies run beside the program's stream, inputs and outputs on different ones,
so that a result is not held up by the next operation's input.

What a device is able to do is behind `Layer`; so all that is decided here runs without one.

Invariant: a buffer is lent again only when the copy that read it last is over; a buffer whose
operation failed is never lent again, since the engine might still know it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol

import torch

from pccl.pytorch.errors import Misused
from pccl.pytorch.layout import refuse_shared, require_own_memory

Tensor = torch.Tensor

POOL_FREE_BYTES_MAX: Final = 512 << 20  # what DDP's buckets of a model with 1e8 parameters take
BLOCK_BYTES_MIN: Final = 4096
ALIGN_BYTES: Final = 64


class Mark(Protocol):
    """A point in one of a device's streams."""

    def passed(self) -> bool: ...
    def wait(self) -> None:
        """Blocks this thread until the device has passed it."""


class Layer(Protocol):
    """What is asked of a kind of device."""

    def owns(self, tensor: Tensor) -> bool: ...
    def check(self) -> None:
        """Raises Misused where nothing can be copied now."""

    def page_locked(self, size_bytes: int) -> Tensor: ...
    def mark(self, device: torch.device) -> Mark:
        """Marks the current stream of a device as it is now."""

    def fetch(self, twin: Tensor, tensor: Tensor, after: Mark) -> Mark:
        """Copies a device's tensor to its twin once `after` has passed; returns at once."""

    def store(self, tensor: Tensor, twin: Tensor, after: Mark) -> Mark:
        """Copies a twin to its tensor once `after` has passed; returns at once."""

    def join(self, mark: Mark) -> None:
        """Makes the current stream of the mark's device wait for it."""

    def future_devices(self, tensors: Sequence[Tensor]) -> list[torch.device]:
        """Returns what a future of these tensors must know."""

    def storing(self, devices: Sequence[torch.device]) -> AbstractContextManager[object]:
        """Within, the streams of `store` are the current ones."""


class Pool:
    """Page-locked buffers, kept for reuse up to a limit.  May be called from any thread."""

    def __init__(
        self, allocate: Callable[[int], Tensor], free_bytes_max: int = POOL_FREE_BYTES_MAX
    ) -> None:
        self._allocate = allocate
        self._free_bytes_max = free_bytes_max
        self._lock = threading.Lock()
        self._free: list[Tensor] = []  # in the order in which they were given back
        self._leaving: list[tuple[Tensor, tuple[Mark, ...]]] = []

    @property
    def free_bytes(self) -> int:
        with self._lock:
            self._settle()
            return sum(block.numel() for block in self._free)

    def take(self, size_bytes: int) -> Tensor:
        """Returns a buffer of at least so many bytes."""
        wanted = block_bytes(size_bytes)
        with self._lock:
            self._settle()
            for at in range(len(self._free) - 1, -1, -1):  # the latest is likeliest in a cache
                if self._free[at].numel() == wanted:
                    return self._free.pop(at)
        return self._allocate(wanted)

    def give(self, block: Tensor, after: Iterable[Mark] = ()) -> None:
        """Takes a buffer back, to be lent again when the marks have passed."""
        with self._lock:
            self._leaving.append((block, tuple(after)))
            self._settle()

    def _settle(self) -> None:
        waiting = []
        for block, marks in self._leaving:
            if all(mark.passed() for mark in marks):
                self._free.append(block)
            else:
                waiting.append((block, marks))
        self._leaving = waiting
        over = sum(block.numel() for block in self._free) - self._free_bytes_max
        while over > 0:
            over -= self._free.pop(0).numel()


def block_bytes(size_bytes: int) -> int:
    """Rounds a size up so that few sizes are asked for: to quarters of a power of two, hence by a
    quarter at most."""
    if size_bytes <= BLOCK_BYTES_MIN:
        return BLOCK_BYTES_MIN
    step: int = 1 << max(0, (size_bytes - 1).bit_length() - 3)
    return math.ceil(size_bytes / step) * step


def carve(tensors: Sequence[Tensor], take: Callable[[int], Tensor]) -> tuple[list[Tensor], Tensor]:
    """Returns twins for tensors, and the buffer that they lie in.

    Twins of one dtype follow each other without a gap, so the engine takes a list of them in one
    piece.
    """
    offsets, at = [], 0
    dtype = tensors[0].dtype
    for tensor in tensors:
        if tensor.dtype != dtype:
            at, dtype = math.ceil(at / ALIGN_BYTES) * ALIGN_BYTES, tensor.dtype
        offsets.append(at)
        at += tensor.numel() * tensor.element_size()
    block = take(at)
    twins = []
    for tensor, begin in zip(tensors, offsets, strict=True):
        part = block[begin : begin + tensor.numel() * tensor.element_size()]
        twins.append(part.view(tensor.dtype).view(tensor.shape))
    return twins, block


class Landing:
    """The results of one call on their way to the device."""

    def __init__(self, layer: Layer, result: Sequence[Tensor]) -> None:
        self._layer = layer
        self._marks: list[Mark] = []
        self.devices = layer.future_devices(result)

    def add(self, marks: Sequence[Mark]) -> None:
        self._marks += marks

    def join(self) -> None:
        """Makes the current streams wait for the results."""
        for mark in self._marks:
            self._layer.join(mark)

    def storing(self) -> AbstractContextManager[object]:
        return self._layer.storing(self.devices)


class Trip:
    """The copies of one call: made on the caller's thread, ended where the call is finished."""

    def __init__(self, layer: Layer, pool: Pool) -> None:
        layer.check()
        self._layer, self._pool = layer, pool
        self._blocks: list[Tensor] = []
        self._fetches: list[tuple[Tensor, Tensor]] = []
        self._stores: list[tuple[Tensor, Tensor]] = []
        self._called: dict[torch.device, Mark] = {}
        self.marks: list[Mark] = []

    def twins(self, tensors: Sequence[Tensor], *, read: bool, written: bool) -> list[Tensor]:
        """Returns what stands for the tensors on the host: twins, or themselves if they are there.

        Raises:
            Misused: an output cannot be written through a copy.
        """
        ours = [tensor for tensor in tensors if self._layer.owns(tensor)]
        if not ours:
            return list(tensors)
        for tensor in ours:
            if tensor.layout is not torch.strided:
                raise Misused(f"a tensor has layout {tensor.layout}; dense tensors only")
            if written:
                require_own_memory(tensor)
                if tensor.is_conj() or tensor.is_neg():
                    raise Misused("an output is a conjugate or negative view; resolve it first")
        if written:
            refuse_shared(ours)
        twins, block = carve(ours, self._pool.take)
        self._blocks.append(block)
        pairs = list(zip(twins, (tensor.detach() for tensor in ours), strict=True))
        if read:
            self._fetches += [(twin, t.resolve_conj().resolve_neg()) for twin, t in pairs]
        if written:
            self._stores += pairs
        found = iter(twins)
        return [next(found) if self._layer.owns(tensor) else tensor for tensor in tensors]

    def depart(self) -> None:
        """Begins the copies to the host, on streams that go on from where the current ones are."""
        for _, tensor in (*self._fetches, *self._stores):
            if tensor.device not in self._called:
                self._called[tensor.device] = self._layer.mark(tensor.device)
        for twin, tensor in self._fetches:
            self.marks.append(self._layer.fetch(twin, tensor, self._called[tensor.device]))

    def arrived(self) -> None:
        """The inputs are on the host: the device's memory may be used again."""
        self._fetches = []

    def renew(self) -> None:
        """Has the copies of results wait for what the current streams do until now."""
        self._called = {device: self._layer.mark(device) for device in self._called}

    def land(self, landing: Landing) -> None:
        """Begins the copies of the results to the device; the twins are not used any more."""
        marks = [
            self._layer.store(tensor, twin, self._called[tensor.device])
            for twin, tensor in self._stores
        ]
        landing.add(marks)
        for block in self._blocks:
            self._pool.give(block, marks)
        self._blocks, self._stores = [], []
