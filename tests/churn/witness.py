"""Stands between a program and its communicator, and writes down what becomes of every step.

A `Witness` is handed to the library's own low-communication methods in place of a communicator:
they work as ever, and the history has each of their steps, in the order in which this process
began them and was told of them.  Invariant: a step is written down as begun before anything is
brought to it, and as decided before anything is made of its result.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import numpy as np

import pccl
from tests.churn.lessons import digest, is_reduction
from tests.faults.notes import Note


class Teller:
    """Writes commits and failures down as `records` reads them."""

    def __init__(self, comm: pccl.Communicator, note: Note) -> None:
        self._comm = comm
        self._note = note
        self._sets: dict[tuple[bytes, ...], int] = {}
        self._viewed = -1

    def begun(self, number: int, name: str) -> None:
        self._note(invoke=number, name=name)

    def committed(
        self, number: int, name: str, outcome: pccl.Outcome, result: str, *,
        wrong: int = 0, lineage: int = -1, state: str = "",
    ) -> None:  # fmt: skip
        """`result` is its digest."""
        self._note(
            commit=number,
            name=name,
            epoch=outcome.epoch,
            set=self._set(outcome.contributors),
            digest=result,
            retries=outcome.retries,
            wrong=wrong,
            lineage=lineage,
            state=state,
        )
        view = self._comm.view
        if view.epoch != self._viewed:
            self._viewed = view.epoch
            self._note(view=view.epoch, set=self._set(view.members))

    def failed(self, number: int, error: pccl.PcclError, *, restored: bool) -> None:
        self._note(
            failed=type(error).__name__, step=number, restored=restored, text=str(error)[:500]
        )

    def _set(self, members: tuple[pccl.Peer, ...]) -> int:
        """Writes a set of peers down once, and names it by a number from then on."""
        found = self._sets.get(members)
        if found is None:
            found = self._sets[members] = len(self._sets)
            self._note(defines=found, peers=[peer.hex() for peer in members])
        return found


class Witness:
    """A communicator for the methods of `pccl.diloco`."""

    def __init__(self, comm: pccl.Communicator, note: Note) -> None:
        self._comm = comm
        self.teller = Teller(comm, note)
        self.excluded = False  # since the program looked last
        self.reduction = -1  # the last one that this process was told is committed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comm, name)

    def step(self, name: str = "step", timeout_s: float | None = None) -> WitnessedStep:
        return WitnessedStep(self, self._comm.step(name, timeout_s), name)


class WitnessedStep:
    def __init__(self, witness: Witness, step: Any, name: str) -> None:
        self._witness = witness
        self._step = step
        self._name = name
        self._brought: list[tuple[Any, Any]] = []  # arrays, and what they held
        self._results: list[Any] = []
        self._gathered: list[Any] = []
        self._in_background = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    def __enter__(self) -> Self:
        try:
            self._step.__enter__()
        except pccl.PcclError as error:
            self._failed(-1, error)
            raise
        self._witness.teller.begun(self._step.number, self._name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._in_background:
            self._step.__exit__(kind, error, trace)
            return
        try:
            self._step.__exit__(kind, error, trace)
        except pccl.PcclError as failure:
            self._failed(self._step.number, failure)
            raise
        if error is None:
            self.committed(self._step.outcome)

    def all_reduce(self, array: Any, *args: Any, **named: Any) -> Any:
        self._brought.append((array, _bytes(array)))
        out = named.get("out")
        self._results.append(array if out is None else out)
        return self._step.all_reduce(array, *args, **named)

    def all_gather(self, array: Any, *args: Any, **named: Any) -> Any:
        self._brought.append((array, _bytes(array)))
        work = self._step.all_gather(array, *args, **named)
        self._gathered.append(work)
        return work

    def commit_async(self) -> WitnessedWork:
        self._in_background = True
        return WitnessedWork(self, self._step.commit_async())

    def committed(self, outcome: pccl.Outcome) -> None:
        results = [*self._results, *(row for work in self._gathered for row in work.result)]
        if is_reduction(self._name):
            self._witness.reduction = self._step.number
        self._witness.teller.committed(
            self._step.number, self._name, outcome, digest(map(_bytes, results))
        )

    def failed(self, error: pccl.PcclError) -> None:
        self._failed(self._step.number, error)

    def _failed(self, number: int, error: pccl.PcclError) -> None:
        self._witness.excluded |= isinstance(error, pccl.Excluded)
        restored = all((_bytes(array) == held).all() for array, held in self._brought)
        self._witness.teller.failed(number, error, restored=restored)


class WitnessedWork:
    def __init__(self, step: WitnessedStep, work: Any) -> None:
        self._step = step
        self._work = work

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)

    def wait(self, timeout_s: float | None = None) -> pccl.Outcome:
        try:
            outcome: pccl.Outcome = self._work.wait(timeout_s)
        except pccl.PcclError as error:
            self._step.failed(error)
            raise
        self._step.committed(outcome)
        return outcome


def _bytes(array: Any) -> Any:
    """A copy of an array's or a tensor's bytes."""
    return np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
