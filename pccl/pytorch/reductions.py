"""torch's ReduceOp in terms of the engine's reductions.

The engine knows sum, avg, prod, min and max.  PREMUL_SUM is a sum of products made here.  For the
bitwise ones nobody has a reduction on the wire: every rank gathers all inputs and folds them in
rank order, which is exact and costs n times the bytes.

Invariant: what has no honest equivalent is refused before anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.distributed import ReduceOp

from pccl.pytorch.errors import Misused

Fold = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Reduction:
    """How the ranks' tensors become one: on the wire by `op`, or by `fold` after an all-gather."""

    op: str
    fold: Fold | None = None
    factor: Any = None  # what the input is multiplied by before
    kind: str = ""  # what `op` does not say of it


_PLAIN: Final[dict[Any, Reduction]] = {
    ReduceOp.SUM: Reduction("sum"),
    ReduceOp.AVG: Reduction("avg"),
    ReduceOp.PRODUCT: Reduction("prod"),
    ReduceOp.MIN: Reduction("min"),
    ReduceOp.MAX: Reduction("max"),
    ReduceOp.BAND: Reduction("", torch.bitwise_and, kind="band"),
    ReduceOp.BOR: Reduction("", torch.bitwise_or, kind="bor"),
    ReduceOp.BXOR: Reduction("", torch.bitwise_xor, kind="bxor"),
}


def reduction_of(asked: Any) -> Reduction:
    """Returns what torch asks for, given an options object, a ReduceOp, or None for a sum.

    A ReduceOp object equals its kind but does not hash like it, so the kind is looked up.
    """
    op = getattr(asked, "reduceOp", asked)
    if op is None:
        return _PLAIN[ReduceOp.SUM]
    found = _PLAIN.get(getattr(op, "op", op))
    if found is not None:
        return found
    if op == ReduceOp.PREMUL_SUM:
        factor = op.__getstate__()[1]  # older versions have no attribute of that name
        return Reduction("sum", factor=factor, kind="premul_sum")
    raise Misused(f"the pccl backend has no reduction {op}")


def check_fold(reduction: Reduction, tensor: torch.Tensor) -> None:
    """Raises Misused where bits of elements have no meaning."""
    if reduction.fold and (tensor.is_floating_point() or tensor.is_complex()):
        raise Misused(f"bitwise reductions are for integers and bool, not {tensor.dtype}")


def scaled(tensor: torch.Tensor, reduction: Reduction) -> torch.Tensor:
    """Returns the input of a PREMUL_SUM: a new tensor of the same dtype.

    Raises:
        Misused: integers by a fraction; each product would lose its own before the sum.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()):
        factor = torch.as_tensor(reduction.factor, device="cpu")
        if not torch.equal(factor, factor.trunc()):
            raise Misused(
                f"PREMUL_SUM of {tensor.dtype} by {reduction.factor}: whole numbers are multiplied "
                "by whole numbers only"
            )
    return torch.mul(tensor.detach(), reduction.factor).to(tensor.dtype)


def fold_rows(rows: torch.Tensor, fold: Fold) -> torch.Tensor:
    """Folds [n, ...] along the first dimension, in order."""
    total = rows[0]
    for row in rows[1:]:
        total = fold(total, row)
    return total
