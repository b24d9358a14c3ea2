"""The methods of `pccl demo --method`, and their settings for runs of a few hundred steps.

Runs so short, of so few peers, want outer steps every 5 inner steps, not every 30 to 500, and less
outer momentum than the papers' 0.9: chosen by the held-out loss of 200 steps of four peers, with
another seed than those of the published figures (benchmarks/README.md).  A delayed method wants its
outer steps further apart and no momentum, for the delay acts like that.  All other numbers are the
papers'.  Free of torch until one is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pccl.communicator import Communicator
    from pccl.diloco import OuterOptimizer

DDP = "ddp"
METHODS = (DDP, "diloco", "async-diloco", "streaming", "sparse-loco")
INNER_STEPS = 5
DELAYED_INNER_STEPS = 10
FRAGMENT_DISTANCE = 5  # inner steps from one fragment's start to the next one's
FRAGMENTS_MAX = 4


def fragments_of(layers: int) -> int:
    """Returns how many fragments a model of so many layers has."""
    return max(1, min(FRAGMENTS_MAX, layers))


def inner_steps_per_reduction(method: str) -> int:
    """Returns how many inner steps there are for one reduction of the method."""
    others = {DDP: 1, "streaming": FRAGMENT_DISTANCE, "async-diloco": DELAYED_INNER_STEPS}
    return others.get(method, INNER_STEPS)


def reductions_of(method: str, steps: int) -> int:
    """Returns how many reductions a run of so many training steps makes."""
    return steps // inner_steps_per_reduction(method)


def all_aboard_at(method: str, steps: int, layers: int) -> int:
    """Returns the reduction from which on every member that is planned for takes part: there the
    members wait for a newcomer."""
    at = steps - max(1, steps // 10)
    if method == DDP:
        return at
    fragments = fragments_of(layers) if method == "streaming" else 1
    return max(1, min(at, steps - fragments - 1))  # the last entry is one round before the end


def last_join_at(method: str, steps: int, layers: int) -> int:
    """Returns the last reduction after which a newcomer may be started: before the one at which the
    members wait for it, which other methods than ddp report only when they have waited."""
    return all_aboard_at(method, steps, layers) - (method != DDP)


def make_outer(
    method: str, comm: Communicator, model: Any, *, layers: int, **options: Any
) -> OuterOptimizer:
    """Enters the run with one of the methods but ddp; options are those that all have."""
    from pccl import diloco  # with torch

    match method:
        case "diloco":
            return diloco.DiLoCo(
                comm, model, inner_steps=INNER_STEPS, learning_rate=0.5, momentum=0.5, **options
            )
        case "async-diloco":
            return diloco.AsyncDiLoCo(
                comm, model, inner_steps=DELAYED_INNER_STEPS, momentum=0.0, eager=True, **options
            )
        case "streaming":
            fragments = fragments_of(layers)
            return diloco.StreamingDiLoCo(
                comm,
                model,
                inner_steps=fragments * FRAGMENT_DISTANCE,
                fragments=fragments,
                overlap=FRAGMENT_DISTANCE // 2,
                learning_rate=0.7,
                momentum=0.5,
                **options,
            )
        case "sparse-loco":
            return diloco.SparseLoCo(comm, model, inner_steps=INNER_STEPS, **options)
        case _:
            raise ValueError(f"no low-communication method is called {method!r}")
