"""Mutants of what a coordinator must not forget, and of who may write it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pccl.membership.admission import Admission
from pccl.membership.coordinator import Coordinator
from pccl.membership.core import Core
from pccl.membership.entering import Entering
from pccl.membership.outdated import Outdated
from pccl.membership.output_commit import OutputCommit
from pccl.membership.record import Record, record_codec
from pccl.membership.store import MemoryStore
from tests.sim.mutants.catalogue import Patches, mutant, only

DEATHS = only("c_kill", "c_crash", "kill", "start")


@mutant("the record is not written", DEATHS)
def no_journal(p: Patches) -> None:
    p.set(MemoryStore, "save", lambda self, record: None)


@mutant("what is sent does not wait for what is written")
def output_overtakes_the_disk(p: Patches) -> None:
    def write(self: OutputCommit[Any], token: int) -> None:
        return None

    p.set(OutputCommit, "write", write)


@mutant("only what the same event sends waits for its write")
def output_of_later_events_overtakes(p: Patches) -> None:
    def send(self: OutputCommit[Any], item: Any) -> None:
        earlier = list(self._queue)
        before(self, item)
        if any(isinstance(held, tuple) for held in earlier):  # so its event was an earlier one
            self._queue.remove(self._queue[-1])
            self._queue.appendleft((item,))

    before = p.set(OutputCommit, "send", send)


@mutant("a write counts for records that came after it began")
def write_covers_later_records(p: Patches) -> None:
    def synced(self: OutputCommit[Any], token: int) -> None:
        before(self, self._issued)

    before = p.set(OutputCommit, "synced", synced)


@mutant("a coordinator that starts does not raise the generation")
def generation_not_raised(p: Patches) -> None:
    def begin(self: MemoryStore, disk: Any = None) -> None:
        before(self, disk)
        if self._generation > 1:
            self._disk.generation = self._generation = self._generation - 1

    before = p.set(MemoryStore, "__init__", begin)


@mutant("a deposed coordinator can write", only("c_depose", "start", "kill", "leave"))
def storage_not_fenced(p: Patches) -> None:
    def save(self: MemoryStore, record: Record) -> None:
        self._disk.blob = record_codec.encode(record)

    p.set(MemoryStore, "save", save)


def _without(p: Patches, **fields: Any) -> None:
    def record(self: Core) -> Record:
        whole: Record = before(self)
        return replace(whole, **fields)

    before = p.set(Core, "record", record)


@mutant("an activated plan is not in the record")
def activation_not_durable(p: Patches) -> None:
    _without(p, activation=None)


@mutant("that a flush is on is not in the record")
def flush_not_durable(p: Patches) -> None:
    _without(p, flushing=False)


# Somebody is told, dies, and the coordinator with it: those who live report what has failed.
TOLD_AND_DEAD = only("c_crash", "c_kill", "manifest", "shape", "crash_commit", "kill", "mass")


@mutant("decisions to be carried are not in the record", TOLD_AND_DEAD)
def carried_not_durable(p: Patches) -> None:
    def record(self: Core) -> Record:
        whole: Record = before(self)
        return replace(whole, carried=(), note=replace(self.note, decisions=()))

    before = p.set(Core, "record", record)


@mutant("the step at which joiners come in is told before it is durable")
def first_step_not_durable(p: Patches) -> None:
    def resolve(self: Entering, entering: Any, step: int, now_s: float) -> None:
        tokens = self._core.tokens
        before(self, entering, step, now_s)
        from pccl.membership.events import Persist

        effects = self._core.effects
        self._core.effects = [
            e for e in effects if not (isinstance(e, Persist) and e.token > tokens)
        ]

    before = p.set(Entering, "_resolve", resolve)


@mutant("a new incarnation is told before it is durable")
def incarnation_not_durable(p: Patches) -> None:
    def admit(self: Admission, conn: int, msg: Any, now_s: float) -> Any:
        core, persist = self._core, Core.persist
        with Patches() as inner:
            inner.set(Core, "persist", lambda self: None)
            peer = before(self, conn, msg, now_s)
        persist(core)
        return peer

    before = p.set(Admission, "_admit", admit)


COPIES = only("c_copy", "c_copy", "start")


@mutant("peers follow a coordinator on an old copy of the journal, and it leads them", COPIES)
def older_generation_obeyed(p: Patches) -> None:
    from tests.sim.control_link import ControlLink

    p.set(Outdated, "sign", lambda self, generation, epoch, incarnation=0: "")
    p.set(ControlLink, "is_past", lambda self, generation: False)


@mutant("a coordinator leads before those are back who may know that its journal is old", COPIES)
def leads_too_early(p: Patches) -> None:
    def begin(self: Outdated, core: Any) -> None:
        before(self, core)
        core.witnesses_due.clear()

    before = p.set(Outdated, "__init__", begin)


@mutant("a coordinator that knows its journal to be an old copy goes on judging", COPIES)
def outdated_judges(p: Patches) -> None:
    def conclude(self: Coordinator, now_s: float) -> Any:
        self._judge(now_s)
        effects, self._core.effects = self._core.effects, []
        return effects

    p.set(Coordinator, "_conclude", conclude)


@mutant("whom an old copy of the journal does not know is told that it is out", COPIES)
def unknown_to_a_copy_is_out(p: Patches) -> None:
    def doubt(self: Admission, sign: str, proven: Any) -> str:
        return "" if proven is None else before(self, sign, proven)

    before = p.set(Admission, "_doubt", doubt)
