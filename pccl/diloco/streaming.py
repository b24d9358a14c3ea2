"""Streaming DiLoCo: the model is reduced fragment by fragment, each while inner steps go on.

    t ≡ p H/F (mod H):  Δ_r,p = θ_p − θ_r,p starts to be reduced      (an entry before p = 0)
    τ inner steps on:   θ_p by the outer optimizer;  θ_r,p ← α θ_r,p + (1 − α) θ_p

Which fragment is due follows from the count of inner steps, which a joiner is given with the state.
It comes in before fragment 0, when nothing is on its way, and takes part in all fragments from
there on.

Invariant: at most one fragment is on its way, and all members start them in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

from pccl.base.errors import UsageError
from pccl.communicator import Communicator
from pccl.diloco.exchange import Pending, contribution
from pccl.diloco.layers import Schedule, strided_fragments
from pccl.diloco.method import OuterOptimizer
from pccl.diloco.outer import Nesterov, mix
from pccl.diloco.parameters import Model, local_sizes
from pccl.diloco.report import OuterStep
from pccl.step import Step

STEP_NAME = "pccl.diloco.streaming"


@dataclass(frozen=True, slots=True)
class _OnItsWay:
    pending: Pending
    fragment: int
    due: int  # after so many inner steps of the run
    tokens_seen: int  # when it was started


class StreamingDiLoCo(OuterOptimizer):
    """DiLoCo in F fragments whose reductions are spread over the H inner steps.

    Each layer belongs to one fragment (layer l to l mod F); peak traffic is 1/F of DiLoCo's, and
    the inner steps between a fragment's start and its use hide the network.  A reduction that fails
    changes nothing: what was learnt is still in the model, and is part of the next round's.

    Defaults, from the paper: H 100, τ 5, α 0.5, η 0.4, μ 0.9, 4-bit values on the wire and no error
    feedback. F has no default there (three layers each); here it is 4.

    Cost: per H inner steps the traffic of one all-reduce of the model; memory as DiLoCo, and one
    fragment more.

    Source: Douillard et al. 2025, arXiv:2501.18512.
    """

    def __init__(
        self,
        comm: Communicator,
        model: Model,
        *,
        inner_steps: int = 100,
        fragments: int | Sequence[Sequence[str]] = 4,
        overlap: int = 5,
        alpha: float = 0.5,
        learning_rate: float = 0.4,
        momentum: float = 0.9,
        codec: str | None = "auto",
        **options: Any,
    ) -> None:
        """Arguments are those of `OuterOptimizer` and `Nesterov`; alike on all peers.

        Args:
            fragments: how many, or the names of the parameters of each.
            overlap: τ, inner steps, below H/F.
            alpha: α, the share of its own parameters that a peer keeps, within [0, 1].
            codec: as in `Step.all_reduce`; None sends f32; "auto" is int4 where this version of the
                library has it, else f32.
        """
        if not 0 <= alpha <= 1:
            raise UsageError(f"alpha must be within [0, 1], not {alpha!r}")
        names = (
            strided_fragments(local_sizes(model), fragments)
            if isinstance(fragments, int)
            else [list(part) for part in fragments]
        )
        self.schedule = Schedule(inner_steps, len(names), overlap)
        self._alpha = float(alpha)
        codec = four_bits_if_there() if codec == "auto" else codec
        self._flight: _OnItsWay | None = None
        self._seen = 0  # tokens of this peer since it came in
        self._used = [0] * len(names)  # of those, how many are in the fragment's θ
        outer = Nesterov(learning_rate, momentum)
        super().__init__(
            comm,
            model,
            inner_steps=inner_steps,
            outer=outer,
            sections=names,
            codec=codec,
            **options,
        )

    def _joined(self, running: bool) -> None:
        self._flight = None
        self._seen = 0
        self._used = [0] * len(self._used)
        if running:  # the members start fragment 0 here
            self._start(0)

    def _advance(self) -> OuterStep | None:
        self._see_tokens()
        now = self.inner_step
        report = None
        if self._flight is not None and now >= self._flight.due:
            report = self._drain()
        fragment = self.schedule.starts_at(now)
        if fragment == 0:
            self._count_inner_steps()
            return self._pass_entry(report)
        if fragment is not None:
            report = self._start_and_maybe_drain(fragment) or report
        return report

    def _go_on(self) -> OuterStep | None:
        self._see_tokens()  # of an inner step that was taken while the entry was due
        return self._start_and_maybe_drain(0)

    def _start_and_maybe_drain(self, fragment: int) -> OuterStep | None:
        self._start(fragment)
        return self._drain() if self.schedule.overlap == 0 else None

    def _see_tokens(self) -> None:
        self._seen += self._tokens
        self._tokens = 0

    def _start(self, fragment: int) -> None:
        theta = self._parameters.rounded(fragment, self._theta[fragment])
        payload = theta - self._parameters.read(fragment)
        tokens = self._seen - self._used[fragment]
        pending = Pending(
            self.comm,
            f"{STEP_NAME}.{fragment}",
            contribution(payload, tokens, self._nonfinite),
            self._state_digest(),
            self._wire,
        )
        due = self.inner_step + self.schedule.overlap
        self._flight = _OnItsWay(pending, fragment, due, self._seen)

    def _drain(self) -> OuterStep | None:
        flight, self._flight = self._flight, None
        if flight is None:
            return None
        reduced = flight.pending.wait()
        section = flight.fragment
        report = self._commit(section, reduced)
        self._used[section] = flight.tokens_seen
        theta = self._theta[section]
        if flight.pending.brought.left_out:
            mixed = theta  # what this peer has is not finite
        else:
            mixed = mix(self._parameters.read(section), theta, self._alpha)
        self._parameters.write(section, mixed)
        return report

    def _idle(self) -> bool:
        return self._flight is None

    def _reset(self) -> None:
        self._seen = 0
        self._used = [0] * len(self._used)


def four_bits_if_there() -> str | None:
    """Returns the codec of the paper, if this version of the library has codecs."""
    return "int4" if "codec" in signature(Step.all_reduce).parameters else None
