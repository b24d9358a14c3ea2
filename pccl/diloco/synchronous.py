"""DiLoCo: H inner steps, then one outer step that everybody waits for.

Invariant: the pseudo-gradient is computed from the model and the shared parameters when it is
needed and kept nowhere, so an outer step that fails leaves nothing to be taken back.
"""

from __future__ import annotations

from typing import Any

from pccl.communicator import Communicator
from pccl.diloco.exchange import Pending, contribution
from pccl.diloco.method import OuterOptimizer
from pccl.diloco.outer import Nesterov
from pccl.diloco.parameters import Model
from pccl.diloco.report import OuterStep

STEP_NAME = "pccl.diloco"


class DiLoCo(OuterOptimizer):
    """Averages pseudo-gradients every H inner steps and applies them with Nesterov momentum.

        Δ_r = θ − θ_r      Δ = Σ w_r Δ_r / Σ w_r  (w: tokens)      m ← μ m + Δ
        θ ← θ − η (Δ + μ m)      θ_r ← θ

    Defaults: η 0.7, μ 0.9, H 500 as in the paper (100 is common since INTELLECT-1).  Few peers and
    short runs want less momentum: in 200 inner steps of four peers, η 0.5, μ 0.5 and H 5 came to
    1.05 times the loss of averaged gradients, the mean of three seeds (benchmarks/README.md).  The
    inner optimizer (AdamW) is the program's and never averaged; a joiner begins with a fresh one.

    Cost: one all-reduce of the model in f32 per H inner steps, a joiner's state after it; memory
    for two f32 copies of the model, and for three more while an outer step runs.

    Source: Douillard et al. 2023, arXiv:2311.08105.
    """

    def __init__(
        self,
        comm: Communicator,
        model: Model,
        *,
        inner_steps: int = 500,
        learning_rate: float = 0.7,
        momentum: float = 0.9,
        **options: Any,
    ) -> None:
        """Arguments are those of `OuterOptimizer` and `Nesterov`."""
        outer = Nesterov(learning_rate, momentum)
        super().__init__(comm, model, inner_steps=inner_steps, outer=outer, **options)

    def _joined(self, running: bool) -> None:
        pass  # nothing is on its way: the next outer step is the first one for a joiner

    def _advance(self) -> OuterStep | None:
        if self._since < self.inner_steps:
            return None
        theta = self._parameters.rounded(0, self._theta[0])
        brought = contribution(theta - self._parameters.read(0), self._tokens, self._nonfinite)
        reduced = Pending(
            self.comm,
            STEP_NAME,
            brought,
            self._state_digest(),
            self._wire,
        ).wait()
        report = self._commit(0, reduced)
        self._count_inner_steps()
        self._tokens = 0
        self._write_all()
        return self._pass_entry(report)
