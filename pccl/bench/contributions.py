"""What each rank contributes when a result is to be checked, and what must come out.

Contributions are small integers in a pattern of a prime period that no piece of a tensor is a
multiple of, different on every rank, so that a lost, doubled or displaced piece shows.
Invariant: but for avg, inputs, partial results and results are exact in every element type for up
to WORLD_MAX ranks, so that the comparison is exact.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

WORLD_MAX: Final = 126  # a sum of ones has to fit into i8
PERIOD: Final = 251
BLOCK: Final = PERIOD * 256  # elements; checks go block by block and need no second tensor
AVG_EPSILONS: Final = 4.0
INTEGER_AVG_SLACK: Final = 0.999  # rounded down, up or to nearest

Floats = np.ndarray[Any, np.dtype[np.float64]]


def contribution(op: str, rank: int, world: int) -> Floats:
    """Returns one block of what `rank` brings; all blocks are alike."""
    index = np.arange(PERIOD)
    drawn = index * (rank + 1) // 8
    match op:
        case "sum":
            values = drawn % 2
        case "prod":
            values = 1 + (index % (world + 1) == rank)
        case _:
            values = drawn % 5
    return np.resize(values.astype(np.float64), BLOCK)


def expected(op: str, world: int) -> Floats:
    """Returns one block of what the contributions reduce to."""
    folds = {"prod": np.multiply, "min": np.minimum, "max": np.maximum}
    fold = folds.get(op, np.add)
    result = contribution(op, 0, world)
    for rank in range(1, world):
        fold(result, contribution(op, rank, world), out=result)
    return result / world if op == "avg" else result


def fill(array: Any, op: str, rank: int, world: int) -> None:
    """Writes what `rank` brings into a one-dimensional numpy array or torch tensor."""
    values: Any = contribution(op, rank, world)
    if not isinstance(array, np.ndarray):
        import torch  # a tensor exists, so it is loaded

        values = torch.from_numpy(values)
    for first in range(0, len(array), BLOCK):
        block = array[first : first + BLOCK]
        block[:] = values[: len(block)]


def first_difference(array: Any, op: str, world: int, epsilon: float) -> str | None:
    """Compares a result with what it has to be; returns None or what differs first, in words.

    `epsilon` is that of the array's dtype, 0 for integers; it matters to avg alone.
    """
    wanted = expected(op, world)
    slack = np.zeros_like(wanted)
    if op == "avg":
        slack = AVG_EPSILONS * epsilon * wanted if epsilon else slack + INTEGER_AVG_SLACK
    for first in range(0, len(array), BLOCK):
        block = array[first : first + BLOCK]
        found = np.asarray(block if isinstance(block, np.ndarray) else block.double(), np.float64)
        count = len(found)
        wrong = np.flatnonzero(~(np.abs(found - wanted[:count]) <= slack[:count]))
        if wrong.size:
            at = int(wrong[0])
            return (
                f"element {first + at} of {len(array)} is {found[at]:g} and should be "
                f"{wanted[at]:g}; {wrong.size} of {count} elements are wrong in this block"
            )
    return None
