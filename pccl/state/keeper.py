"""Keeps one session's state in step with the run: at its first entry, and at every later one.

    in no view, no view has begun   -> founders: a checkpoint if there is one, then a sync
    in no view, the run goes on     -> fetched beside the run, then entered; the rest at the entry
    member                          -> nothing

Invariant: a step of the program begins only when this process holds the state with which the step
begins at every member.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from pccl.base.clock import Deadline
from pccl.base.errors import CannotCatchUp, DeadlineExceeded, Excluded, StepFailed, UsageError
from pccl.base.log import get_logger
from pccl.state.agreement import Strategy
from pccl.state.checkpoint import Checkpoints
from pccl.state.donor import Donor
from pccl.state.holding import STEP_BACK_S, STEP_BACKS
from pccl.state.joining import Joining
from pccl.state.shared import SharedState
from pccl.state.sync import Sync
from pccl.state.told import SyncResult

if TYPE_CHECKING:
    from pccl.session import Session
    from pccl.ticket import Ticket

LENT_PATIENCE_S = 5.0  # for somebody to offer something, where there is another way
GATE_S = 1.0  # then a founder looks whether the run has begun without it

_log = get_logger("state")


class StateKeeper:
    """What `connect(..., state=)` and `Communicator.sync` put beside a session.

    Args:
        automatic: bring the state up to date at entries; else only `sync` does.
        lent: it belongs to a front end of the library, which has its own way to bring a state to
            founders, and to newcomers that cannot fetch it; they come in at the entries whose names
            begin so.  "": it is the program's.
    """

    def __init__(
        self,
        session: Session,
        state: SharedState,
        checkpoints: Checkpoints | None = None,
        *,
        automatic: bool,
        lent: str = "",
    ) -> None:
        self.state = state
        self.donor = Donor(session, state)
        self.checkpoints = checkpoints
        self._session = session
        self._automatic = automatic
        self.lent = lent
        self._exclusions = session.exclusions  # when the state was complete last
        self._joining: Joining | None = None  # until the state is complete at an entry
        self._busy = threading.local()
        state.bind()
        session.agent.on_stream = self.donor.offer
        if checkpoints is not None:
            checkpoints.follow(state, self._seat)

    def sync(self, strategy: Strategy, timeout_s: float) -> SyncResult:
        """See `Communicator.sync`."""
        deadline = Deadline(timeout_s)
        if self._automatic and not self.state.synced:
            self.before_entry("", timeout_s)
        self._busy.inside = True
        try:
            return self._sync(strategy, deadline.remaining_s(), None)
        finally:
            self._busy.inside = False

    def _sync(self, strategy: Strategy, timeout_s: float, gate_s: float | None) -> SyncResult:
        sync = Sync(self._session, self.state, self.donor, self.checkpoints)
        return sync.run(strategy, timeout_s, gate_s)

    def _seat(self) -> tuple[int, int]:
        view = self._session.engine.view()
        return view.rank, view.world_size

    def close(self) -> None:
        self._session.agent.on_stream = None
        self.donor.close()
        if self.checkpoints is not None:
            self.checkpoints.close()

    # ---- entries

    def before_entry(self, name: str, timeout_s: float) -> None:
        """Brings the state up to date if this process is in no view.  Raises as `Sync.run`."""
        if not self._automatic or getattr(self._busy, "inside", False):
            return
        if self.state.synced and self._session.engine.view().rank >= 0:
            return
        if self.lent and not name.startswith(self.lent):
            self._refuse_to_enter(name)
            return
        self._busy.inside = True
        try:
            if self.lent:
                self._fetch_if_possible(Deadline(timeout_s))
            else:
                self._bring_up_to_date(Deadline(timeout_s))
        finally:
            self._busy.inside = False

    def _refuse_to_enter(self, name: str) -> None:
        """Raises Excluded: who comes in between a front end's entries misses what is on its way."""
        if self._session.engine.view().rank < 0 and goes_on(self._session):
            raise Excluded(
                f"this peer is in no view, and does not come in at {name!r}: call step() of its "
                "outer optimizer, by which it comes in again"
            )

    def _bring_up_to_date(self, deadline: Deadline) -> None:
        while True:
            self._session.check()
            outside = self._session.engine.view().rank < 0
            if outside and goes_on(self._session):
                self._joining = self._joining or Joining(self._session, self.state)
                self._joining.fetch(deadline)
                return
            if self._joining is not None and not outside:
                return  # its first step has failed on all: it is completed in the next
            try:
                self._sync(Strategy.POPULAR, deadline.remaining_s(), GATE_S)
                self._exclusions = self._session.exclusions
                return
            except DeadlineExceeded:
                if deadline.passed():
                    raise

    def _fetch_if_possible(self, deadline: Deadline) -> None:
        """Whatever is the matter, there is the other way, for which everybody stops: so not for who
        has been given anything.  Raises CannotCatchUp: it goes on with the next call."""
        if self._session.engine.view().rank >= 0 or not goes_on(self._session):
            return
        self._joining = self._joining or Joining(self._session, self.state, LENT_PATIENCE_S)
        try:
            self._joining.fetch(deadline)
        except CannotCatchUp:
            raise
        except (UsageError, StepFailed, DeadlineExceeded) as error:
            _log.warning(
                "the state is not fetched beside the run, all members stop to send it: %s", error
            )
            self._joining = None

    def after_entry(self, ticket: Ticket) -> bool:
        """Fetches what has changed since, while the members wait in this newcomer's first step.

        False: not in time, or they did not wait; the step is over here.
        """
        if self._joining is None and self._was_out(ticket):
            self._joining = Joining(self._session, self.state)
        if self._joining is None:
            return True
        try:
            if not self._joining.complete(ticket):
                return False
        except BaseException as error:
            self._session.leave_after(error)
            raise
        self._joining = None
        self._exclusions = self._session.exclusions
        return True

    def _was_out(self, ticket: Ticket) -> bool:
        """Says whether this peer was put out, and has come in again, since the state was complete:
        as it waited at the gate, or a step of which nobody has looked what became.

        Raises:
            Excluded: so it was, and not at an entry of its front end; it has stepped back.
        """
        session = self._session
        if not self._automatic or getattr(self._busy, "inside", False):
            return False
        session.in_flight()  # settles what is decided
        was_out, self._exclusions = session.exclusions > self._exclusions, session.exclusions
        if not was_out or not self.state.synced:
            return False
        if self.lent and not ticket.name.startswith(self.lent):
            for _ in range(STEP_BACKS):
                ticket.step_back("it was out, and has come in between two entries")
                if ticket.wait(STEP_BACK_S):
                    break
            error = Excluded(f"this peer was out, and cannot take part in {ticket.name!r}")
            if not ticket.decided:
                session.leave_after(error)
            raise error
        return not self.lent  # else who has lent it asks


