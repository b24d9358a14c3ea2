"""The public face of a run: one process's seat in it."""

from __future__ import annotations

import weakref
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, overload

from pccl.arguments import check_number, check_seconds
from pccl.base.clock import Deadline
from pccl.base.errors import DeadlineExceeded, Left, PcclError, UsageError
from pccl.collectives.codecs import Codec
from pccl.collectives.nonfinite import NonFinite, NonFiniteCounts
from pccl.collectives.ops import Algorithm, ReduceOp
from pccl.collectives.placed import Request
from pccl.membership.agent import Standing
from pccl.membership.messages import DRAIN_S_MAX, TEXT_CHARACTERS_MAX
from pccl.messaging import Messaging, post
from pccl.outcome import Outcome, Peer
from pccl.session import Session
from pccl.sparse_collectives import SparseCollectives
from pccl.standalone import Collectives, end_empty
from pccl.state.agreement import Strategy
from pccl.state.keeper import StateKeeper, keeper_of
from pccl.state.shared import SharedState
from pccl.state.told import SyncResult
from pccl.step import Step, check_all_reduce, post_all_reduce
from pccl.transfer import Transfer
from pccl.view import View
from pccl.work import Work

POLL_S = 0.25  # how often wait_for looks at the engine's view, which changes without a message


