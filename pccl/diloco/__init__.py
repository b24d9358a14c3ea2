"""Training that hardly communicates: each peer takes inner steps by itself, outer steps are shared.

    with pccl.connect("host:48148") as comm:
        outer = DiLoCo(comm, model, inner_steps=100)      # a joiner receives the run's state here
        while outer.outer_step < 200:
            loss(model, batch).backward()
            optimizer.step(); optimizer.zero_grad()
            outer.step(tokens=batch.numel())              # every 100th call is an outer step

`DiLoCo`, `AsyncDiLoCo`, `StreamingDiLoCo` and `SparseLoCo` are used alike, with any torch model and
optimizer; docs/LOW_COMMUNICATION.md says what each of them does and what a kill does to it.

Decided in pure code, arithmetic on explicit state: `outer` (Nesterov, mixing), `layers`
(fragments and their schedule), `compression` over `pccl.sparse` (top-k, few-bit values, residual).
Shells over a Communicator: `exchange` and the methods.

Invariant: what all members share (parameters, outer momentum, counters) changes by committed steps
only, by the same arithmetic on the same bits; what is a peer's own (residual, what it carries)
changes with the same commit.
"""

from pccl.base.errors import NonFiniteContribution
from pccl.diloco.asynchronous import AsyncDiLoCo
from pccl.diloco.method import OuterOptimizer
from pccl.diloco.outer import Nesterov
from pccl.diloco.report import OuterStep
from pccl.diloco.sparse_loco import SparseLoCo
from pccl.diloco.streaming import StreamingDiLoCo
from pccl.diloco.synchronous import DiLoCo

__all__ = [
    "AsyncDiLoCo",
    "DiLoCo",
    "Nesterov",
    "NonFiniteContribution",
    "OuterOptimizer",
    "OuterStep",
    "SparseLoCo",
    "StreamingDiLoCo",
]
