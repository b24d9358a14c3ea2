"""One-step-delayed DiLoCo: an interval's reduction travels while the next interval is computed.

    boundary t:  wait for Δ^(t−1) and apply it  ->  entry  ->  start Δ^t  ->  H inner steps from θ

A joiner comes in at the entry, where nothing is on its way: its state holds Δ^(t−1), and it takes
part in the reduction of Δ^t, with nothing to say yet.  So it misses none, and none counts twice.

Invariant: a pseudo-gradient leaves `_carried` and the interval only by a committed reduction.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pccl.base.errors import DeadlineExceeded, Excluded, StepFailed, UsageError
from pccl.communicator import Communicator
from pccl.diloco.exchange import Pending, StatesDiffer, contribution
from pccl.diloco.method import OuterOptimizer
from pccl.diloco.outer import Nesterov
from pccl.diloco.parameters import Model
from pccl.diloco.report import OuterStep

STEP_NAME = "pccl.diloco.async"


class AsyncDiLoCo(OuterOptimizer):
    """DiLoCo whose reductions overlap with the following H inner steps.

    An outer step is applied one interval late; shared parameters and momentum are the same bits on
    all members all the same.  With `eager` a peer begins an interval not at θ but where θ would be
    if its own pseudo-gradients, with the share of one peer, came in one step earlier:

        v_r ← μ v_r + Δ_r / R        θ_r ← θ − η (Δ_r / R + μ v_r)

    The outer optimizer is linear, so that is where Δ_r^t/R + (mean − Δ_r/R)^(t−1) put through it
    leads, which is how the paper says it; but only the peer's model differs, not the shared state.

    Defaults: as DiLoCo, for runs of thousands of steps.  Short runs want less momentum, and lose
    more than `DiLoCo` does: in 200 inner steps of four peers, μ 0, η 0.7, H 10 and `eager` came to
    1.10 times the loss of averaged gradients, the mean of three seeds (benchmarks/README.md).

    Cost: as DiLoCo, and two more f32 copies of the model, four with `eager`; a boundary waits only
    for what is left of the reduction, and for an entry of 64 bytes.

    Source: INTELLECT-2, arXiv:2505.07291 (delay by one step); Kale et al. 2025, arXiv:2502.12996
    (eager updates).
    """

    def __init__(
        self,
        comm: Communicator,
        model: Model,
        *,
        inner_steps: int = 500,
        learning_rate: float = 0.7,
        momentum: float = 0.9,
        eager: bool = False,
        **options: Any,
    ) -> None:
        """Arguments are those of `DiLoCo`, and `eager`, which peers may choose each by itself."""
        self._eager = bool(eager)
        self._ahead = torch.empty(0, device="cpu")  # v_r
        # Where the model was when the interval began.
        self._begin = torch.empty(0, device="cpu")
        self._pending: Pending | None = None
        self._carried: tuple[Tensor, int] | None = None  # of reductions that failed
        outer = Nesterov(learning_rate, momentum)
        super().__init__(comm, model, inner_steps=inner_steps, outer=outer, **options)

    def _joined(self, running: bool) -> None:
        self._pending = None
        self._reset()
        if running:  # the members start a reduction here
            self._start(torch.zeros_like(self._begin), 0)

    def _advance(self) -> OuterStep | None:
        if self._since < self.inner_steps:
            return None
        report = self._drain()
        self._count_inner_steps()
        return self._pass_entry(report)

    def _go_on(self) -> OuterStep | None:
        own = self._begin - self._parameters.read(0)
        begin, ahead = self._theta[0], self._ahead
        if self._eager and bool(torch.isfinite(own).all()):
            begin, ahead = self.outer.update(begin, ahead, own.mul(1.0 / self.comm.world_size))
        payload, tokens = own, self._tokens
        if self._carried is not None:
            payload, tokens = payload.add(self._carried[0]), tokens + self._carried[1]
        self._start(payload, tokens)
        self._carried = None
        self._tokens = 0
        self._ahead = ahead
        self._parameters.write(0, begin)
        self._begin = self._kept(begin)
        return None

    def _start(self, payload: Tensor, tokens: int) -> None:
        self._pending = Pending(
            self.comm,
            STEP_NAME,
            contribution(payload, tokens, self._nonfinite),
            self._state_digest(),
            self._wire,
        )

    def _drain(self) -> OuterStep | None:
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        try:
            return self._commit(0, pending.wait())
        except (Excluded, StatesDiffer):
            raise
        except (StepFailed, DeadlineExceeded):
            # The payload is the contribution again: it goes with the next one.
            self._carried = (pending.brought.payload, pending.brought.tokens)
            raise

    def _idle(self) -> bool:
        return self._pending is None

    def _check_idle(self) -> None:
        super()._check_idle()
        if self._carried is not None:
            raise UsageError("a reduction has failed and is still to be sent; take the next report")

    def _reset(self) -> None:
        self._carried = None
        self._ahead = (
            torch.zeros_like(self._momentum[0]) if self._eager else torch.empty(0, device="cpu")
        )
        self._begin = self._kept(self._theta[0])

    def _kept(self, flat: Tensor) -> Tensor:
        """What the model holds after `flat` was written: a copy, for θ changes in its place."""
        held = self._parameters.rounded(0, flat)
        return held.clone() if held is self._theta[0] else held
