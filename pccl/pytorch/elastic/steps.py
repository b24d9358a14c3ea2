"""The loop that programs write.

for batch in pccl.pytorch.steps(state, until=1000):
    optimizer.zero_grad()
    loss_of(model, batch).backward()
    if group.commit():
        optimizer.step()
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from pccl.pytorch.elastic.state import State
from pccl.pytorch.elastic.wrapping import elastic_group
from pccl.pytorch.errors import Aborted, Misused


def steps(
    state: State,
    until: int,
    *,
    group: Any = None,
    weight: float | Callable[[Any], float] = 1.0,
    timeout_s: float | None = None,
) -> Iterator[Any]:
    """Yields a batch for each training step, until so many are committed.

    Each turn begins a step, which the loop's body ends by `group.commit()`.  What was rolled back
    is offered again.  Ends early, without an error, when this member has left (`group.leave`).
    Whoever leaves the loop, by `break` or an exception, leaves the run: nobody waits for it.

    Args:
        state: its `loader` says where batches come from: one that has `batch(rank, size)` and
            `advance(size)`, as `Batches`; or a function of (step, rank, size).  Without one the
            number of the step is yielded.  The step is that of the committed state, so after
            `commit(ok=False)` such a function is asked for the same batch once more.  Rank and
            size are the group's; where replicas have several processes these get the same ones,
            and divide the batch among themselves.
        until: committed steps in all, also those before this process came.
        group: None takes the default group.
        weight: of this member's gradients in a step's averages, or a function of the batch.
        timeout_s: for each meeting of the members; None takes the group's.

    Raises:
        Misused: the body has not called `commit`.
        PcclDistError: as `ElasticGroup.begin`.
    """
    elastic = elastic_group(group)
    offer = _offer_of(state)
    while state.step < until:
        try:
            elastic.begin(state, timeout_s=timeout_s)
        except Aborted:
            if elastic.leaving:
                return
            raise
        if state.step >= until:  # the members go further than this joiner was asked to
            elastic.abandon()
            return
        whole = False
        try:
            batch = offer(state.step, *elastic.replica.share)
            elastic.weigh(weight(batch) if callable(weight) else weight)
            yield batch
            whole = True
        finally:
            if not whole:  # the loop was left, by break or by an exception
                elastic.quit("the loop over steps was left")
        if elastic.run.transaction is not None:
            elastic.abandon()
            raise Misused("the loop's body must call commit()", op="steps")


def _offer_of(state: State) -> Callable[[int, int, int], Any]:
    """Returns what gives the batch of a step to a rank of so many.  Raises Misused."""
    loader = state.loader
    if loader is None:
        return lambda step, rank, size: step
    if hasattr(loader, "batch"):
        return lambda step, rank, size: loader.batch(rank, size)
    if callable(loader) and len(inspect.signature(loader).parameters) == 3:
        given: Callable[[int, int, int], Any] = loader
        return given
    raise Misused(
        "state.loader must have batch(rank, size) and advance(size), as pccl.pytorch.Batches, or "
        "be a function of (step, rank, size)"
    )
