"""A device without a device: ordinary tensors that are declared to lie on it, and three streams.

Each stream is a thread that does what is queued on it, in order; so a copy that is looked at before
a stream has come to it shows old data, as on a real device.  Page-locked memory is filled with
rubbish, so what is used before it was fetched is wrong.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

Tensor = torch.Tensor
WAIT_S = 60.0
RUBBISH = 0xAB


class FakeMark:
    def __init__(self) -> None:
        self._event = threading.Event()

    def passed(self) -> bool:
        return self._event.is_set()

    def wait(self) -> None:
        assert self._event.wait(WAIT_S)

    def set(self) -> None:
        self._event.set()


class Stream:
    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True, name="fake stream").start()

    def add(self, *acts: Callable[[], object]) -> FakeMark:
        mark = FakeMark()
        for act in (*acts, mark.set):
            self._queue.put(act)
        return mark

    def _run(self) -> None:
        while True:
            self._queue.get()()


class FakeDevice:
    """A `Layer`, and what a program does on it."""

    def __init__(self) -> None:
        self.program, self.down, self.up = Stream(), Stream(), Stream()
        self._ours: dict[int, Tensor] = {}
        self.allocated: list[int] = []
        self.storings = 0

    # ---- the program's side

    def tensor(self, data: Tensor) -> Tensor:
        """Declares a tensor, and its views, to lie on the device."""
        self._ours[data.untyped_storage().data_ptr()] = data
        return data

    def compute(self, act: Callable[[], object]) -> None:
        """A kernel on the program's stream."""
        self.program.add(act)

    def hold(self) -> threading.Event:
        """Holds the program's stream until the event is set."""
        gate = threading.Event()
        self.compute(lambda: gate.wait(WAIT_S))
        return gate

    def synchronize(self) -> None:
        for stream in (self.program, self.down, self.up):
            stream.add().wait()

    # ---- the layer

    def owns(self, tensor: Tensor) -> bool:
        strided = tensor.layout is torch.strided
        return strided and tensor.untyped_storage().data_ptr() in self._ours

    def check(self) -> None:
        """Everything can be copied at any time."""

    def page_locked(self, size_bytes: int) -> Tensor:
        self.allocated.append(size_bytes)
        return torch.full((size_bytes,), RUBBISH, dtype=torch.uint8)

    def mark(self, device: torch.device) -> FakeMark:
        return self.program.add()

    def fetch(self, twin: Tensor, tensor: Tensor, after: Any) -> FakeMark:
        return self.down.add(after.wait, lambda: twin.copy_(tensor))

    def store(self, tensor: Tensor, twin: Tensor, after: Any) -> FakeMark:
        return self.up.add(after.wait, lambda: tensor.copy_(twin))

    def join(self, mark: Any) -> None:
        self.program.add(mark.wait)

    def future_devices(self, tensors: Sequence[Tensor]) -> list[torch.device]:
        return []

    def storing(self, devices: Sequence[torch.device]) -> contextlib.AbstractContextManager[object]:
        self.storings += 1
        return contextlib.nullcontext()
