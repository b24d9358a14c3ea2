"""What a peer of a churn run does with a low-communication method: the library's own, unchanged.

    enter the run -> learn, `step`, learn, `step` ... -> all together: `finish`

Beside what becomes of every step (`witness`) the history has, in this process's order: each inner
step before it is taken, the shared state with which it came in, and after each reduction that was
applied the digests of parameters, outer momentum and residual.  From these `outer_checker` computes
the run anew.
"""

from __future__ import annotations

from typing import Any

import torch

import pccl
from pccl.diloco import AsyncDiLoCo, DiLoCo, OuterOptimizer, OuterStep, SparseLoCo, StreamingDiLoCo
from tests.churn.lessons import METHODS, NAMES, digest, first_parameters, lesson, tokens_of
from tests.churn.orders import LEAVE_S, Config, Orders, Pause
from tests.churn.witness import Witness
from tests.faults.notes import Note

END = "churn.end"  # the step at which all end, if one of them is to


class OuterLife:
    """One admission of this process, until it leaves, is put out or is told to end."""

    def __init__(self, comm: pccl.Communicator, config: Config, note: Note, orders: Orders) -> None:
        self._comm = comm
        self._note = note
        self._orders = orders
        self._method = METHODS[config.method]
        self._name = config.method
        self._me = bytes(comm.peer_id)
        self._witness = Witness(comm, note)
        self._pause = Pause(config, note, orders, self._me)
        torch.set_num_threads(1)
        self._held = first_parameters()
        self._model = {
            name: torch.from_numpy(self._held[number]) for number, name in enumerate(NAMES)
        }
        self._learnt = 0
        self._told = -1  # reductions that are applied, as it has written down
        self._ended = False

    def run(self) -> str:
        """Trains until told to stop, or until it has left; says which."""
        try:
            outer = self._make()
            self._entered(outer)
            while not self._ended:
                self._leave_if_told()
                self._learn(outer)
                self._pause()
            self._tell(outer, outer.finish())
            outer.verify()
        except pccl.Left:
            return "Left"
        return "ended"

    def _entered(self, outer: OuterOptimizer) -> None:
        self._witness.excluded = False
        self._told = outer.outer_step
        self._note(entered=outer.outer_step, **_shared(outer))

    def _leave_if_told(self) -> None:
        if self._orders.leave.is_set() and not self._comm.leaving:
            self._comm.leave(LEAVE_S)

    def _learn(self, outer: OuterOptimizer) -> None:
        self._note(learnt=self._learnt)
        self._held -= lesson(self._me, self._learnt, self._held)
        self._learnt += 1
        try:
            report = outer.step(tokens_of(self._method, self._me))
        except (pccl.StepFailed, pccl.DeadlineExceeded) as error:
            self._note(outer_failed=type(error).__name__, text=str(error)[:500])
            self._tell(outer, None)
            return
        if self._witness.excluded:  # and is in again
            self._entered(outer)
        else:
            self._tell(outer, report)

    def _tell(self, outer: OuterOptimizer, report: OuterStep | None) -> None:
        if outer.outer_step == self._told:
            return
        self._told = outer.outer_step
        self._note(
            outer=outer.outer_step,
            reduction=self._witness.reduction,
            counted=-1 if report is None else report.tokens,
            **_shared(outer),
        )

    def _hold(self, _: object) -> bool:
        """All members are at an entry: they end there together if anybody is to."""
        end = torch.tensor([self._orders.end.is_set()], dtype=torch.uint8)
        with self._witness.step(END) as step:
            step.all_reduce(end, op="max")
        self._ended = bool(end[0])
        return False

    def _make(self) -> OuterOptimizer:
        method = self._method
        comm: Any = self._witness
        named: dict[str, Any] = {
            "inner_steps": method.inner_steps,
            "learning_rate": method.rate,
            "hold": self._hold,
        }
        match self._name:
            case "diloco":
                named |= {"momentum": method.momentum, "deterministic": True}
                return DiLoCo(comm, self._model, **named)
            case "async-diloco":
                named |= {"momentum": method.momentum, "deterministic": True}
                return AsyncDiLoCo(comm, self._model, **named)
            case "streaming":
                named |= {"momentum": method.momentum, "deterministic": True, "codec": None}
                sections = [[NAMES[layer] for layer in layers] for layers in method.sections]
                return StreamingDiLoCo(
                    comm,
                    self._model,
                    fragments=sections,
                    overlap=method.overlap,
                    alpha=method.alpha,
                    **named,
                )
            case _:
                named |= {"top_k": method.top_k, "value_bits": 32, "decay": 1.0}
                return SparseLoCo(comm, self._model, **named)


def _shared(outer: OuterOptimizer) -> dict[str, Any]:
    """The state of which all members hold the same bits, and the residual, which is this peer's."""
    residual = outer.residual if isinstance(outer, SparseLoCo) else None
    return {
        "inner": outer.inner_step,
        "tokens": outer.tokens,
        "parameters": digest(theta.numpy() for theta in outer.parameters()),
        "momentum": digest(momentum.numpy() for momentum in outer.momentum()),
        "residual": "" if residual is None else digest([residual.numpy()]),
    }