class Communicator(Collectives, SparseCollectives, Messaging):
    """One process's seat in a fault-tolerant group.

    Get one from `pccl.connect(...)` and leave with `with` or `close()`.  The others go on without
    this peer whatever becomes of it; what they do shows here only as `view` and as `contributors`.
    Methods may be called from any thread; steps get their order by the order of their begin.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        # Also at interpreter exit, so that the others need not detect a loss.
        self._finalizer = weakref.finalize(self, session.close, "the process forgot or ended it")

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<Communicator of peer {self.peer_id}, {state}>"

    def __enter__(self) -> Self:
        self._session.check()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self.close()
        return isinstance(error, Left)  # as it was asked to: nothing to report

    @property
    def session(self) -> Session:
        """What this communicator and its steps share, for the library's own front ends."""
        return self._session

    # ---- who is in

    @property
    def peer_id(self) -> Peer:
        """This peer's id: a hash of its public key."""
        return self._session.peer_id

    @property
    def view(self) -> View:
        """The view in force now.  It may change whenever no step of this process is open."""
        self._session.check()
        view = self._session.engine.view()
        members = self._session.peers(view.members)
        return View(view.epoch, members, view.rank, view.groups, view.group)

    @property
    def rank(self) -> int:
        """This peer's rank in its group in the view in force now; -1 before its first step."""
        self._session.check()
        return self._session.engine.view().rank

    @property
    def world_size(self) -> int:
        """The number of members of this peer's group now; 0 before the first view."""
        self._session.check()
        return self._session.engine.view().world_size

    @property
    def closed(self) -> bool:
        return self._session.closed

    def wait_for(self, world_size: int, timeout_s: float = 60.0) -> None:
        """Waits until that many peers are in: members, and for a newcomer also other newcomers.

        Raises:
            DeadlineExceeded: they are not; the text says how many are.
        """
        world_size = check_number("world_size", world_size, 1)
        deadline = Deadline(check_seconds("timeout_s", timeout_s))
        session = self._session
        session.check()
        if self._count(session.agent.standing) >= world_size:
            return
        session.agent.want_world(world_size)
        try:
            while self._count(session.agent.standing) < world_size:
                if deadline.passed():
                    raise DeadlineExceeded(
                        f"{self._count(session.agent.standing)} of {world_size} peers are in "
                        f"after {timeout_s:g} s"
                    )
                session.agent.wait_until(
                    lambda standing: self._count(standing) >= world_size,
                    min(POLL_S, deadline.remaining_s()),
                )
                session.check()
        finally:
            if not session.closed:
                session.agent.want_world(0)

    def _count(self, standing: Standing) -> int:
        """Members count members; a newcomer also counts those who wait to come in with it."""
        view = self._session.engine.view()
        world = standing.world
        if view.rank >= 0:
            return max(len(view.members), 0 if world is None else world.members)
        admitted = 0 if standing.admitted is None else standing.admitted.members
        return admitted if world is None else max(world.admitted, world.members)

    # ---- operations

    @property
    def nonfinite(self) -> NonFiniteCounts:
        """How many NaN and infinities this peer's contributions held, where it looked for them."""
        return self._session.nonfinite

    def step(self, name: str = "step", timeout_s: float | None = None) -> Step:
        """Returns the next step, to be entered by `with`; an entry, at which joiners come in.

        Args:
            name: of the entry; members and joiners meet at steps of the same name.
            timeout_s: for the gate, and again from the block's end until the outcome; None takes
                the communicator's default.  On time-out the members decide together.

        On leaving the block, raises StepFailed or DeadlineExceeded if that is the decision on
        every member (inputs are as before), Evicted or OutcomeUnknown if this peer is out.
        On entering it, Left is raised if this peer has left as it had asked to, Excluded if the
        others did not wait for it, WorldTooSmall below `min_world` if the run is to raise then.
        An exception inside the block makes this peer leave the run; the others retry without it.
        """
        return Step(self._session, name, self._timeout(timeout_s))

    @overload
    def all_reduce(
        self,
        array: Any,
        op: str | ReduceOp = ...,
        weight: float = ...,
        out: Any = ...,
        *,
        async_op: Literal[False] = ...,
        timeout_s: float | None = ...,
        deterministic: bool = ...,
        algorithm: str | Algorithm = ...,
        codec: str | Codec | None = ...,
        nonfinite: str | NonFinite = ...,
    ) -> Outcome: ...

    @overload
    def all_reduce(
        self,
        array: Any,
        op: str | ReduceOp = ...,
        weight: float = ...,
        out: Any = ...,
        *,
        async_op: Literal[True],
        timeout_s: float | None = ...,
        deterministic: bool = ...,
        algorithm: str | Algorithm = ...,
        codec: str | Codec | None = ...,
        nonfinite: str | NonFinite = ...,
    ) -> Work: ...

    def all_reduce(
        self,
        array: Any,
        op: str | ReduceOp = "sum",
        weight: float = 1.0,
        out: Any = None,
        *,
        async_op: bool = False,
        timeout_s: float | None = None,
        deterministic: bool = False,
        algorithm: str | Algorithm = "auto",
        codec: str | Codec | None = None,
        nonfinite: str | NonFinite = "ignore",
    ) -> Outcome | Work:
        """Reduces `array` over the members, as a step of its own whose name is its descriptor.

        Arguments and errors are as in `Step.all_reduce` and `step`.

        Returns:
            The Outcome; with `async_op` a Work, and the array is borrowed until that is done.

        Cost: sends 2(n-1)/n of the array's bytes per peer, n = world size, with a codec of
        `codec.wire_bytes(count)`; no coordinator round trip.
        """
        session = self._session
        session.check()
        with session.told_if_refused("all_reduce"):
            limit_s = self._timeout(timeout_s)
            work = check_all_reduce(
                array, op, weight, out, deterministic, algorithm, codec, nonfinite
            )
            session.check_free(work.source, work.target)
        ticket = session.begin(str(work.descriptor), limit_s)
        try:
            post_all_reduce(ticket, work, 0, last=True)
            if async_op:
                return Work(ticket, array if out is None else out)
            return ticket.finish()
        except PcclError as error:
            if not ticket.sealed:  # begun, but never to be completed by this peer
                session.leave_after(error)
            raise
        except BaseException as error:
            session.leave_after(error)
            raise

    def _run(self, make: partial[Request], async_op: bool, timeout_s: float | None) -> Work:
        session = self._session
        session.check()
        with session.told_if_refused(make.func.__name__):
            limit_s = self._timeout(timeout_s)
            request = make()
        ticket = session.begin(request.name, limit_s)
        try:
            try:
                placed = request.place(ticket.seat)
                session.check_free(placed.source, placed.target)
                ticket.post_collective(placed, 0, last=True)
            except (UsageError, ValueError, MemoryError):
                end_empty(ticket)
                raise
            work = Work(ticket, placed.result)
            if not async_op:
                work.wait()
            return work
        except PcclError as error:
            if not ticket.sealed:
                session.leave_after(error)
            raise
        except BaseException as error:
            session.leave_after(error)
            raise

    def _transfer(
        self, array: Any, peer: int | bytes, tag: int, sends: bool, timeout_s: float | None
    ) -> Transfer:
        self._session.check()
        return post(self._session, array, peer, tag, sends, self._timeout(timeout_s))

    # ---- shared state

    @property
    def state(self) -> SharedState:
        """The state given to `connect` or to the first `sync`.  Raises UsageError if none was."""
        keeper = self._session.keeper
        if not isinstance(keeper, StateKeeper) or keeper.lent:
            raise UsageError("there is no shared state; pass connect(..., state=)")
        return keeper.state

    def sync(
        self,
        state: SharedState | None = None,
        strategy: Literal["popular", "send_only", "receive_only"] = "popular",
        *,
        timeout_s: float | None = None,
    ) -> SyncResult:
        """Brings all members to one state; a collective call, made by all at the same place.

        Every member hashes its memory anew, so a copy that was silently changed is found, repaired
        from the others and named in the result and in the log.

        Args:
            state: None for the one given before.  One communicator has one state.
            strategy: "popular": the newest revision's content that most hold counts, ties go to
                the lowest rank.  "send_only": this one counts.  "receive_only": the others do.
            timeout_s: for all of it; None takes the communicator's default.

        Returns:
            A SyncResult; what it says of members is alike on all of them.

        Raises:
            UsageError: keys, shapes or dtypes are not the others' (named: the first difference;
                this process has left the run, and the others go on); nobody may give; or senders
                differ.  Nothing was written.
            StepFailed: this process could not be given what others were, or holds a newer state
                than they go on from and nobody could fetch it: it has left the run, and the others
                go on.  Or nobody is left who could give one: on all; what has come is in memory.
            DeadlineExceeded: likewise, for time.

        Cost: a pass over the state at memory speed, two small steps, and the pieces that differ.
        """
        session = self._session
        session.check()
        wanted = Strategy.named(strategy)
        keeper = keeper_of(session, state)
        return keeper.sync(wanted, self._timeout(timeout_s))

    # ---- the end

    def leave(self, deadline_s: float = 30.0, reason: str = "") -> None:
        """Asks to leave the run without a step being aborted; returns at once.

        Go on as before: at the step from which the others run without this peer, `step()` (or a
        stand-alone operation) raises Left, by which a `with pccl.connect(...)` block ends quietly.
        All earlier steps are done then.  If that cannot be planned within `deadline_s`, this peer
        is taken out at once, as by `close`.  May be called from any thread, and from a signal
        handler.
        """
        session = self._session
        session.check()
        if not 0 <= deadline_s <= DRAIN_S_MAX:
            raise UsageError(f"deadline_s must be within 0 to {DRAIN_S_MAX:g}, not {deadline_s!r}")
        session.leave(float(deadline_s), str(reason)[:TEXT_CHARACTERS_MAX])

    @property
    def leaving(self) -> bool:
        """Says whether this peer has asked to leave."""
        return self._session.engine.leaving

    def close(self) -> None:
        """Leaves the run at once; idempotent, bounded (about 3 s), also after errors."""
        self._finalizer.detach()
        self._session.close()

    def _timeout(self, timeout_s: float | None) -> float:
        return (
            self._session.step_timeout_s
            if timeout_s is None
            else check_seconds("timeout_s", timeout_s)
        )
