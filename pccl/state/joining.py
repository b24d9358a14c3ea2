"""A newcomer's way to the state, beside the run: nobody waits for it until it comes in.

    ask all that it has met -> fetch what differs of the revision that most of them have reached
      -> replay what was committed meanwhile, or ask again until little differs -> to the entry
      -> in its first step: what that step began with, if it is not that already
      -> not there within hold_s: out of the view again, and from the beginning

Theory.  A newcomer knows the members' addresses from the coordinator's plan for it, long before it
is one.  What it has after `fetch` may be a revision or two old when it comes in; members are then
in the same step, where their state stands still, so what is missing is fetched from all of them, or
replayed, while they wait for it.  That is one question if nothing is missing.  `catching_up`
decides when that may be tried, `election` whom to believe, and `holding` ends it.

Invariants: the state counts as synced only when its root is that of most members at one step;
members wait for this peer `hold_s` at a time, all that it does included, and for their own hashing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pccl.base.clock import Deadline
from pccl.base.errors import CannotCatchUp, DeadlineExceeded, RemoteError, StepFailed
from pccl.base.log import get_logger
from pccl.state.asking import DESCRIBE_S, Inquiry, claims_of, close_all
from pccl.state.catching_up import HOLD_PART, CatchingUp, words_of
from pccl.state.election import Target, at_a_step, beside_the_run, confirmed
from pccl.state.holding import Hold
from pccl.state.opening import Opened
from pccl.state.receiver import Receiver
from pccl.state.replay import Tally, replay
from pccl.state.shared import SharedState
from pccl.state.stream import StreamLost

if TYPE_CHECKING:
    from pccl.session import Session
    from pccl.ticket import Ticket

ASK_AGAIN_S = 0.2
DRAIN_S = 5.0  # for what a source still sends, whose stream brings the updates to come
REST_S_MAX = 5.0  # between two rounds, of which the donors are spared the second half
FOLLOW_S = 5.0  # of replaying at a time; then it is looked at whether that leads anywhere
_log = get_logger("state")


class Joining:
    """One newcomer's fetch.  `fetch` before the entry, `complete` in the first step."""

    def __init__(
        self, session: Session, state: SharedState, patience_s: float | None = None
    ) -> None:
        """`patience_s`: how long `fetch` asks as long as nobody so much as accepts a stream."""
        self._patience_s = patience_s
        self._session = session
        self._state = state
        self._inquiry = Inquiry(session, state)
        self._followed: list[Opened] = []  # they keep what is committed while this one waits
        self._digests = self._root = b""  # of the memory, as surveyed last
        self._came = 0  # bytes of the last fetch, whatever became of it
        self._came_in_all = 0  # since `fetch` was called
        self._from = "nobody"  # the last sources, for people
        self._pace = CatchingUp(
            state.layout.byte_count,
            state.pace,
            state.hold_s,
            state.hold_bytes,
            hold_s_max=state.hold_s_max,
            replays=state.apply is not None,
        )

    # ---- beside the run

    def fetch(self, deadline: Deadline) -> None:
        """Brings the memory so near to the members' newest revision that it may ask to come in.

        Raises:
            UsageError: its layout is not theirs.
            CannotCatchUp: it changed faster than it came, until the time was over.
            StepFailed, DeadlineExceeded: nobody has given anything in time.
        """
        self._came_in_all, fetching_s = 0, time.monotonic()
        while True:
            opened: list[Opened] = []
            began_s = time.monotonic()
            try:
                if not self._followed or not self._follow(deadline):
                    opened = self._ask_until(deadline)
                    self._round(opened, deadline)
            except DeadlineExceeded as error:
                raise self._too_slow(error, _since(fetching_s)) from error
            finally:
                close_all([one for one in opened if one not in self._followed])
            self._state.progress = self._pace.progress()
            if self._pace.may_enter:
                return
            if self._pace.to_be_said:
                _log.warning("this peer does not come in yet: %s", self._pace.why())
            if deadline.passed():
                raise self._too_slow(None, _since(fetching_s))
            time.sleep(min(self._rest_s(_since(began_s)), deadline.remaining_s()))

    def _rest_s(self, took_s: float) -> float:
        if self._followed:  # replaying costs the donors little, and who is behind must not rest
            return 0.0 if self._pace.behind else ASK_AGAIN_S
        return min(REST_S_MAX, took_s)

    def _round(self, opened: list[Opened], deadline: Deadline) -> None:
        """Fetches once what differs, and replays what came after it."""
        state = self._state
        claims = claims_of(opened)
        elected = beside_the_run(claims, self._inquiry.ranks())
        self._inquiry.judge(elected, claims)
        target = elected.target
        self._pace.members_hold(target.revision, time.monotonic())
        self._survey()
        if self._root != target.root:
            began_s = time.monotonic()
            usable = self._inquiry.usable(opened, elected)
            if not self._receive(target, usable, deadline, DRAIN_S):
                return self._pace.failed()
            self._pace.round(target.revision, self._came, time.monotonic() - began_s)
        else:
            self._pace.lacks_nothing(target.revision)
        state.restored(target.revision, target.lineage)
        if state.apply is not None:  # also who lacks nothing now may wait at the entry
            close_all(self._followed)
            self._followed = list(self._inquiry.believed(opened))
            self._follow(deadline)
        return None

    def _follow(self, deadline: Deadline) -> bool:
        """Replays what was committed since; False if there was nothing: none may be to be had."""
        tally, began_s = Tally(), time.monotonic()
        try:
            pause = Deadline(min(FOLLOW_S, deadline.remaining_s()))
            self._replay(self._followed, deadline, tally, pause)
            behind = not self._followed
        except DeadlineExceeded as error:
            _log.info("%s", error)
            behind = True
        took_s = _since(began_s)
        count = tally.revisions
        self._pace.replayed(count, tally.byte_count, took_s, tally.apply_s, behind=behind)
        if not behind:
            self._pace.members_hold(self._state.revision, time.monotonic())
        return count > 0 and bool(self._followed)

    def _too_slow(self, error: DeadlineExceeded | None, took_s: float) -> DeadlineExceeded:
        """What to say of a fetch whose time is over."""
        found = self._pace.progress()
        if found.rounds == 0 and self._came_in_all and took_s:
            rate, whole = self._came_in_all / took_s, self._state.layout.byte_count
            return CannotCatchUp(
                f"{self._came_in_all} of {whole} bytes of the members' state have come in "
                f"{took_s:.3g} s, {words_of(rate)}, of {self._from}; what has come is kept: "
                "go on, give it more time (timeout_s), or more or faster donors",
                pace_bytes_per_s=rate,
                needed_bytes_per_s=whole / took_s,
            )
        if found.rounds == 0:
            text = self._inquiry.said("none holds it yet")
            return error or DeadlineExceeded(f"no member has given its state in time: {text}")
        return CannotCatchUp(
            self._pace.why(),
            pace_bytes_per_s=found.pace_bytes_per_s,
            needed_bytes_per_s=found.needed_bytes_per_s,
        )

    def _ask_until(self, deadline: Deadline) -> list[Opened]:
        patience = deadline
        if self._patience_s is not None:
            patience = Deadline(min(deadline.remaining_s(), self._patience_s))
        while True:
            self._session.check()
            if opened := self._inquiry.beside_the_run(deadline, patience):
                return opened
            if patience.passed():
                waits = self._session.agent.standing.waits or "none holds it yet"
                text = self._inquiry.said(waits)
                raise DeadlineExceeded(f"no member has given its state in time: {text}")
            time.sleep(ASK_AGAIN_S)

    # ---- in the first step

    def complete(self, ticket: Ticket) -> bool:
        """Makes the state the one with which this step began, within `hold_s`.

        Returns:
            True: it is, or it is not `synced`, since none but newcomers of a front end are left.
            False: it was not there in time.  The step is over here, the others run it without this
            peer, and what has come is in memory: `fetch`, and come in again.

        Raises:
            DeadlineExceeded: it could not, and cannot step back since too few would be left; the
                caller leaves.
        """
        state, began_s, spent = self._state, time.monotonic(), 0
        hold_s = min(self._pace.hold_s, HOLD_PART * ticket.timeout_s)
        hold = Hold(ticket, hold_s, DESCRIBE_S + hold_s)
        try:
            while not ticket.wait(0.0):
                target = self._complete(ticket, hold, hold_s)
                done = target is not None or self._nobody_is_left()
                if done and hold.release():
                    if target is not None:
                        state.adopt(target.revision, target.lineage)
                    state.progress = None
                    return True
                hold.settle()
                if hold.spent > spent:
                    spent = hold.spent
                    self._pace.entry(self._came, _since(began_s), self._due)
                    state.progress = self._pace.progress()
                if ticket.deadline.passed():
                    raise self._too_slow(None, 0.0)
            return False
        finally:
            hold.close()
            close_all(self._followed)
            self._followed = []

    def _complete(self, ticket: Ticket, hold: Hold, hold_s: float) -> Target | None:
        """One try; returns what the memory holds now, if that is what the step began with."""
        state, step = self._state, ticket.begun.step
        self._came = self._due = 0
        inquiry = self._inquiry
        inquiry.forget_waiting()
        opened = inquiry.at_step(
            step, hold.deadline, hold_s, self._survey, lambda one: hold.answered(one.said_s)
        )
        if not opened:
            ticket.wait(ASK_AGAIN_S / 4)
            return None
        try:
            claims = claims_of(inquiry.believed(opened))
            if not confirmed(list(claims.values()), inquiry.asked):
                _log.info("no two of %d members say the same of step %d", inquiry.asked, step)
                inquiry.was_not_confirmed(opened)
                ticket.wait(ASK_AGAIN_S / 4)
                return None
            if ticket.wait(0.0):  # what is said of a step that is over may be of the next
                return None
            elected = at_a_step(claims, inquiry.ranks())
            inquiry.judge(elected, claims)
            target = elected.target
            if self._root == target.root:
                return target
            self._due = max(0, target.revision - state.revision)
            usable = inquiry.usable(opened, elected)
            follows = self._followed and state.lineage == target.lineage and self._due > 0
            if follows and self._pace.replays_sooner(self._due):
                self._replay(usable, hold.deadline)  # by these nothing is paced
                self._survey()
            if self._root == target.root or self._receive(target, usable, hold.deadline):
                return target
            ticket.wait(ASK_AGAIN_S / 4)  # those that failed at once are not asked at once again
        except DeadlineExceeded as error:
            _log.info("the state of step %d is not here in time: %s", step, error)
        finally:
            close_all(opened)
        return None

    def _nobody_is_left(self) -> bool:
        if self._patience_s is None or not self._inquiry.all_wait_themselves():
            return False
        _log.warning("all that had the state are gone; those that came to fetch it go on")
        return True

    # ---- parts

    def _survey(self) -> None:
        """Hashes the memory."""
        began_s = time.monotonic()
        self._digests, self._root = self._state.survey()
        self._pace.hashed(_since(began_s))

    def _receive(
        self, target: Target, opened: Sequence[Opened], deadline: Deadline, drain_s: float = 0.0
    ) -> bool:
        """Fetches what differs, as surveyed; False if none could give it all.  All of it was
        checked piece by piece when this is True."""
        self._from = "peer " + ", ".join(_id(one).hex()[:8] for one in opened)
        receiver = Receiver(
            self._state,
            target,
            [one.member for one in opened],
            self._inquiry.identity,
            opened=opened,
            ours=self._digests,
            drain_s=drain_s,
        )
        try:
            receiver.run(deadline)
        except StepFailed as error:
            _log.info("fetching again: %s", error)
            gave = {bytes(peer) for peer in receiver.transfer.by_source}
            self._inquiry.gave_nothing([_id(x) for x in opened if _id(x) not in gave])
            return False
        finally:
            self._came = receiver.transfer.byte_count
            self._came_in_all += self._came + receiver.transfer.broken_bytes
            for peer, why in receiver.transfer.struck.items():
                self._inquiry.bar(bytes(peer), why)
        return True

    def _replay(
        self,
        opened: list[Opened],
        deadline: Deadline,
        tally: Tally | None = None,
        pause: Deadline | None = None,
    ) -> None:
        """Replays what was committed since, from any of these; those that fail are dropped.

        Raises:
            DeadlineExceeded: there is more.
        """
        for one in list(opened):
            try:
                if replay(self._state, one.stream, deadline, tally, pause):
                    return
            except (StreamLost, RemoteError) as error:
                _log.info("replaying from peer %s ended: %s", _id(one).hex()[:8], error)
                one.stream.close()
                opened.remove(one)


def _id(one: Opened) -> bytes:
    return one.member.peer_id


def _since(began_s: float) -> float:
    return time.monotonic() - began_s