def goes_on(session: Session) -> bool:
    """Says whether steps run already, as far as this newcomer has heard."""
    standing = session.agent.standing
    told = 0 if standing.world is None else standing.world.members
    return told > 0 or (standing.admitted is not None and standing.admitted.epoch > 0)


def keeper_of(session: Session, state: SharedState | None) -> StateKeeper:
    """Returns the session's keeper, made now if it has none.  Raises UsageError for a second
    state."""
    keeper = session.keeper
    if not isinstance(keeper, StateKeeper) or keeper.lent:
        if not isinstance(state, SharedState):
            raise UsageError("pass a SharedState, here or as connect(..., state=)")
        if keeper is not None:
            keeper.close()
        keeper = session.keeper = StateKeeper(session, state, automatic=False)
    if state is not None and state is not keeper.state:
        raise UsageError("a communicator has one shared state; put all tensors into it")
    return keeper


def keep_state(
    session: Session, state: SharedState | None, checkpoints: Checkpoints | None
) -> None:
    """Has a session that has just begun bring this state up to date by itself."""
    if state is not None:
        session.keeper = StateKeeper(session, state, checkpoints, automatic=True)


def lend_keeper(session: Session, state: SharedState, entry: str) -> StateKeeper | None:
    """Has newcomers fetch this state beside the run, and come in at entries whose names begin with
    `entry` only; None if that cannot be done.

    A session has one keeper, the program's own before ours, of ours the newest.  Peers of several
    groups hold states of their own, and a newcomer would not know whose is whose.
    """
    former = session.keeper
    if isinstance(former, StateKeeper) and former.lent:
        take_back(session, former)
    if session.keeper is not None or session.agent.config.group != 0:
        return None
    keeper = StateKeeper(session, state, automatic=True, lent=entry)
    session.keeper = keeper
    return keeper


def take_back(session: Session, keeper: StateKeeper) -> None:
    """Ends a keeper that was lent, if it is still there."""
    if session.keeper is keeper:
        session.keeper = None
        keeper.close()


def check_state(
    state: object, checkpoint_dir: str | os.PathLike[str] | Checkpoints | None
) -> Checkpoints | None:
    """Checks what `connect` is given; returns the checkpoints of that folder."""
    if state is not None and not isinstance(state, SharedState):
        raise UsageError(f"state is a pccl.SharedState, not a {type(state).__name__}")
    if checkpoint_dir is None:
        return None
    if state is None:
        raise UsageError("checkpoint_dir needs state=: what would be written?")
    if isinstance(checkpoint_dir, Checkpoints):
        return checkpoint_dir
    return Checkpoints(checkpoint_dir)
