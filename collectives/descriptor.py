"""What an operation is, in words: for errors, and as the entry name of a stand-alone operation.

Invariant: two peers whose stand-alone operations fit together give them the same name, whatever
the shapes are called on either side; so the name holds the element count, not the shape.
"""

from __future__ import annotations

from dataclasses import dataclass

from pccl.collectives.dtypes import Dtype
from pccl.collectives.ops import Algorithm, ReduceOp


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Everything that must agree on all peers about one all-reduce."""

    dtype: Dtype
    count: int
    op: ReduceOp
    deterministic: bool = False
    algorithm: Algorithm = Algorithm.AUTOMATIC

    def __str__(self) -> str:
        words = [f"all_reduce({self.op.label}, {self.dtype.label}[{self.count}]"]
        if self.deterministic:
            words.append("deterministic")
        if self.algorithm is not Algorithm.AUTOMATIC:
            words.append(self.algorithm.name.lower())
        return ", ".join(words) + ")"
