"""Where members and joiners meet: an entry at which all tell what they hold; joiners are healed.

    entry "torch job J"    a Report of each to all   (joiners come in here, and only here)
    "torch state check"    digests of the states     (only if somebody has come or is lost)
    "torch state size"     how large the state is    (only if somebody needs it)
    "torch state"          the state itself, from the source to all
    ... and again, until a survey finds that all hold the same

Theory.  All members decide from committed reports, so all take the same way.  If a member is lost
meanwhile, its step ends with ViewChanged on all, and all meet again.

Invariant: `meet` returns with a roster that all members share and a state that all hold, or raises
within its deadline; a state is written at most as a whole (`State.restore`).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np

from pccl.base.clock import Deadline, system_clock
from pccl.base.errors import (
    Closed,
    CoordinatorLost,
    DeadlineExceeded,
    Evicted,
    Excluded,
    PcclError,
    StepFailed,
    ViewChanged,
    WorldTooSmall,
)
from pccl.base.log import get_logger
from pccl.outcome import Outcome, Peer
from pccl.pytorch.elastic.replica import Replica
from pccl.pytorch.elastic.run import ElasticRun
from pccl.pytorch.elastic.survey import (
    DIGEST_BYTES,
    Decision,
    Report,
    UnknownReport,
    complete,
    decide,
    right_form,
)
from pccl.pytorch.errors import Mismatch, Misused, PcclDistError, PeerLost, TimedOut
from pccl.pytorch.rendezvous import another_job

ROUNDS_MAX: Final = 8  # of healing after which members still differ
REPLICA_S: Final = 10.0  # in which all processes of a replica come in, once one of them has
NO_STATE: Final = 1 << 63  # for a size
PAUSE_S: Final = 0.02  # while members are coming in one by one
OUT: Final = (Evicted, CoordinatorLost, Closed)  # this process is no peer any more
_log = get_logger("pytorch")


class Heals(Protocol):
    """What is surveyed and healed: a State."""

    step: int

    def digest(self) -> bytes: ...
    def snapshot(self) -> bytes: ...
    def restore(self, snapshot: memoryview) -> None: ...


@dataclass(frozen=True, slots=True)
class Healing:
    """What a meeting has done for this member, and for others."""

    source: Peer
    healed: tuple[Peer, ...]
    diverged: tuple[Peer, ...]
    step: int
    byte_count: int


def _read(row: bytes) -> Report | None:
    try:
        return Report.unpack(row)
    except UnknownReport:
        return None


class Meeting:
    """One call of `begin`, until all are in the same state."""

    def __init__(
        self,
        run: ElasticRun,
        state: Heals,
        replica: Replica,
        *,
        check: bool,
        deadline: Deadline,
    ) -> None:
        """
        Args:
            check: compares digests of the members' states; not for replicas of several processes,
                whose parts would have to heal together.
        """
        self._run = run
        self._state = state
        self._replica, self._parts = replica, replica.parts
        self._check = check and not replica.divided
        self._deadline = deadline
        self._limit_s = round(deadline.remaining_s(), 1)
        self._alone_since_s: float | None = None
        self.healings: list[Healing] = []

    def meet(self) -> None:
        """
        Raises:
            TimedOut: not enough members, or not all of some replica, within the deadline.
            PeerLost: a partner of this replica is gone, or this process is out and may not rejoin.
            Mismatch: the members' state does not fit this process's; it has left the run.
            Left: as it had asked to.
        """
        rounds = 0
        while True:
            if self._run.out:
                self._come_in_again(None)
            try:
                decision = self._round()
            except WorldTooSmall as error:
                self._await_members(error)
                continue
            except Excluded as error:
                if self._parts > 1:
                    raise self._broken(str(error)) from error
                self._run.synced = False
                continue
            except StepFailed:
                if self._deadline.passed():
                    raise
                continue
            except DeadlineExceeded as error:
                raise self._not_met(error) from error
            except OUT as error:
                self._come_in_again(error)
                continue
            if decision is None:
                self._pause()
            elif decision.source is None:
                self._run.synced = True
                return
            else:
                rounds += 1
                if rounds > ROUNDS_MAX:
                    raise PcclDistError(
                        f"members still hold different states after {ROUNDS_MAX} healings; does "
                        "load_state_dict of some part restore all that its state_dict tells?",
                        op="begin",
                    )

    # ---- one round

    def _round(self) -> Decision | None:
        """Surveys, and heals if somebody needs it.  None: not all are in that must be."""
        run = self._run
        own = Report(run.synced, self._state.step, b"", self._replica.name, self._parts)
        left_s = max(self._deadline.remaining_s(), 0.001)
        said, outcome = self._gather(run.joining.entry, own.pack(), left_s)
        members = outcome.contributors
        run.frame(members)
        if self._parts > 1 and not self._replica.whole():
            raise self._broken("this replica has lost a process")
        if run.place.rank >= run.joining.most:
            run.communicator.session.close("the job is full")
            raise Misused(f"job {run.joining.job!r} takes {run.joining.most} members", op="begin")
        present = run.communicator.view.members
        self._replica.seen |= self._replica.partners & set(present)
        if not complete(outcome.groups, self._parts):
            self._require_partners(present)
            return None
        reports = self._fitting(said)
        if reports is None:
            return None
        run.replicas = {m: r.replica for m, r in zip(members, reports, strict=True)}
        new = not any(report.synced or report.step for report in reports)
        if new and len(members) < run.joining.start:
            return None
        decision = decide(reports)
        if self._check and any(report.synced for report in reports):
            decision = self._compared(reports, decision)
        if decision.source is not None:
            self._heal(decision)
        return decision

    def _fitting(self, said: list[bytes]) -> list[Report] | None:
        """Returns what all say; None if somebody does not fit in here, who leaves.

        Raises:
            Mismatch: that is this process.
        """
        reports = [_read(row) for row in said]
        parts = right_form(reports)
        if self._parts != parts:
            self._run.communicator.session.close("its replicas are not those of the job")
            raise Mismatch(
                f"replicas have {parts} processes in job {self._run.joining.job!r}, here "
                f"{self._parts} (`elastic_fsdp` says how many)",
                op="begin",
            )
        fit = [report for report in reports if report is not None and report.parts == parts]
        return fit if len(fit) == len(reports) else None

    def _compared(self, reports: list[Report], decision: Decision) -> Decision:
        """Decides anew by digests, unless the same members' have been compared before.

        A newcomer that is still building its model makes members meet at every step; that must not
        cost them a pass over their states each time.
        """
        run = self._run
        if run.compared == run.members and not decision.healed:
            return decision
        own = self._state.digest() if run.synced else bytes(DIGEST_BYTES)
        said, outcome = self._gather("torch state check", own, run.joining.timeout_s)
        if outcome.contributors != run.members:
            raise ViewChanged("a member was lost while states were compared")
        run.compared = outcome.contributors
        return decide(
            [
                replace(report, digest=digest if report.synced else b"")
                for report, digest in zip(reports, said, strict=True)
            ]
        )

    def _gather(self, name: str, own: bytes, timeout_s: float) -> tuple[list[bytes], Outcome]:
        """Returns what all say in a step, in rank order, and who took part."""
        with self._run.communicator.step(name, timeout_s) as step:
            rows = np.zeros((step.world_size, len(own)), np.uint8)
            step.all_gather(np.frombuffer(own, np.uint8), rows)
        return [row.tobytes() for row in rows], step.outcome

    def _heal(self, decision: Decision) -> None:
        run, state = self._run, self._state
        assert decision.source is not None
        me = run.place.rank
        source = run.members[decision.source]
        gives, takes = me == decision.source, me in decision.healed
        content, size = None, np.zeros(1, np.uint64)
        if gives:
            try:
                content = np.frombuffer(state.snapshot(), np.uint8)
                size[0] = content.size
            except Exception:  # a part of the program's own
                _log.exception("this member's state cannot be given; who needs it cannot come in")
                size[0] = NO_STATE
        limit_s = run.joining.timeout_s
        with run.communicator.step("torch state size", limit_s) as step:
            step.broadcast(size, source)
        if int(size[0]) == NO_STATE:
            if takes:
                raise self._broken(f"member {source} could not give its state; see its log")
            return
        if content is None:
            content = np.empty(int(size[0]), np.uint8)
        with run.communicator.step("torch state", limit_s) as step:
            step.broadcast(content, source)
        self.healings.append(
            Healing(
                source,
                tuple(run.members[rank] for rank in decision.healed),
                tuple(run.members[rank] for rank in decision.diverged),
                decision.step,
                int(size[0]),
            )
        )
        if me in decision.diverged:
            _log.error("this member's state differs from most others'; it takes over theirs")
        run.compared = ()  # what has been healed is compared as well
        if takes:
            try:
                state.restore(content.data)
            except BaseException as error:
                run.communicator.session.leave_after(error)
                raise
        run.synced = True

    # ---- waiting

    def _require_partners(self, members: tuple[Peer, ...]) -> None:
        """A replica that has lost a process cannot compute: the rest of it leaves."""
        partners = self._replica.partners
        present = partners & set(members)
        lost = self._replica.seen - present
        if lost or not self._replica.whole():
            raise self._broken(f"this replica has lost {len(lost) or 'some'} of its processes")
        if present == partners:
            self._alone_since_s = None
            return
        now_s = system_clock()
        self._alone_since_s = self._alone_since_s or now_s
        if now_s - self._alone_since_s > REPLICA_S:
            raise self._broken(f"the rest of this replica has not come in within {REPLICA_S:g} s")

    def _broken(self, reason: str) -> PeerLost:
        self._run.communicator.session.close(reason)
        return PeerLost(reason, op="begin")

    def _pause(self) -> None:
        if self._deadline.passed():
            self._run.leave_at_once("not enough members have come")
            raise TimedOut(
                f"{self._run.place.size} members are in after {self._limit_s:g} s; to start it "
                f"takes {self._run.joining.start}, and all processes of each replica: start more, "
                "or lower ?start (Options.start_world)",
                op="begin",
            )
        threading.Event().wait(PAUSE_S)

    def _await_members(self, error: WorldTooSmall) -> None:
        """Joiners come in when members come to the entry, so members come to it again and again."""
        if self._deadline.passed():
            run, have = self._run, len(self._run.communicator.view.members)
            run.leave_at_once("not enough members have come")
            raise TimedOut(
                f"{have} of {run.joining.least} members are in after {self._limit_s:g} s; start "
                "more, or lower ?min (Options.min_world)",
                op="begin",
            ) from error
        threading.Event().wait(PAUSE_S)

    def _not_met(self, error: DeadlineExceeded) -> TimedOut:
        """Returns what a process is told that has waited at the entry, or in a step, in vain."""
        run = self._run
        if run.communicator.session.engine.view().rank >= 0:
            return TimedOut(str(error), op="begin")  # a member: the job is this one
        return TimedOut(f"{error}; {another_job(run.joining.job)}", op="begin")

    def _come_in_again(self, error: PcclError | None) -> None:
        run = self._run
        if not run.options.rejoin or self._parts > 1:
            run.check("begin")
            reason = error or Closed("this process was put out of the run")
            raise run.translate(reason, "begin") from error
        _log.warning("out of the run (%s); coming in again without state", error or "closed")
        run.come_in_again(self._deadline)
