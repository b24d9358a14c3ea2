"""Sums of sparse tensors: every rank gathers the others' elements and adds them up in rank order.

How many elements each rank has must be known before they can be gathered, so this takes two steps,
and the first is waited for when the second is posted: the call returns when the result is nearly
there.  Invariant: all ranks add the same elements in the same order, hence the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from pccl.pytorch.errors import Misused
from pccl.pytorch.reductions import Reduction
from pccl.pytorch.work import PcclWork

if TYPE_CHECKING:
    from pccl.pytorch.group_collectives import GroupCollectives

Tensor = torch.Tensor


def sparse_all_reduce(
    group: GroupCollectives, tensors: Sequence[Tensor], reduction: Reduction, opts: Any
) -> PcclWork:
    """Sums one COO tensor over the ranks, in place."""
    if len(tensors) != 1 or reduction.op != "sum" or reduction.factor is not None:
        raise Misused("sparse tensors can be summed, one at a time", op="all_reduce")
    tensor = tensors[0]
    mine = tensor.detach().coalesce()
    size = group.run.place.size
    counts = torch.empty(size, dtype=torch.int64, device="cpu")
    group.all_gather_single(counts, torch.tensor([mine._nnz()], device="cpu"), opts).wait()
    indices, values = mine.indices(), mine.values()
    all_indices = [_room(indices, (indices.size(0), int(n))) for n in counts]
    all_values = [_room(values, (int(n), *values.shape[1:])) for n in counts]
    group.allgather([all_indices], [indices], opts).wait()
    group.allgather([all_values], [values], opts).wait()
    total = torch.sparse_coo_tensor(
        torch.cat(all_indices, dim=1), torch.cat(all_values), tensor.shape
    ).coalesce()
    with torch.no_grad():
        tensor.copy_(total)
    return PcclWork(group.run, "all_reduce", (), [tensor])


def _room(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device="cpu")
