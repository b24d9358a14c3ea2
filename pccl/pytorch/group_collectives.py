"""The collectives of a group, under all names that versions 2.5 to 2.15 of torch call them by.

Options carry the reduction, the root (a rank of the group) and the time-out; users also pass a bare
ReduceOp, a bare tensor, or nothing.  Each method begins one step and returns a Work.

Invariant: what cannot be done is refused before anything is posted, and the step is empty on this
rank; so ranks stay at the same call, and those that have posted something raise Mismatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from pccl.base.errors import PcclError
from pccl.collectives import requests
from pccl.pytorch.errors import Misused
from pccl.pytorch.group_base import GroupBase, called_by_all, one
from pccl.pytorch.issue import AllReducePosting, Posting
from pccl.pytorch.layout import (
    Finish,
    packed_sources,
    packed_targets,
    source_of,
    target_of,
)
from pccl.pytorch.reductions import Reduction, check_fold, fold_rows, reduction_of, scaled
from pccl.pytorch.sparse import sparse_all_reduce
from pccl.pytorch.work import PcclWork
from pccl.step import check_all_reduce

Tensor = torch.Tensor


class GroupCollectives(GroupBase):
    """Methods that ProcessGroupPccl has from here."""

    # ---- reductions

    def allreduce(self, tensors: list[Tensor] | Tensor, opts: Any = None) -> PcclWork:
        return self._all_reduce("all_reduce", _listed(tensors), opts)

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> PcclWork:
        return self._all_reduce("all_reduce_coalesced", tensors, opts)

    @called_by_all
    def _all_reduce(self, op: str, tensors: list[Tensor], opts: Any) -> PcclWork:
        reduction = reduction_of(opts)
        if any(tensor.is_sparse for tensor in tensors):
            return sparse_all_reduce(self, tensors, reduction, opts)
        finishes: list[Finish] = []
        postings = [self._reducing(op, tensor, reduction, finishes) for tensor in tensors]
        return self._launch(op, postings, tensors, finishes, opts)

    def _reducing(
        self, op: str, tensor: Tensor, reduction: Reduction, finishes: list[Finish]
    ) -> Posting:
        target = target_of(tensor, finishes, read=True)
        if reduction.fold is not None:
            check_fold(reduction, tensor)
            rows = torch.empty(
                (self.run.place.size, *tensor.shape), dtype=tensor.dtype, device="cpu"
            )
            fold = reduction.fold
            finishes.insert(0, lambda: _store(target, fold_rows(rows, fold)))
            gathering = partial(requests.all_gather, target, rows, None)
            return self._placed(op, gathering, (reduction.kind, tensor.shape))
        source = target if reduction.factor is None else scaled(target, reduction)
        try:
            checked = check_all_reduce(
                source,
                reduction.op,
                1.0,
                None if source is target else target,
                self.run.options.deterministic,
                "auto",
            )
        except PcclError as error:
            raise self.run.translate(error, op) from error
        return AllReducePosting(checked, (reduction.kind, tensor.shape))

    @called_by_all
    def reduce(self, tensors: list[Tensor], opts: Any) -> PcclWork:
        reduction = reduction_of(opts)
        root = int(opts.rootRank)
        tensor = one(tensors)
        finishes: list[Finish] = []
        if reduction.fold is not None:
            raise Misused("bitwise reductions work with all_reduce only", op="reduce")
        at_root = root == self.run.place.rank
        target = target_of(tensor, finishes, read=True) if at_root else source_of(tensor)
        source = target if reduction.factor is None else scaled(target, reduction)
        out = target if at_root and source is not target else None
        posting = self._placed(
            "reduce",
            lambda: requests.reduce(source, root, reduction.op, 1.0, out, self._deterministic),
            (reduction.kind, tensor.shape),
        )
        return self._launch("reduce", [posting], [tensor], finishes, opts)

    @called_by_all
    def reduce_scatter(
        self, outputs: list[Tensor], input_lists: list[list[Tensor]], opts: Any = None
    ) -> PcclWork:
        finishes: list[Finish] = []
        reduction = reduction_of(opts)
        postings = []
        for output, inputs in zip(_listed(outputs), input_lists, strict=True):
            counts = [tensor.numel() for tensor in inputs]
            self._check_length("reduce_scatter", len(inputs), "inputs")
            source = packed_sources(inputs)
            uneven = None if len(set(counts)) == 1 else counts
            postings.append(
                self._scattering("reduce_scatter", output, source, reduction, finishes, uneven)
            )
        return self._launch("reduce_scatter", postings, _listed(outputs), finishes, opts)

    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any = None) -> PcclWork:
        return self.reduce_scatter_single_coalesced([output], [input], opts)

    @called_by_all
    def reduce_scatter_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> PcclWork:
        op = "reduce_scatter_tensor"
        finishes: list[Finish] = []
        reduction = reduction_of(opts)
        postings = [
            self._scattering(op, output, source_of(input).reshape(-1), reduction, finishes, None)
            for output, input in zip(outputs, inputs, strict=True)
        ]
        return self._launch(op, postings, outputs, finishes, opts)

    def _scattering(
        self,
        op: str,
        output: Tensor,
        source: Tensor,
        reduction: Reduction,
        finishes: list[Finish],
        counts: list[int] | None,
    ) -> Posting:
        if reduction.fold is not None:
            raise Misused("bitwise reductions work with all_reduce only", op=op)
        if reduction.factor is not None:
            source = scaled(source, reduction)
        target = target_of(output, finishes)
        return self._placed(
            op,
            lambda: requests.reduce_scatter(
                source, reduction.op, 1.0, target, self._deterministic, counts
            ),
            (reduction.kind, None) if reduction.kind else None,
        )

    # ---- copies

    @called_by_all
    def broadcast(self, tensors: list[Tensor] | Tensor, opts: Any) -> PcclWork:
        listed = _listed(tensors)
        finishes: list[Finish] = []
        root = int(opts.rootRank)
        postings = []
        for tensor in listed:
            at_root = root == self.run.place.rank
            memory = source_of(tensor) if at_root else target_of(tensor, finishes, read=True)
            make = partial(requests.broadcast, memory, root)
            postings.append(self._placed("broadcast", make, ("", tensor.shape)))
        return self._launch("broadcast", postings, listed, finishes, opts)

    @called_by_all
    def allgather(
        self, output_lists: list[list[Tensor]], inputs: list[Tensor], opts: Any = None
    ) -> PcclWork:
        op = "all_gather"
        finishes: list[Finish] = []
        postings = []
        for outputs, input in zip(output_lists, _listed(inputs), strict=True):
            self._check_length(op, len(outputs), "outputs")
            target = packed_targets(outputs, finishes)
            counts = [output.numel() for output in outputs]
            source = source_of(input).reshape(-1)
            if counts[self.run.place.rank] != source.numel():
                raise Misused(
                    f"this rank's input has {source.numel()} elements, its own output "
                    f"{counts[self.run.place.rank]}",
                    op=op,
                )
            uneven = None if len(set(counts)) == 1 else counts
            postings.append(self._gathering(op, source, target, uneven))
        return self._launch(
            op, postings, [t for outs in output_lists for t in outs], finishes, opts
        )

    def allgather_coalesced(
        self, output_lists: list[list[Tensor]], inputs: list[Tensor], opts: Any = None
    ) -> PcclWork:
        """`output_lists[r][i]` is what rank r has as its input i."""
        by_input = [list(outputs) for outputs in zip(*output_lists, strict=True)]
        return self.allgather(by_input, inputs, opts)

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None) -> PcclWork:
        return self.all_gather_single_coalesced([output], [input], opts)

    @called_by_all
    def all_gather_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> PcclWork:
        op = "all_gather_into_tensor"
        finishes: list[Finish] = []
        postings = [
            self._gathering(op, source_of(input), target_of(output, finishes), None)
            for output, input in zip(outputs, inputs, strict=True)
        ]
        return self._launch(op, postings, outputs, finishes, opts)

    def _gathering(
        self, op: str, source: Tensor, target: Tensor, counts: list[int] | None
    ) -> Posting:
        return self._placed(op, lambda: requests.all_gather(source, target, counts))

    @called_by_all
    def gather(self, output_lists: list[list[Tensor]], inputs: list[Tensor], opts: Any) -> PcclWork:
        root = int(opts.rootRank)
        finishes: list[Finish] = []
        source = source_of(one(inputs)).reshape(-1)
        target, counts, outputs = None, None, []
        if root == self.run.place.rank:
            outputs = one(output_lists)
            self._check_length("gather", len(outputs), "outputs")
            target = packed_targets(outputs, finishes)
            counts = [output.numel() for output in outputs]
        posting = self._placed("gather", lambda: requests.gather(source, root, target, counts))
        return self._launch("gather", [posting], outputs, finishes, opts)

    @called_by_all
    def scatter(
        self, outputs: list[Tensor], input_lists: list[list[Tensor]], opts: Any
    ) -> PcclWork:
        root = int(opts.rootRank)
        finishes: list[Finish] = []
        output = one(outputs)
        target = target_of(output, finishes)
        sources = None
        if root == self.run.place.rank:
            inputs = one(input_lists)
            self._check_length("scatter", len(inputs), "inputs")
            sources = [source_of(tensor) for tensor in inputs]
        posting = self._placed("scatter", lambda: requests.scatter(sources, root, target))
        return self._launch("scatter", [posting], [output], finishes, opts)

    @called_by_all
    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        output_splits: Sequence[int] = (),
        input_splits: Sequence[int] = (),
        opts: Any = None,
    ) -> PcclWork:
        op = "all_to_all_single"
        finishes: list[Finish] = []
        source, target = source_of(input), target_of(output, finishes)
        sends = self._elements(op, input, input_splits, "input")
        receives = self._elements(op, output, output_splits, "output")
        even = not input_splits and not output_splits
        posting = self._exchanging(op, source, target, sends, receives, even)
        return self._launch(op, [posting], [output], finishes, opts)

    @called_by_all
    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> PcclWork:
        op = "all_to_all"
        self._check_length(op, len(outputs), "outputs")
        self._check_length(op, len(inputs), "inputs")
        finishes: list[Finish] = []
        source, target = packed_sources(inputs), packed_targets(outputs, finishes)
        sends, receives = [t.numel() for t in inputs], [t.numel() for t in outputs]
        posting = self._exchanging(op, source, target, sends, receives, False)
        return self._launch(op, [posting], outputs, finishes, opts)

    def _exchanging(
        self,
        op: str,
        source: Tensor,
        target: Tensor,
        sends: list[int],
        receives: list[int],
        even: bool,
    ) -> Posting:
        given = (None, None) if even else (sends, receives)
        flat = (source.reshape(-1), target.view(-1))
        return self._placed(op, lambda: requests.all_to_all(*flat, *given))

    def _elements(self, op: str, tensor: Tensor, splits: Sequence[int], name: str) -> list[int]:
        """Returns elements per rank; splits count rows, none mean equal parts."""
        size, rows = self.run.place.size, tensor.size(0) if tensor.dim() else 1
        if not splits:
            if rows % size:
                raise Misused(f"the {name} has {rows} rows for {size} ranks; pass splits", op=op)
            return [tensor.numel() // size] * size
        self._check_length(op, len(splits), f"{name} splits")
        if sum(splits) != rows:
            raise Misused(f"the {name} has {rows} rows, its splits add up to {sum(splits)}", op=op)
        row = tensor.numel() // rows if rows else 0
        return [split * row for split in splits]

    def barrier(self, opts: Any = None) -> PcclWork:
        return self._launch("barrier", [self._placed("barrier", requests.barrier)], [], [], opts)

    def monitored_barrier(self, timeout: Any = None, wait_all_ranks: bool = False) -> None:
        """A barrier; when time is over it raises TimedOut on all ranks."""
        self.barrier(timeout).wait()

    # ---- the older names

    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced
    alltoall_base = all_to_all_single


def _listed(tensors: Any) -> Any:
    return [tensors] if isinstance(tensors, torch.Tensor) else tensors


def _store(target: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        target.copy_(value)
