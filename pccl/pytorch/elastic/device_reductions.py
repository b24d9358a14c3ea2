"""A training step's reductions of tensors that lie on a device: by twins in the host's memory.

    reduce(gradient) ── its copy to the twin begins, beside backward; returns at once
    the copy is there ── the reduction of the twin begins, on the launcher's thread
    the step is committed ── the twins are copied back; the program's stream waits for that

Invariant: a tensor of a device is written when its step is committed and not before, so one that
fails leaves it as it was; then its twins are never lent again, since the engine might know them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pccl.pytorch.staged import Staging
from pccl.pytorch.staging import Mark, Trip

Tensor = torch.Tensor


class _Posting:
    """A reduction that begins when its tensor's copy is there; what a launcher launches.  Whatever
    goes wrong, the step must hear of it: nobody waits for the launcher's thread."""

    def __init__(
        self, marks: Sequence[Mark], post: Callable[[], None], failed: Callable[[Exception], None]
    ) -> None:
        self.op = "reduce_gradient"
        self._marks, self._post, self._failed = marks, post, failed

    def launch(self) -> None:
        try:
            for mark in self._marks:
                mark.wait()
            self._post()
        except Exception as error:  # the device's own, for example
            self._failed(error)


class DeviceReductions:
    """Made by a Transaction, which calls `add` and `queue` under its lock."""

    def __init__(self, staging: Staging, failed: Callable[[Exception], None]) -> None:
        """
        Args:
            failed: told, on the launcher's thread, what kept a reduction from beginning.
        """
        self._staging, self._failed = staging, failed
        self._tensors: list[Tensor] = []
        self._trips: list[Trip] = []

    @property
    def some(self) -> bool:
        return bool(self._trips)

    def owns(self, tensor: Tensor) -> bool:
        return self._staging.owns(tensor)

    def add(self, tensor: Tensor, post: Callable[[Tensor], None]) -> None:
        """Begins the copy to a twin; `post(twin)` is called when it is there, in the order of
        these calls.

        Raises:
            Misused: it cannot be copied, or written through a copy.
            Aborted: the group is over.
        """
        trip = self._staging.trip()
        (twin,) = trip.twins([tensor], read=True, written=True)
        trip.depart()
        self._tensors.append(tensor)
        self._trips.append(trip)

        def begin() -> None:
            trip.arrived()
            post(twin)

        self._staging.launcher.submit(_Posting(trip.marks, begin, self._failed))

    def queue(self, post: Callable[[], None]) -> None:
        """Has something called behind what waits for the device."""
        self._staging.launcher.submit(_Posting((), post, self._failed))

    def drain(self, timeout_s: float) -> bool:
        """Waits until everything is posted; says whether it is."""
        self._staging.launcher.drain(timeout_s)
        return self._staging.launcher.idle

    def land(self) -> None:
        """Copies the means to the device; what the program does next there comes after that."""
        landing = self._staging.landing(self._tensors)
        for trip in self._trips:
            trip.renew()  # the program may have read the gradients since
            trip.land(landing)
        landing.join()
