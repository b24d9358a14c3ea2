"""Sparse exchange as a communicator has it; what it means is in `pccl.sparse`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pccl.communicator import Communicator
    from pccl.sparse import SparseGathered, SparseReduced


class SparseCollectives(ABC):
    """The part of a Communicator that averages the largest entries of tensors."""

    @abstractmethod
    def _timeout(self, timeout_s: float | None) -> float: ...

    def sparse_all_reduce(
        self,
        tensors: Sequence[Any],
        *,
        top_k: int = 64,
        value_bits: int = 2,
        weight: float = 1.0,
        nonfinite: str = "raise",
        timeout_s: float | None = None,
    ) -> SparseReduced:
        """Averages the largest entries of each block of some tensors, over those who sent an entry.

        Args:
            tensors: contiguous f32 arrays or CPU tensors, which are only read; shapes alike on all
                members.  Two dimensions and more are cut into blocks of up to 64 x 64, one
                dimension into pieces of up to 64.
            top_k: entries sent per block, at most the block.
            value_bits: 2, 4 or 8: levels of a table per tensor; 16: bf16; 32: as they are.
            weight: of this peer's contribution, 0 for none.
            nonfinite: with an Inf or a NaN in a contribution, "raise" raises on all members,
                "drop_contributor" leaves it out, "allow" takes it as it is.
            timeout_s: for all of it, attempts after the loss of a member included.

        Returns:
            The mean, what was sent of `tensors`, and the step's outcome; see `SparseReduced`.

        Raises:
            UsageError: an argument is not as described; nothing was sent.
            NonFiniteContribution: as `nonfinite` says; on all members.
            DescriptorMismatch: shapes or settings differ between the members.
            PcclError: as a step raises.  Whatever is raised, nothing has changed.

        Cost: at the defaults, for matrices with sides that 64 divides, 1/205 of the f32 bytes from
        each member to each other; with so many members that dense sums would be cheaper, these.

        Source: SparseLoCo, arXiv:2508.15706.
        """
        from pccl.sparse import exchange  # numpy is loaded when it is needed

        comm = cast("Communicator", self)
        with comm.session.told_if_refused("sparse_all_reduce"):
            limit_s = self._timeout(timeout_s)
        return exchange.all_reduce(
            comm,
            tensors,
            top_k=top_k,
            value_bits=value_bits,
            weight=weight,
            nonfinite=nonfinite,
            timeout_s=limit_s,
        )

    def sparse_all_gather(
        self,
        tensors: Sequence[Any],
        *,
        top_k: int = 64,
        value_bits: int = 2,
        weight: float = 1.0,
        nonfinite: str = "raise",
        timeout_s: float | None = None,
    ) -> SparseGathered:
        """Collects the members' largest entries, for programs that average in their own way.

        Arguments, errors and cost are those of `sparse_all_reduce`; see `SparseGathered`.
        """
        from pccl.sparse import exchange

        comm = cast("Communicator", self)
        with comm.session.told_if_refused("sparse_all_gather"):
            limit_s = self._timeout(timeout_s)
        return exchange.all_gather(
            comm,
            tensors,
            top_k=top_k,
            value_bits=value_bits,
            weight=weight,
            nonfinite=nonfinite,
            timeout_s=limit_s,
        )
