"""Brings all members to one state: a collective, made of committed steps and of streams.

    pccl.state         everybody says what it holds; all come to the same answer (`agreement`)
    pccl.state.layout  only if layouts differ: whose state counts shows its layout
    (streams)          who differs fetches what differs from all that hold the right state
    pccl.state.done    everybody says how it went; if somebody did not get it, again

Theory.  What is decided is decided from the committed table, so every member decides alike.  Those
who give wait in the last step, where their memory cannot change; a thread of theirs gives
meanwhile.  A death among them is a new view for the steps and a lost source for the streams.

Invariant: when `sync` returns, this process holds the agreed state, and so does every member.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from pccl.base.clock import Deadline
from pccl.base.errors import (
    CorruptResult,
    DeadlineExceeded,
    PcclError,
    StepFailed,
    UsageError,
    ViewChanged,
)
from pccl.base.log import get_logger
from pccl.outcome import Peer
from pccl.state.agreement import RECORD_BYTES, Agreement, Record, Strategy, agree
from pccl.state.checkpoint import Checkpoints
from pccl.state.donor import Donor
from pccl.state.election import Target
from pccl.state.fetch import stall_after
from pccl.state.layout import Layout
from pccl.state.opening import difference
from pccl.state.receiver import Receiver, Transfer
from pccl.state.restore import Restored, Restoring
from pccl.state.shared import SharedState
from pccl.state.stream import identity_of
from pccl.step import Step
from pccl.transport.digests import xxh3

if TYPE_CHECKING:
    from pccl.session import Session

ENTRY = "pccl.state"
ROUNDS_MAX = 16  # each further one means that the members changed, or that all givers were lost
FAILURES_MAX = 3  # of one transfer, with givers that stay
_log = get_logger("state")


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What a sync has found and done; alike on all members but for
    `byte_count`, `tensors` and `lost`.

    Attributes:
        revision: of the agreed state.
        root: of its hash tree.
        sources: the members that held it.
        received: the members that did not, and were brought to it.
        repaired: of these, members whose copy had changed though it was thought to be alike.
        struck: sources that sent wrong bytes to somebody, and were not asked any more.
        byte_count: bytes of contents that came here.
        tensors: the names of what was changed here.
        lost: sources that went silent or away while this peer fetched, and how.
        restored: what was found on the disks, if nobody held the run's state.
    """

    revision: int
    root: bytes
    sources: tuple[Peer, ...]
    received: tuple[Peer, ...]
    repaired: tuple[Peer, ...]
    struck: tuple[Peer, ...] = ()
    byte_count: int = 0
    tensors: tuple[str, ...] = ()
    lost: tuple[tuple[Peer, str], ...] = ()
    restored: Restored | None = None


@dataclass(frozen=True, slots=True)
class _Table:
    """The committed answers of one survey."""

    rows: tuple[Record, ...]
    peers: tuple[Peer, ...]
    history: int  # a number for a history that begins here


