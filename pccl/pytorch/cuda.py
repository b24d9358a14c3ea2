"""CUDA, as `staging` wants it: side streams, events, page-locked memory.

Each device has two streams of the process: one copies to the host, one to the device.

Invariant: nothing here initialises CUDA before the first CUDA tensor is seen, and nothing is asked
of it while a graph is being captured, since an operation over the network cannot be part of one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pccl.pytorch.errors import Misused

Tensor = torch.Tensor
CUDA: Any = torch.cuda  # whose classes are not typed


class CudaMark:
    """An event, and the device that it is of."""

    __slots__ = ("device", "event")

    def __init__(self, device: torch.device, stream: Any) -> None:
        self.device = device
        # Waiting threads sleep, they do not spin: there is one per group, beside the program's.
        self.event = CUDA.Event(blocking=True)
        self.event.record(stream)

    def passed(self) -> bool:
        return bool(self.event.query())

    def wait(self) -> None:
        self.event.synchronize()


class CudaLayer:
    """The devices of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: dict[torch.device, tuple[Any, Any]] = {}

    def owns(self, tensor: Tensor) -> bool:
        return tensor.is_cuda

    def check(self) -> None:
        if torch.cuda.is_current_stream_capturing():
            raise Misused("an operation over the network cannot be captured in a CUDA graph")

    def page_locked(self, size_bytes: int) -> Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def mark(self, device: torch.device) -> CudaMark:
        return CudaMark(device, torch.cuda.current_stream(device))

    def fetch(self, twin: Tensor, tensor: Tensor, after: Any) -> CudaMark:
        return self._copy(twin, tensor, after, tensor, 0)

    def store(self, tensor: Tensor, twin: Tensor, after: Any) -> CudaMark:
        return self._copy(tensor, twin, after, tensor, 1)

    def _copy(self, into: Tensor, from_: Tensor, after: Any, ours: Tensor, way: int) -> CudaMark:
        stream = self._streams_of(ours.device)[way]
        with torch.cuda.stream(stream), torch.no_grad():
            stream.wait_event(after.event)
            into.copy_(from_, non_blocking=True)
            # Should the program drop the tensor, its memory must outlive the copy.
            ours.record_stream(stream)
            return CudaMark(ours.device, stream)

    def join(self, mark: Any) -> None:
        torch.cuda.current_stream(mark.device).wait_event(mark.event)

    def future_devices(self, tensors: Sequence[Tensor]) -> list[torch.device]:
        return sorted({t.device for t in tensors if t.is_cuda}, key=lambda device: device.index)

    @contextlib.contextmanager
    def storing(self, devices: Sequence[torch.device]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for device in devices:
                stack.enter_context(torch.cuda.stream(self._streams_of(device)[1]))
            yield

    def _streams_of(self, device: torch.device) -> tuple[Any, Any]:
        with self._lock:
            if device not in self._streams:
                # High priority: a copy is short, and what waits for it is the whole job.
                made = (CUDA.Stream(device, -1), CUDA.Stream(device, -1))
                self._streams[device] = made
            return self._streams[device]
