"""Sums of sparse tensors: every rank gathers the others' elements and adds them up in rank order.

How many elements each rank has must be known before they can be gathered, so this takes steps that
are waited for one after the other: the call returns when the result is there.

Invariant: all ranks add the same elements in the same order, hence the same bits; tensors that are
not alike are told to all of them before an element is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from pccl.pytorch.errors import Mismatch, Misused
from pccl.pytorch.reductions import Reduction
from pccl.pytorch.wording import CALL_ALIKE
from pccl.pytorch.work import PcclWork

if TYPE_CHECKING:
    from pccl.pytorch.group_collectives import GroupCollectives

Tensor = torch.Tensor


def sparse_all_reduce(
    group: GroupCollectives, tensors: Sequence[Tensor], reduction: Reduction, opts: Any
) -> PcclWork:
    """Sums one COO tensor over the ranks, in place.

    Raises:
        Mismatch: ranks have tensors of other shapes, or with other sparse dimensions.
    """
    if len(tensors) != 1 or reduction.op != "sum" or reduction.factor is not None:
        raise Misused("sparse tensors can be summed, one at a time", op="all_reduce")
    tensor = tensors[0]
    mine = tensor.detach().coalesce()
    counts = _counts(group, mine, opts)
    parts = None if counts is None else _gathered(group, mine, counts, opts)
    work = PcclWork(group.run, "all_reduce", (), [tensor])
    if parts is None:  # the commit of the training step will say so; nothing is written
        work.absorbed = True
        return work
    indices, values = parts
    total = torch.sparse_coo_tensor(
        torch.cat(indices, dim=1), torch.cat(values), tensor.shape
    ).coalesce()
    with torch.no_grad():
        tensor.copy_(total)
    return work


def _counts(group: GroupCollectives, mine: Tensor, opts: Any) -> list[int] | None:
    """Returns how many elements each rank has, of tensors that are alike; None: not to be had."""
    form = [mine.sparse_dim(), *mine.shape]
    own = torch.tensor([mine._nnz(), *form], device="cpu")
    rows = torch.empty((group.run.place.size, len(own)), dtype=torch.int64, device="cpu")
    if not _done(group.all_gather_single(rows, own, opts)):
        return None
    forms = rows[:, 1:].tolist()
    other = next((rank for rank, found in enumerate(forms) if found != forms[0]), None)
    if other is not None:
        words = " and ".join(
            f"rank {rank} posted a sparse tensor of shape {found[1:]} with {found[0]} of its "
            "dimensions sparse"
            for rank, found in ((0, forms[0]), (other, forms[other]))
        )
        raise Mismatch(f"{words}; {CALL_ALIKE}", op="all_reduce")
    return [int(count) for count in rows[:, 0]]


def _gathered(
    group: GroupCollectives, mine: Tensor, counts: list[int], opts: Any
) -> tuple[list[Tensor], list[Tensor]] | None:
    """Returns all ranks' coordinates and values; None: not to be had."""
    indices, values = mine.indices(), mine.values()
    all_indices = [_room(indices, (indices.size(0), n)) for n in counts]
    all_values = [_room(values, (n, *values.shape[1:])) for n in counts]
    both = ((all_indices, indices), (all_values, values))
    if not all(_done(group.allgather([rows], [own], opts)) for rows, own in both):
        return None
    return all_indices, all_values


def _done(work: PcclWork) -> bool:
    """Waits; says whether there is a result, and not a failure that waits for the commit."""
    work.wait()
    return not work.absorbed


def _room(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device="cpu")
