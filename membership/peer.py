"""What the coordinator knows of one peer and of one connection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self, assert_never

from pccl.membership.messages import TEXT_CHARACTERS_MAX, CarriedBy, Testimony, WaitFor
from pccl.membership.record import AdmittedPeer
from pccl.membership.view import Member
from pccl.transport.native_frames import NO_STEP, WaitOn

ENGINE_DUE_S: Final = 3.0
"""A newcomer whose engine is not there by then makes room in a crowd, and nobody waits for it."""

BEATS_LATE_MAX: Final = 3
"""Heartbeats; who is later than that is not heard, and may be gone."""


@dataclass(slots=True)
class Peer:
    """What the coordinator knows of one admitted peer."""

    peer_id: bytes
    incarnation: int
    secret: bytes
    host: str
    port: int
    host_key: int
    hostname: str
    pid: int
    last_beat_s: float
    came_from: str = ""  # the literal address of its first connection, whatever it says of itself
    agent: int | None = None  # connections
    native: int | None = None
    was_native: bool = False  # its control thread has been here
    is_witness: bool = False  # a member of the journal that was opened: may say that it is old
    epoch: int = 0  # in force at the peer, as far as it has said
    watermark: int = 0
    next_step: int = 0
    waiting: int = 0
    lag_ms: int = 0
    rtt_us: int = 0  # 0: not known yet
    progress: int = 0
    step: int = NO_STEP  # its oldest open one
    waits: tuple[WaitOn, ...] = ()  # whom that step waits for
    moved_s: float = 0.0  # when step, progress or watermark last changed
    down: tuple[bytes, ...] = ()
    relayed: tuple[bytes, ...] = ()
    group: int = 0
    seat: int = 0
    asked: tuple[int, int, float] = (0, 0, 0.0)  # min_world, on_underflow, straggler_s; 0: any
    entry: str | None = None  # waits at an entry of this name
    entry_since_s: float = 0.0
    entry_seen_s: float = 0.0
    wait_for: int = 0
    carried_by: str = ""  # what UCX moves its lanes' bytes by; no UCX: empty
    told_world: bool = False  # since its native connection has been there
    told_why: str = ""  # it is not let in
    gone: str | None = None  # dead, evicted: why; it cannot come back
    leaving_s: float | None = None  # since when it is on its way out, by the next flush
    drain_cut_s: float | None = None  # it asked to be planned out; until then there is time for it
    goodbye_s: float | None = None  # since when a leaver has only waited to be let go
    lost_s: float | None = None  # when a leaver was lost, while it is not known if it is needed
    member_since_s: float = 0.0
    out: bool = False  # a planned view without it is in force
    excluding: str | None = None  # why the next view is to be without it, though it stays admitted
    excluded_epoch: int = 0  # of the view that it was left out of though it stayed admitted
    excluded_text: str = ""
    unfit: bool = False  # it is, or was last, left out since what it called fitted nobody
    silent: bool = False  # its lease has ended, but it may come back until a view excludes it
    admitted_s: float = 0.0
    warm_epoch: int = 0  # of the view to whose members all its links are up
    plan_retry_s: float = 0.0
    plan_backoff_s: float = 0.0
    planned_s: float = 0.0  # when the newest plan to let it in began
    entry_retry_s: float = 0.0  # no plan for its entry before: the members do not come there
    entry_backoff_s: float = 0.0
    turned_back_s: float = 0.0  # when it was last: the members did not come to its entry
    turned_back_at: str = ""  # and which one that was
    resent_s: float = -1e9

    def note(self, said: WaitFor | CarriedBy | Testimony) -> None:
        """Keeps what a peer says of itself and nothing follows from at once."""
        match said:
            case WaitFor(world_size):
                self.wait_for = world_size
            case CarriedBy(transports):
                self.carried_by = transports
            case Testimony():
                pass  # nobody asked
            case _:
                assert_never(said)

    def present(self) -> bool:
        """Says whether new views may count on it."""
        return self.gone is None and self.leaving_s is None and self.excluding is None

    def here(self) -> bool:
        """Says whether it still takes part in the steps it has begun."""
        return self.gone is None and self.leaving_s is None

    def comes_to(self, entry: str, now_s: float) -> None:
        """Its program waits at an entry; another one than before is another chance, half as long
        after the last: what comes to ever other entries must not keep the members busy."""
        if self.entry != entry:
            self.entry, self.entry_since_s = entry, now_s
            half_s = self.turned_back_s + self.entry_backoff_s / 2
            self.entry_retry_s = min(self.entry_retry_s, half_s)
        self.entry_seen_s = now_s

    def turn_back(self, now_s: float, first_s: float, most_s: float) -> str:
        """The members do not come to its entry: no plan for it for a while, so that others get
        their turn.  Returns what is to be told."""
        self.entry_backoff_s = min(max(first_s, 2 * self.entry_backoff_s), most_s)
        self.entry_retry_s = now_s + self.entry_backoff_s
        self.turned_back_s, self.turned_back_at = now_s, self.entry or ""
        return self.misfit() or ""

    def misfit(self) -> str | None:
        """Says why it is not let in, if that is for the entry at which it waits."""
        if self.entry is None or self.entry_backoff_s == 0.0:
            return None
        after = "" if self.entry == self.turned_back_at else f" after '{self.turned_back_at}'"
        return f"waits at '{self.entry}'{after}, which no member has begun lately"

    def member(self, first_step: int) -> Member:
        return Member(
            peer_id=self.peer_id,
            incarnation=self.incarnation,
            secret=self.secret,
            host=self.host,
            port=self.port,
            host_key=self.host_key,
            first_step=first_step,
            group=self.group,
            seat=self.seat,
        )

    def admitted(self) -> AdmittedPeer:
        """Returns what outlives a coordinator of it."""
        return AdmittedPeer(
            peer_id=self.peer_id,
            incarnation=self.incarnation,
            secret=self.secret,
            host=self.host,
            port=self.port,
            host_key=self.host_key,
            hostname=self.hostname,
            pid=self.pid,
            group=self.group,
            seat=self.seat,
            excluded_epoch=self.excluded_epoch,
            was_native=self.was_native,
            min_world=self.asked[0],
            on_underflow=self.asked[1],
            straggler_s=self.asked[2],
        )

    @classmethod
    def restored(cls, saved: AdmittedPeer, now_s: float, *, is_witness: bool) -> Self:
        """The other way round: makes a peer of what `admitted` has kept of it."""
        return cls(
            peer_id=saved.peer_id,
            incarnation=saved.incarnation,
            secret=saved.secret,
            host=saved.host,
            port=saved.port,
            host_key=saved.host_key,
            hostname=saved.hostname,
            pid=saved.pid,
            group=saved.group,
            seat=saved.seat,
            excluded_epoch=saved.excluded_epoch,
            last_beat_s=now_s,
            admitted_s=now_s,
            member_since_s=now_s,
            was_native=saved.was_native,
            asked=(saved.min_world, saved.on_underflow, saved.straggler_s),
            is_witness=is_witness,
        )


@dataclass(slots=True)
class Connection:
    """One open connection; it belongs to nobody until its first frame."""

    host: str
    incarnation: int | None = None
    native: bool = False


def proven(peers: Mapping[int, Peer]) -> list[Peer]:
    """Returns those whose engine has been here: anybody can say hello."""
    return [peer for peer in peers.values() if peer.was_native]


def name(peer: Peer) -> str:
    """Names a peer for people: the first digits of its id, and its incarnation."""
    return f"{peer.peer_id.hex()[:8]}.{peer.incarnation}"


def native_text(text: str) -> str:
    """Shortens a text to what fits into a native frame."""
    return text.encode()[:TEXT_CHARACTERS_MAX].decode(errors="ignore")
