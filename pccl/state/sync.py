"""Brings all members to one state: a collective, made of committed steps and of streams.

    pccl.state         everybody says what it holds; all come to the same answer (`agreement`)
    pccl.state.layout  only if layouts differ: whose state counts shows its layout
    (streams)          who differs fetches what differs from all that hold the right state
    pccl.state.done    everybody says how it went; if somebody did not get it, again

Theory.  What is decided is decided from the committed table, so every member decides alike.  Those
who give wait in the last step, where their memory cannot change; a thread of theirs gives
meanwhile.  A death among them is a new view for the steps and a lost source for the streams.

Who is elected and gives nothing in FAILURES_MAX rounds has no voice any more in this sync, and the
next ones are asked; who cannot be given what others have got leaves.

Invariants: when `sync` returns, this process holds the agreed state, and so does every member; a
newer state than what would count in its place is not passed over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NoReturn

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
from pccl.state.agreement import (
    RECORD_BYTES,
    Agreement,
    Record,
    Strategy,
    agree,
    at_fault,
    withheld,
)
from pccl.state.checkpoint import Checkpoints
from pccl.state.donor import Donor
from pccl.state.election import Target
from pccl.state.fetch import Transfer, pause_before, stall_after
from pccl.state.layout import Layout
from pccl.state.opening import difference
from pccl.state.receiver import Receiver
from pccl.state.restore import Restored, Restoring
from pccl.state.shared import SharedState
from pccl.state.stream import identity_of
from pccl.state.told import SyncResult, Table, Told, heard, words
from pccl.step import Step
from pccl.transport.digests import xxh3

if TYPE_CHECKING:
    from pccl.session import Session

ENTRY = "pccl.state"
ROUNDS_MAX = 16  # each further one means that the members changed, or that all givers were lost
LOOK_S: Final = 0.25  # for the end of the session, while nothing is asked
FAILURES_MAX = 3  # of one content, with givers that stay; then somebody is left out
_log = get_logger("state")


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
        self._digests = self._root = b""  # of this peer's memory, as surveyed
        self._tried: tuple[object, int] = (None, 0)  # what was elected, and how often in vain
        self._began_s = 0.0  # the last fetch
        self._passed_over = False  # this peer
        self._put_back: Callable[[], None] | None = None  # a founder's memory as it was
        self._session = session
        self._state = state
        self._donor = donor
        self._identity = identity_of(session, donor.tls)  # remembers which relays led nowhere

    def run(self, strategy: Strategy, timeout_s: float, gate_s: float | None = None) -> SyncResult:
        """Does it; `gate_s` limits how long this peer waits to be let in.

        Raises:
            UsageError: layouts differ (this process has left the run, the text names the first
                difference), nobody may give, or those who only send differ.
            StepFailed: the state could not be brought here: this process has left the run.  Or
                nobody is left who could give one as new: on all, who stay.
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
                if kept := withheld(table.rows, agreement):
                    self._give_up_withheld(table, kept)
                if not agreement.receivers:
                    return self._agreed(table, agreement, Transfer(), ())
                transfer, failure = self._transfer(table, agreement, deadline)
                told = self._done(table, agreement, transfer, failure, deadline)
            except ViewChanged:
                continue
            if not told.failed:
                return self._agreed(table, agreement, transfer, told.struck)
            self._tried = self._tried[0], told.tried
            if told.tried >= FAILURES_MAX:
                self._leave_out(table, agreement, told, failure)
        raise StepFailed(f"the members changed in {ROUNDS_MAX} rounds, one after another")

    # ---- what is agreed

    def _survey(self, strategy: Strategy, deadline: Deadline, gate_s: float | None) -> Table:
        state = self._state
        self._digests, self._root = state.survey()
        record = Record(
            strategy=Strategy.RECEIVE_ONLY if self._passed_over else strategy,
            synced=state.synced,
            looked=self._looked,
            layout=state.kind,
            root=self._root,
            revision=state.revision,
            lineage=state.lineage,
            layout_bytes=len(state.layout.encoded),
            torn=state.torn,
            passed_over=self._passed_over,
        )
        if state.torn:
            _log.warning("the state of this process is in parts: it counts only if all others are")
        own = np.frombuffer(record.pack(), np.uint8).copy()
        with self._step(ENTRY, deadline, gate_s) as step:
            work = step.all_gather(own)
        rows = tuple(Record.unpack(bytes(row)) for row in work.result.reshape(-1, RECORD_BYTES))
        peers = step.outcome.contributors
        seed = b"".join(peers) + step.number.to_bytes(8, "little") + rows[0].root
        return Table(rows, peers, int.from_bytes(xxh3(seed)[:8], "little") | 1)

    def _show_layout(self, table: Table, agreement: Agreement, deadline: Deadline) -> None:
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
        self, table: Table, agreement: Agreement, transfer: Transfer, struck: tuple[Peer, ...]
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
            passed_over=table.passed_over,
        )
        if self._session.peer_id in result.received and not right.synced:
            _log.info(
                "the state that this process came with is replaced by that of peer %s: all are "
                "new, and where no state counts for more, the lowest rank's does",
                peers[agreement.chosen],
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

    # ---- what does not come

    def _leave_out(
        self,
        table: Table,
        agreement: Agreement,
        told: Told,
        failure: PcclError | None,
    ) -> None:
        """Goes on without those whose fault it is that what was elected has not come, alike on all.

        Raises:
            StepFailed: it is this peer's, which has left; or nobody can go on, and all stay.
        """
        why = "on another member" if failure is None else str(failure)
        out = at_fault(table.rows, agreement, told.failed, told.torn)
        if out in ((), agreement.sources) and failure is not None and self._put_back is not None:
            self._put_back()  # what parts have come are of no use any more
        if not out:
            raise StepFailed(f"the state could not be brought to all: {why}") from failure
        peers = [table.peers[rank] for rank in out]
        names = ", ".join(map(str, peers))
        revision = table.rows[agreement.chosen].revision
        if out == agreement.sources:
            self._passed_over |= self._session.peer_id in peers
            _log.warning(
                "nobody has got revision %d from peer %s, which says that it holds it: what others "
                "hold counts instead (%s)",
                revision,
                names,
                why,
            )
        elif self._session.peer_id in peers:
            self._leave(f"revision {revision} of the state could not be brought here: {why}")
        else:
            _log.warning(
                "the state could not be brought to peer %s: the others go on without it", names
            )
        self._tried = None, 0

    def _give_up_withheld(self, table: Table, kept: tuple[int, ...]) -> NoReturn:
        newest = max(table.rows[rank].revision for rank in kept)
        names = ", ".join(str(table.peers[rank]) for rank in kept)
        raise StepFailed(
            f"nobody could fetch revision {newest} from peer {names}, and nobody else is left who "
            "holds as much"
        )

    def _leave(self, text: str) -> NoReturn:
        text += "; this process has left the run"
        self._session.close(text)
        raise StepFailed(text)

    # ---- what is moved

    def _transfer(
        self, table: Table, agreement: Agreement, deadline: Deadline
    ) -> tuple[Transfer, PcclError | None]:
        right = table.rows[agreement.chosen]
        if self._tried[0] != right.content:
            self._tried = right.content, 0
        me = table.peers.index(self._session.peer_id)
        if me not in agreement.receivers:
            return Transfer(), None
        if not right.synced and self._put_back is None and not self._state.torn:
            self._put_back = self._state.copied()
        root = right.root[: self._state.hashing.digest_bytes]
        transfer, failure = self._receive(table, agreement, right, root, deadline)
        if failure is None:  # it may give it from the next round on, should there be one
            known = right.synced or self._state.synced
            hold = self._state.adopt if known else self._state.restored
            hold(right.revision, right.lineage)
        return transfer, failure

    def _receive(
        self, table: Table, agreement: Agreement, right: Record, root: bytes, deadline: Deadline
    ) -> tuple[Transfer, PcclError | None]:
        me, failures = table.peers.index(self._session.peer_id), self._tried[1]
        known = {member.peer_id: member for member in self._session.agent.standing.met}
        count = len(agreement.sources)
        order = [agreement.sources[(me + i) % count] for i in range(count)]  # not all to the first
        members = [known[p] for p in (bytes(table.peers[r]) for r in order) if p in known]
        target, own = Target(right.revision, right.lineage, root), self._identity
        transfer = Transfer()
        try:
            self._pause(failures, deadline)
            stall_s = stall_after(failures, deadline.remaining_s() / (FAILURES_MAX - failures))
            ours, self._began_s = self._digests, time.monotonic()
            receiver = Receiver(self._state, target, members, own, stall_s=stall_s, ours=ours)
            transfer = receiver.transfer
            return receiver.run(deadline), None
        except (StepFailed, DeadlineExceeded) as error:
            return transfer, error
        except BaseException as error:  # the others wait for this peer's word
            self._session.leave_after(error)
            raise

    def _pause(self, failures: int, deadline: Deadline) -> None:
        """Who failed at once does not ask at once again; the others wait for its word meanwhile."""
        left_s = deadline.remaining_s() / (FAILURES_MAX - failures)
        until = Deadline(pause_before(failures, time.monotonic() - self._began_s, left_s))
        while not until.passed():
            self._session.check()
            time.sleep(min(LOOK_S, max(0.0, until.remaining_s())))

    def _done(
        self,
        table: Table,
        agreement: Agreement,
        transfer: Transfer,
        failure: PcclError | None,
        deadline: Deadline,
    ) -> Told:
        """Says how it went, and hears it of all."""
        said = words(
            table,
            self._session.peer_id,
            failed=failure is not None,
            torn=failure is not None and self._state.torn and self._put_back is None,
            struck=transfer.struck,
            tried=self._tried[1],
        )
        with self._step(f"{ENTRY}.done", deadline) as step:
            step.all_reduce(said, op="sum")
        return heard(table, agreement, said, step.outcome.contributors)

    def _step(self, name: str, deadline: Deadline, gate_s: float | None = None) -> Step:
        left_s = deadline.remaining_s()
        if left_s <= 0:
            raise DeadlineExceeded("the state was not synced in time")
        return Step(self._session, name, left_s, gate_s=gate_s)
