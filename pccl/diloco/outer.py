"""The arithmetic of outer steps, on explicit state and without any communication.

Invariant: the same bits in, the same bits out, on every CPU and GPU.  So every operation here is
one that IEEE 754 rounds once; `torch.add(..., alpha=)` and `lerp`, which may or may not be fused,
are not among them.  Nothing is changed in place that was handed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pccl.base.errors import UsageError


@dataclass(frozen=True, slots=True)
class Nesterov:
    """SGD with Nesterov momentum over averaged pseudo-gradients.

        m ← μ m + Δ        θ ← θ − η (Δ + μ m)

    Attributes:
        learning_rate: η.  0.7 for DiLoCo, 0.4 for its streaming form.
        momentum: μ, within [0, 1).  0.9; for few peers 0.3 to 0.5 may do better.

    Source: Douillard et al. 2023, arXiv:2311.08105, algorithm 1.
    """

    learning_rate: float = 0.7
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UsageError(f"learning_rate must be above 0, not {self.learning_rate!r}")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum must be within [0, 1), not {self.momentum!r}")

    def update(self, parameters: Tensor, momentum: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Returns parameters and momentum after one outer step with the mean pseudo-gradient.

        All of one shape, f32; without momentum, that is returned as it is.

        Cost: memory for both, and one more while it runs.
        """
        if not self.momentum:
            return parameters.sub(mean.mul(self.learning_rate)), momentum
        after = momentum.mul(self.momentum).add_(mean)
        change = after.mul(self.momentum).add_(mean).mul_(self.learning_rate)
        return parameters.sub(change), after


def mix(local: Tensor, shared: Tensor, alpha: float) -> Tensor:
    """Returns α local + (1 − α) shared, which a peer goes on with (Streaming DiLoCo)."""
    return local.mul(alpha).add_(shared.mul(1.0 - alpha))
