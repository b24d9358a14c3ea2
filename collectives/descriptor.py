"""What an operation is, in words: for errors, and as the entry name of a stand-alone operation.

Invariant: two peers whose stand-alone operations fit together give them the same name, whatever
the shapes are called on either side; so the name holds the element count, not the shape.
"""

from __future__ import annotations

from dataclasses import dataclass

from pccl.collectives.codecs import Codec
from pccl.collectives.collective import Collective
from pccl.collectives.dtypes import Dtype
from pccl.collectives.ops import Algorithm, ReduceOp


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Everything that must agree on all peers about one operation, but its root.

    `count`: elements of the whole or, where every rank has a part, of one part; 0 if they are
    `uneven`, of sizes that are compared pair by pair.
    """

    dtype: Dtype
    count: int
    op: ReduceOp = ReduceOp.SUM
    deterministic: bool = False
    algorithm: Algorithm = Algorithm.AUTOMATIC
    collective: Collective = Collective.ALL_REDUCE
    uneven: bool = False
    codec: Codec | None = None

    def __str__(self) -> str:
        if self.collective is Collective.BARRIER:
            return "barrier()"
        op = f"{self.op.label}, " if self.collective.reduces else ""
        size = "" if self.uneven else f"[{self.count}]"
        words = [f"{self.collective.label}({op}{self.dtype.label}{size}"]
        if self.deterministic:
            words.append("deterministic")
        if self.algorithm is not Algorithm.AUTOMATIC:
            words.append(self.algorithm.name.lower())
        if self.codec is not None:
            words.append(f"codec={self.codec}")
        return ", ".join(words) + ")"
