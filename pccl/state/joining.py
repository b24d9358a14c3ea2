"""A newcomer's way to the state, beside the run: nobody waits for it until it comes in.

    ask all that it has met -> fetch what differs of the newest revision that most of them hold
      -> replay what was committed meanwhile, or ask again until little differs -> to the entry
      -> in its first step: what that step began with, if it is not that already
      -> not there within hold_s: out of the view again, and from the beginning

Theory.  A newcomer knows the members' addresses from the coordinator's plan for it, long before it
is one.  What it has after `fetch` may be a revision or two old when it comes in; members are then
in the same step, where their state stands still, so what is missing is fetched from all of them, or
replayed, while they wait for it.  That is one question if nothing is missing.  `catching_up`
decides when that may be tried.

Invariants: the state counts as synced only when its root is that of most members at one step;
members wait for this peer `hold_s` at a time, and for their own hashing.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pccl.base.clock import Deadline
from pccl.base.errors import CannotCatchUp, DeadlineExceeded, PcclError, RemoteError, StepFailed
from pccl.base.log import get_logger
from pccl.membership.messages import MemberInfo
from pccl.state import messages as m
from pccl.state.catching_up import CatchingUp
from pccl.state.receiver import Opened, Receiver, Target, open_source
from pccl.state.replay import replay
from pccl.state.shared import SharedState
from pccl.state.stream import StreamLost, identity_of, stream_tls_of

if TYPE_CHECKING:
    from pccl.session import Session
    from pccl.ticket import Ticket

SOURCES_MAX = 8  # asked at once; more would only share the same way to this process
ASK_AGAIN_S = 0.2
DRAIN_S = 5.0  # for what a source still sends, whose stream brings the updates to come
DESCRIBE_S = 30.0  # a donor may have to hash its state first
OTHERS_S = 1.0  # for further answers, once there is one
OTHERS_PART = 0.25  # of what members wait, at most: a late answer must leave time for the rest
REST_S_MAX = 5.0  # between two rounds, of which the donors are spared the second half
STEP_BACK_S = 0.25  # then it is asked for again: it may not have been heard
STEP_BACKS = 4  # then this peer is needed, and goes on fetching where it is
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
        self._identity = identity_of(session, stream_tls_of(session))
        self._followed: list[Opened] = []  # they keep what is committed while this one waits
        self._whys: dict[bytes, str] = {}  # what was wrong with members that gave nothing
        self._came = 0  # bytes of the last fetch, whatever became of it
        self._came_in_all = 0  # since `fetch` was called
        self._pace = CatchingUp(state.layout.byte_count, state.pace, state.hold_s, state.hold_bytes)

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
                opened = self._ask_until(deadline)
                if self._round(opened, deadline):
                    return
            except DeadlineExceeded as error:
                raise self._too_slow(error, _since(fetching_s)) from error
            finally:
                _close([one for one in opened if one not in self._followed])
            if deadline.passed():
                raise self._too_slow(None, _since(fetching_s))
            rest_s = min(REST_S_MAX, time.monotonic() - began_s)
            time.sleep(min(rest_s, deadline.remaining_s()))

    def _round(self, opened: list[Opened], deadline: Deadline) -> bool:
        """Fetches once what differs; says whether what will differ at the entry is little."""
        state = self._state
        target = _newest(opened)
        holds = self._holds(target)
        if not holds:
            began_s = time.monotonic()
            transfer = self._receive(target, opened, deadline, DRAIN_S)
            if transfer is None:
                return False
            self._pace.round(target.revision, transfer, time.monotonic() - began_s)
        state.restored(target.revision, target.lineage)
        state.progress = self._pace.progress()
        if state.apply is not None:  # also who lacks nothing now may wait at the entry
            _close(self._followed)
            self._followed = opened
            self._replay(opened, deadline)
            return True  # what comes from now on is replayed at the entry
        if self._pace.to_be_said:
            _log.warning("this peer does not come in yet: %s", self._pace.why())
        return holds or self._pace.fits

    def _too_slow(self, error: DeadlineExceeded | None, took_s: float) -> DeadlineExceeded:
        """What to say of a fetch whose time is over."""
        found = self._pace.progress()
        if found.rounds == 0 and self._came_in_all and took_s:
            rate, whole = self._came_in_all / took_s, self._state.layout.byte_count
            return CannotCatchUp(
                f"{self._came_in_all} of {whole} bytes of the members' state have come in "
                f"{took_s:.3g} s; what has come is kept: go on, or give it more time (timeout_s)",
                pace_bytes_per_s=rate,
                needed_bytes_per_s=whole / took_s,
            )
        if found.rounds == 0:
            text = f"no member has given its state in time: {self._said('none holds it yet')}"
            return error or DeadlineExceeded(text)
        return CannotCatchUp(
            self._pace.why(),
            pace_bytes_per_s=found.pace_bytes_per_s,
            needed_bytes_per_s=found.needed_bytes_per_s,
        )

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
        try:
            while not ticket.wait(0.0):
                if self._complete(ticket):
                    self._state.progress = None
                    return True
                if ticket.deadline.passed():
                    raise self._too_slow(None, 0.0)
            return False
        finally:
            _close(self._followed)
            self._followed = []

    def _complete(self, ticket: Ticket) -> bool:
        """One try; if it was in vain for as long as members wait, asks to be left out."""
        state, step = self._state, ticket.begun.step
        self._came = 0
        self._whys = {who: why for who, why in self._whys.items() if why != m.WAITS_ITSELF}
        opened = self._ask(self._members(), step, ticket.deadline)
        if not opened:
            if self._nobody_is_left():
                _log.warning("all that had the state are gone; those that came to fetch it go on")
                return True
            time.sleep(ASK_AGAIN_S / 4)
            return False
        began_s = min(one.said_s for one in opened)
        hold = Deadline(min(self._pace.hold_s, ticket.deadline.remaining_s()) - _since(began_s))
        try:
            target = _of_most(opened)
            holds = state.revision == target.revision and self._holds(target)
            if not holds and self._followed and state.lineage == target.lineage:
                self._replay(self._followed, hold)
            if not holds and not self._holds(target):
                self._receive(target, opened, hold)
            if holds or self._holds(target):
                state.adopt(target.revision, target.lineage)
                return True
        except DeadlineExceeded as error:
            _log.info("the state of step %d is not here in time: %s", step, error)
        finally:
            _close(opened)
        if hold.passed():
            took_s = _since(began_s)
            self._pace.entry(self._came, took_s)
            state.progress = self._pace.progress()
            for _ in range(STEP_BACKS):
                ticket.step_back(f"its state has not come in {took_s:.3g} s")
                if ticket.wait(STEP_BACK_S):
                    break
        else:
            ticket.wait(ASK_AGAIN_S / 4)  # those that failed at once are not asked at once again
        return False

    # ---- parts

    def _members(self) -> list[MemberInfo]:
        me = bytes(self._session.peer_id)
        return [x for x in self._session.agent.standing.met if x.peer_id != me]

    def _ask_until(self, deadline: Deadline) -> list[Opened]:
        patience = deadline
        if self._patience_s is not None:
            patience = Deadline(min(deadline.remaining_s(), self._patience_s))
        while True:
            self._session.check()
            if opened := self._ask(self._members(), m.CURRENT, deadline, patience):
                return opened
            if patience.passed():
                waits = self._session.agent.standing.waits or "none holds it yet"
                raise DeadlineExceeded(
                    f"no member has given its state in time: {self._said(waits)}"
                )
            time.sleep(ASK_AGAIN_S)

    def _ask(
        self,
        members: Sequence[MemberInfo],
        at_step: int,
        deadline: Deadline,
        patience: Deadline | None = None,
    ) -> list[Opened]:
        """Opens streams to some of them at once; those that have nothing to give are left out."""
        if not members:
            return []
        start = int.from_bytes(self._session.peer_id[:4], "little") % len(members)
        chosen = [
            members[(start + i) % len(members)] for i in range(min(SOURCES_MAX, len(members)))
        ]
        asking = _Asking(len(chosen))
        for member in chosen:
            name = f"pccl-ask-{member.peer_id.hex()[:8]}"
            work = partial(asking.put, partial(self._open, member, at_step))
            threading.Thread(target=work, name=name, daemon=True).start()
        others_s = OTHERS_S
        if at_step != m.CURRENT:
            others_s = min(others_s, OTHERS_PART * self._pace.hold_s)
        found = asking.take(deadline, others_s, patience)
        opened = [one for one in found if isinstance(one, Opened)]
        errors = [one for one in found if isinstance(one, PcclError)]
        if errors and len(errors) >= len(opened):  # else it is they whose layout is another one
            _close(opened)
            raise errors[0]
        for error in errors:
            _log.warning("a member is no source of state: %s", error)
        return opened

    def _open(
        self, member: MemberInfo, at_step: int, accepted: Callable[[], None]
    ) -> Opened | PcclError | None:
        try:
            return open_source(
                member,
                self._identity,
                self._state,
                at_step=at_step,
                describe_s=DESCRIBE_S,
                said_within_s=None if at_step == m.CURRENT else self._pace.hold_s,
                accepted=accepted,
            )
        except (StreamLost, RemoteError) as error:
            known = self._whys.get(member.peer_id)
            self._whys[member.peer_id] = why = str(error)
            log = _log.info if member.port == 0 and known != why else _log.debug
            log("no state from peer %s: %s", member.peer_id.hex()[:8], why)
            return None
        except PcclError as error:
            return error

    def _nobody_is_left(self) -> bool:
        whys = [self._whys.get(member.peer_id) for member in self._members()]
        return self._patience_s is not None and all(why == m.WAITS_ITSELF for why in whys)

    def _said(self, otherwise: str) -> str:
        """What the members that gave nothing said, or what was wrong with them."""
        met = {member.peer_id for member in self._members()}
        whys = [f"peer {who.hex()[:8]} {why}" for who, why in self._whys.items() if who in met]
        return "; ".join(whys) or otherwise

    def _receive(
        self, target: Target, opened: Sequence[Opened], deadline: Deadline, drain_s: float = 0.0
    ) -> int | None:
        """Fetches what differs; None if the revision went away meanwhile."""
        alike = [one for one in opened if _target(one) == target]
        alike = [one for one in alike if not one.stream.by_third] or alike
        members = [one.member for one in alike]
        receiver = Receiver(
            self._state, target, members, self._identity, opened=alike, drain_s=drain_s
        )
        try:
            receiver.run(deadline)
        except StepFailed as error:
            _log.info("fetching again: %s", error)
            return None
        finally:
            self._came = receiver.transfer.byte_count
            self._came_in_all += self._came
        return self._came

    def _holds(self, target: Target) -> bool:
        return self._state.survey()[1] == target.root

    def _replay(self, opened: Sequence[Opened], deadline: Deadline) -> bool:
        """Replays what was committed since; says whether this is as new as what is replayed."""
        if self._state.apply is None:
            return False
        for one in opened:
            try:
                if replay(self._state, one.stream, deadline):
                    return True
            except (StreamLost, RemoteError) as error:
                _log.info("replaying from peer %s ended: %s", one.member.peer_id.hex()[:8], error)
        return False


class _Asking:
    """Answers as they come.  Nobody waits long for a stopped member once another has answered."""

    def __init__(self, count: int) -> None:
        self._turn = threading.Condition()
        self._open = count
        self._accepted = 0  # streams to members that find out what they hold, which may take long
        self._found: list[Opened | PcclError | None] = []
        self._over = False

    def put(self, ask: Callable[[Callable[[], None]], Opened | PcclError | None]) -> None:
        mine = 0

        def accepted() -> None:
            nonlocal mine
            mine = 1
            with self._turn:
                self._accepted += 1
                self._turn.notify_all()

        answer = ask(accepted)
        with self._turn:
            self._open -= 1
            self._accepted -= mine
            late = self._over
            self._found.append(answer)
            self._turn.notify_all()
        if late and isinstance(answer, Opened):
            answer.stream.close()

    def take(
        self, deadline: Deadline, others_s: float = OTHERS_S, patience: Deadline | None = None
    ) -> list[Opened | PcclError | None]:
        """`patience` ends the wait for a first answer as long as nobody has accepted a stream."""
        with self._turn:
            first = Deadline(min(2 * DESCRIBE_S, deadline.remaining_s()))
            while self._open and not any(self._found):
                until = first if patience is None or self._accepted else patience
                if until.passed() or first.passed():
                    break
                self._turn.wait(min(until.remaining_s(), first.remaining_s()))
            if any(self._found):
                self._turn.wait_for(lambda: self._open == 0, min(others_s, deadline.remaining_s()))
            self._over = True
            return list(self._found)


def _target(one: Opened) -> Target:
    said = one.described
    return Target(said.revision, said.lineage, said.root)


def _newest(opened: Sequence[Opened]) -> Target:
    """The root that most hold of the highest revision; ties by the lowest peer id."""
    highest = max(one.described.revision for one in opened)
    return _of_most([one for one in opened if one.described.revision == highest])


def _of_most(opened: Sequence[Opened]) -> Target:
    """The state that most hold, whatever revision one of them claims; ties by the lowest peer id.
    At one step all members hold the same."""
    votes = Counter(_target(one) for one in opened)
    least = {_target(one): one.member.peer_id for one in sorted(opened, key=_by_id, reverse=True)}
    return min(votes, key=lambda target: (-votes[target], least[target]))


def _by_id(one: Opened) -> bytes:
    return one.member.peer_id


def _since(began_s: float) -> float:
    return time.monotonic() - began_s


def _close(opened: Sequence[Opened]) -> None:
    for one in opened:
        one.stream.close()
