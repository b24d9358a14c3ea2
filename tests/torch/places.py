"""Where a member's program has its tensors, and what stands for a device where there is none.

cpu    in the host's memory
cuda   on the GPU
fake   in the host's memory, and the group takes every tensor for one of a device
meta   in the host's memory, and torch's default device is another one, whose tensors hold nothing
"""

from __future__ import annotations

from typing import Any

import torch

from pccl.pytorch.staged import Staging
from pccl.pytorch.staging import Pool
from tests.torch.fake_device import FakeDevice


class WholeDevice(FakeDevice):
    """All tensors lie on it, and the program's stream is its thread: kernels are done at once, and
    a stream that waits blocks the program."""

    def owns(self, tensor: torch.Tensor) -> bool:
        return tensor.layout is torch.strided

    def join(self, mark: Any) -> None:
        mark.wait()


def settle(group: Any, place: str) -> torch.device:
    """Makes a group know a place; returns where the model is to be."""
    if place == "fake":
        device = WholeDevice()
        group._staging = Staging(group.run, device, Pool(device.page_locked), group._host_type)
    if place == "meta":
        torch.set_default_device("meta")
    return torch.device("cuda" if place == "cuda" else "cpu")
