"""The communicator of an elastic group, made anew when this process was put out of the run.

    ALONE --first meeting--> IN --evicted, coordinator lost--> OUT --rejoin--> IN, unsynced
      │                       └── close ──> OVER
      └ rank 0 of 1, everything local: models are built, wrapped and loaded here

Invariant: rank, size and members are those of the latest roster, which all members know alike; they
change inside `meet` and after a committed step, never between `begin` and `commit`.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pccl.base.clock import Deadline
from pccl.base.errors import ConnectError, PcclError
from pccl.collectives.placed import Seat
from pccl.communicator import Communicator
from pccl.connecting import connect
from pccl.outcome import Peer
from pccl.pytorch.elastic.transaction import Transaction
from pccl.pytorch.errors import Aborted, PcclDistError, PeerLost, kind_of
from pccl.pytorch.issue import Issuer
from pccl.pytorch.options import Options
from pccl.pytorch.run import Place, Run
from pccl.pytorch.wording import by_ranks

RETRY_S = 0.5  # between attempts to come in again


@dataclass(frozen=True, slots=True)
class Joining:
    """How this process comes in, again and again."""

    addresses: str
    job: str
    least: int
    most: int
    start: int
    options: Options
    timeout_s: float

    @property
    def entry(self) -> str:
        """Where members and joiners meet."""
        return f"torch job {self.job}"

    def connect(self, timeout_s: float) -> Communicator:
        """Raises PcclError, within `timeout_s`."""
        options = self.options
        options.require_secured_if_demanded()
        return connect(
            self.addresses,
            ticket=options.ticket,
            min_world=self.least,
            on_underflow="raise",  # the group waits by itself, where joiners can come in
            straggler=options.straggler_s or "wait",
            peer_group=options.peer_group,
            drain_on_sigterm_s=options.drain_on_sigterm_s,
            timeout_s=timeout_s,
            listen=None if options.host is None else f"{options.host}:0",
            lanes=options.lanes,
            insecure=bool(options.insecure),
            step_timeout_s=self.timeout_s,
            coordinator_grace_s=options.coordinator_grace_s,
        )


class ElasticRun(Run):
    """Made by `bootstrap`.  Its methods may be called from any thread."""

    def __init__(self, joining: Joining, group_id: str, timeout_s: float) -> None:
        self.joining = joining
        super().__init__(Place(0, 1, group_id), joining.connect(timeout_s), joining.options, None)
        self._members = (self.communicator.peer_id,)
        self.alone = True
        self._apart = 0
        self.synced = False
        self.must_meet = True  # before the next step, since this is the first or somebody was lost
        self.replicas: dict[Peer, bytes] = {}  # of whom which peer is a part
        self.compared: tuple[Peer, ...] = ()  # whose states were compared last
        self.transaction: Transaction | None = None

    # ---- who is in

    @property
    def members(self) -> tuple[Peer, ...]:
        """The members of this group, in rank order, as all of them know them."""
        return self._members

    def frame(self, members: Sequence[Peer]) -> None:
        """Takes over a roster that all members know."""
        self._members = tuple(members)
        me = self.communicator.peer_id
        self.place = Place(self._members.index(me), len(self._members), self.place.group_id)
        self.seat = Seat(self.place.rank, self.place.size, bytes(me))
        self.alone = False

    @property
    def local(self) -> bool:
        """Says whether collectives concern this process only."""
        return self.alone or self._apart > 0

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Within it this process is rank 0 of 1.  Not while a training step is open."""
        place, seat = self.place, self.seat
        self._apart += 1
        self.place, self.seat = Place(0, 1, place.group_id), Seat(0, 1, seat.peer_id)
        try:
            yield
        finally:
            for queue in self.queues:  # what was called in here is launched in here
                queue.drain(self.joining.timeout_s)
            self.place, self.seat = place, seat
            self._apart -= 1

    @property
    def someone_waits(self) -> bool:
        """Says whether a newcomer is known here that is no member yet."""
        world = self.communicator.session.agent.standing.world
        return world is not None and world.admitted > world.members

    def replicas_digest(self) -> int:
        """Returns a number that is the same where the members are parts of the same replicas."""
        names = sorted(self.replicas.get(member, bytes(member)) for member in self._members)
        return int.from_bytes(hashlib.blake2b(b"".join(names), digest_size=7).digest(), "little")

    # ---- out and in again

    def leave_at_once(self, reason: str) -> None:
        """Is no member any more, so that nobody waits for this process."""
        self.communicator.session.close(reason)

    @property
    def out(self) -> bool:
        return self.communicator.closed

    def come_in_again(self, deadline: Deadline) -> None:
        """Connects anew, without any state.  Raises PcclDistError if that fails in time."""
        self.check("begin")
        self.communicator.close()
        while True:
            try:
                communicator = self.joining.connect(max(deadline.remaining_s(), 0.001))
                break
            except ConnectError as error:
                if deadline.remaining_s() <= RETRY_S:
                    raise self.translate(error, "begin") from error
                threading.Event().wait(RETRY_S)
        with self._lock:
            over = self._over
            if over is None:
                self.communicator = communicator
                self._issuer = Issuer(communicator.session)
        if over is not None:
            communicator.close()
            self.check("begin")
        self.synced = False

    # ---- errors

    def refuse(self, op: str, timeout_s: float) -> None:
        """As for a static group; a member that is by itself has nobody to tell."""
        if not self.local:
            super().refuse(op, timeout_s)

    def refuse_message(self, sends: bool, other: int | None, tag: int, timeout_s: float) -> None:
        if not self.local:
            super().refuse_message(sends, other, tag, timeout_s)

    def check(self, op: str) -> None:
        over = self._over
        if over is not None:
            raise Aborted(over.reason, op=op)

    def translate(self, error: BaseException, op: str) -> PcclDistError:
        """As for a static group, but no loss is the end."""
        if isinstance(error, PcclDistError):
            self._note(error)
            return error
        over = self._over
        if over is not None:
            return Aborted(over.reason, op=op)
        text = by_ranks(str(error), self._members)
        said = kind_of(error)(text, op=op, epoch=self._epoch())
        self._note(said)
        return said

    def _lost(
        self, kind: type[PcclDistError], error: BaseException | str, op: str
    ) -> PcclDistError:
        why = by_ranks(str(error), self._members)
        return kind(f"{why}; the next begin mends the view", op=op, epoch=self._epoch())

    def _end(self, said: PcclDistError) -> None:
        self._note(said)

    def _note(self, error: PcclDistError) -> None:
        """An operation ends alike on all members; after a loss all meet before the next step."""
        if isinstance(error, PeerLost):
            self.must_meet = True

    def absorb(self, error: BaseException, op: str) -> PcclDistError | None:
        """Inside a training step errors wait for the commit, which then fails on all members."""
        transaction = self.transaction
        if transaction is None or self._over is not None:
            return self.translate(error, op)
        transaction.note(error, op)
        return None

    def close(self, reason: str, *, drain_s: float = 2.0) -> None:
        with contextlib.suppress(PcclError):
            super().close(reason, drain_s=0.0 if self.transaction is not None else drain_s)