class Sync:
    """One sync of one state by one session."""

    def __init__(
        self,
        session: Session,
        state: SharedState,
        donor: Donor,
        checkpoints: Checkpoints | None,
    ) -> None:
        self._checkpoints = checkpoints
        self._restored: Restored | None = None
        self._looked = False  # for checkpoints
        self._digests = b""  # of this peer's memory, as surveyed
        self._session = session
        self._state = state
        self._donor = donor
        self._identity = identity_of(session, donor.tls)  # remembers which relays led nowhere

    def run(self, strategy: Strategy, timeout_s: float, gate_s: float | None = None) -> SyncResult:
        """Does it; `gate_s` limits how long this peer waits to be let in.

        Raises:
            UsageError: layouts differ (this process has left the run, the text names the first
                difference), nobody may give, or those who only send differ.
            StepFailed: the state could not be brought to everybody.
            CorruptResult: all that could give hold parts of a revision; this process has left.
            DeadlineExceeded: it was not done in time.
        """
        deadline = Deadline(timeout_s)
        self._donor.in_collective = True
        try:
            return self._rounds(strategy, deadline, gate_s)
        finally:
            self._donor.in_collective = False

    def _rounds(self, strategy: Strategy, deadline: Deadline, gate_s: float | None) -> SyncResult:
        failures = 0
        for _ in range(ROUNDS_MAX):
            try:
                table = self._survey(strategy, deadline, gate_s)
                gate_s = None
                agreement = agree(table.rows)
                if agreement.other_layout:
                    self._show_layout(table, agreement, deadline)
                founding = not any(row.synced for row in table.rows)
                if founding and not all(row.looked for row in table.rows):
                    self._look_for_checkpoints(deadline)
                    continue
                if table.rows[agreement.chosen].torn:
                    self._give_up_torn()
                if not agreement.receivers:
                    return self._agreed(table, agreement, Transfer(), ())
                transfer, failure = self._transfer(table, agreement, deadline, failures)
                failed, struck = self._done(table, transfer, failure, deadline)
            except ViewChanged:
                continue
            if not failed:
                return self._agreed(table, agreement, transfer, struck)
            failures += 1
            if failures >= FAILURES_MAX:
                why = "on another member" if failure is None else str(failure)
                raise StepFailed(f"the state could not be brought to all: {why}") from failure
        raise StepFailed(f"the members changed in {ROUNDS_MAX} rounds, one after another")

    # ---- what is agreed

    def _survey(self, strategy: Strategy, deadline: Deadline, gate_s: float | None) -> _Table:
        state = self._state
        self._digests, root = state.survey()
        record = Record(
            strategy=strategy,
            synced=state.synced,
            looked=self._looked,
            layout=state.kind,
            root=root,
            revision=state.revision,
            lineage=state.lineage,
            layout_bytes=len(state.layout.encoded),
            torn=state.torn,
        )
        if state.torn:
            _log.warning("the state of this process is in parts: it counts only if all others are")
        own = np.frombuffer(record.pack(), np.uint8).copy()
        with self._step(ENTRY, deadline, gate_s) as step:
            work = step.all_gather(own)
        rows = tuple(Record.unpack(bytes(row)) for row in work.result.reshape(-1, RECORD_BYTES))
        peers = step.outcome.contributors
        seed = b"".join(peers) + step.number.to_bytes(8, "little") + rows[0].root
        return _Table(rows, peers, int.from_bytes(xxh3(seed)[:8], "little") | 1)

    def _show_layout(self, table: _Table, agreement: Agreement, deadline: Deadline) -> None:
        """Tells those whose layout is another one what the first difference is; they leave."""
        right = table.rows[agreement.chosen]
        shown = np.zeros(right.layout_bytes, np.uint8)
        own = self._state.layout.encoded
        if self._state.kind == right.layout:
            shown[:] = np.frombuffer(own, np.uint8)
        chosen = table.peers[agreement.chosen]
        with self._step(f"{ENTRY}.layout", deadline) as step:
            step.broadcast(shown, chosen)
        if self._state.kind != right.layout:
            text = difference(self._state, Layout.decode(shown.tobytes()), chosen)
            self._session.close(f"left the run: {text}")
            raise UsageError(f"{text}; this process has left the run")

    def _agreed(
        self, table: _Table, agreement: Agreement, transfer: Transfer, struck: tuple[Peer, ...]
    ) -> SyncResult:
        right, peers = table.rows[agreement.chosen], table.peers
        self._state.adopt(right.revision, right.lineage if right.synced else table.history)
        result = SyncResult(
            revision=right.revision,
            root=right.root[: self._state.hashing.digest_bytes],
            sources=tuple(peers[rank] for rank in agreement.sources),
            received=tuple(
                peers[r] for r in agreement.receivers if r not in agreement.other_layout
            ),
            repaired=tuple(peers[rank] for rank in agreement.disagreed),
            struck=struck,
            byte_count=transfer.byte_count,
            tensors=transfer.tensors,
            lost=tuple(transfer.lost.items()),
            restored=self._restored,
        )
        if result.repaired:
            _log.warning(
                "the state of peer %s was not what the others hold at revision %d, and has been "
                "repaired",
                ", ".join(map(str, result.repaired)),
                result.revision,
            )
        for peer in struck:
            _log.warning("peer %s sent wrong bytes as a source of state: check its memory", peer)
        return result

    def _look_for_checkpoints(self, deadline: Deadline) -> None:
        """Nobody holds the run's state: what lies on the disks is the newest there is."""
        restoring = Restoring(
            self._state,
            self._checkpoints,
            lambda name: self._step(f"{ENTRY}.{name}", deadline),
            self._session.peer_id,
        )
        self._restored = restoring.run()
        self._looked = True

    def _give_up_torn(self) -> NoReturn:
        text = (
            "a fetch or a restore broke off and has left parts of a revision in the state of every "
            "process that could give it; this one has left the run: begin with a new state"
        )
        self._session.close(text)
        raise CorruptResult(text)

    # ---- what is moved

    def _transfer(
        self, table: _Table, agreement: Agreement, deadline: Deadline, failures: int
    ) -> tuple[Transfer, PcclError | None]:
        me = table.peers.index(self._session.peer_id)
        if me not in agreement.receivers:
            return Transfer(), None
        right = table.rows[agreement.chosen]
        root = right.root[: self._state.hashing.digest_bytes]
        known = {member.peer_id: member for member in self._session.agent.standing.met}
        count = len(agreement.sources)
        order = [agreement.sources[(me + i) % count] for i in range(count)]  # not all to the first
        members = [known[p] for p in (bytes(table.peers[r]) for r in order) if p in known]
        target = Target(right.revision, right.lineage, root)
        stall_s, ours = stall_after(failures), self._digests
        receiver = Receiver(
            self._state, target, members, self._identity, stall_s=stall_s, ours=ours
        )
        try:
            return receiver.run(deadline), None
        except (StepFailed, DeadlineExceeded) as error:
            return receiver.transfer, error
        except BaseException as error:  # the others wait for this peer's word
            self._session.leave_after(error)
            raise

    def _done(
        self,
        table: _Table,
        transfer: Transfer,
        failure: PcclError | None,
        deadline: Deadline,
    ) -> tuple[bool, tuple[Peer, ...]]:
        """Says how it went, and hears it of all: whether somebody failed, and who was struck."""
        counts = np.zeros(1 + len(table.peers), np.uint64)
        counts[0] = failure is not None
        for rank, peer in enumerate(table.peers):
            counts[1 + rank] = peer in transfer.struck
        with self._step(f"{ENTRY}.done", deadline) as step:
            step.all_reduce(counts, op="sum")
        struck = tuple(p for rank, p in enumerate(table.peers) if counts[1 + rank])
        return bool(counts[0]), struck

    def _step(self, name: str, deadline: Deadline, gate_s: float | None = None) -> Step:
        left_s = deadline.remaining_s()
        if left_s <= 0:
            raise DeadlineExceeded("the state was not synced in time")
        return Step(self._session, name, left_s, gate_s=gate_s)
