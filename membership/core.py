"""The coordinator's state and the few verbs all its parts share.

The parts (admission, liveness, links, flushes, joins) do not call each other, but that admission
asks whether a peer may be alive.  Each turns its events into changes of this state and is asked,
after every event, what now follows from it; so the order of arrival does not matter and nothing
depends on an edge that was missed.

Invariants: an incarnation is in `peers` exactly while it is admitted; `view` and `activation` are
never ahead of the record that was last emitted; an epoch, once named, is never named again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pccl.base.config import LAN, TimeProfile
from pccl.membership.events import Close, Effect, Log, Lost, Persist, Send, SendNative
from pccl.membership.flaps import Flaps
from pccl.membership.messages import (
    MEMBERS_MAX,
    ORDERS,
    TEXT_CHARACTERS_MAX,
    Activate,
    CoordinatorMessageBody,
    Evicted,
    Excluded,
    Install,
    Underflow,
)
from pccl.membership.misfits import Accusation
from pccl.membership.peer import Connection as Connection
from pccl.membership.peer import Peer as Peer
from pccl.membership.peer import name as name
from pccl.membership.peer import native_text as native_text
from pccl.membership.record import (
    ANY_NAME,
    NO_NOTE,
    Activation,
    CarriedDecision,
    InstallNote,
    Record,
)
from pccl.membership.view import View
from pccl.transport.native_frames import EvictedFrame, Flush, Frame, SuspectCode

EPOCHS_RESERVED = 64  # epochs named per durable write at most; a restart skips what was not used
LONG_PAUSE_S = 5.0  # every connection may have been given up, and be dialled again seconds later
ACCUSATIONS_MAX = 256  # per flush; each survivor sends one or two


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorConfig:
    """Durations and limits; the defaults are the LAN profile."""

    run_id: bytes | None = None  # None: drawn at the first start
    min_world: int = 0  # 0: the first peers decide, else 1
    on_underflow: int = 0  # an Underflow; 0: the first peers decide, else WAIT
    straggler_s: float = 0.0  # 0: likewise; < 0 waits, > 0 excludes after so long
    profile: TimeProfile = LAN
    auto_profile: bool = False  # members' round trips may choose another one
    hold_timeout_s: float = 1.0  # members hold their next step that long for a joiner at most
    leave_report_s: float = 1.0  # a leaving peer answers that long
    detached_grace_s: float = 30.0  # a peer without its member agent can install no view
    warm_after_s: float = 1.0  # a learner that is not at an entry by then gets its links
    plan_backoff_s: float = 1.0  # before a joiner whose links failed is tried again; doubles
    plan_backoff_max_s: float = 30.0
    flap_first_s: float = 5.0  # before a peer that was lost twice comes in again; doubles
    flap_max_s: float = 600.0
    link_settle_s: float = 1.0  # links may take this long to come up after an install
    strike_window_s: float = 30.0
    watch_first_s: float = 60.0  # a link that broke is not trusted for this long; doubles
    watch_max_s: float = 1800.0
    mass_loss_grace_s: float = 30.0  # a view loses most of its members by silence only after it
    abandon_after_s: float | None = None  # newcomers wait that long for unheard members
    admitted_max: int = 1024
    unproven_max: int = 256  # admitted by a hello alone; a real peer's engine comes in milliseconds
    unproven_per_host_max: int = 64
    began_anew: bool = False  # no journal knew of a run: members of another may have lost theirs

    def __post_init__(self) -> None:
        assert 0 <= self.min_world <= self.admitted_max <= MEMBERS_MAX
        assert 0 <= self.on_underflow <= max(Underflow)


@dataclass(slots=True)
class Counters:
    views: int = 0
    flushes: int = 0
    joins: int = 0
    leaves: int = 0
    exclusions: int = 0
    evictions: int = 0
    refused: int = 0
    dropped_frames: int = 0


@dataclass(slots=True)
class Core:
    """The shared state.  Lists and dicts are in insertion order, so a run is deterministic."""

    config: CoordinatorConfig
    generation: int
    token_bytes: Callable[[int], bytes]
    started_s: float
    run_id: bytes = b""
    lineage: int = 1
    min_world: int = 0
    on_underflow: int = 0  # 0: nobody had an opinion yet (rules.py)
    straggler_s: float = 0.0  # likewise
    incarnations: int = 0
    epoch_high: int = 0
    epochs_reserved: int = 0
    flushing: bool = False
    adopted: bool = False  # as in the record
    view: View | None = None
    history: tuple[View, ...] = ()
    activation: Activation | None = None
    note: InstallNote = NO_NOTE
    carried: tuple[CarriedDecision, ...] = ()
    flaps: Flaps = field(init=False)
    apart: frozenset[tuple[int, int]] = frozenset()  # pairs that rings should keep apart
    now_s: float = 0.0  # of the event at hand
    installed_s: float = 0.0  # when the newest view was sent out
    peers: dict[int, Peer] = field(default_factory=dict)
    conns: dict[int, Connection] = field(default_factory=dict)
    abandoned: dict[int, str] = field(default_factory=dict)  # members of a view given up: why
    flush_reasons: list[str] = field(default_factory=list)
    accusations: list[Accusation] = field(default_factory=list)
    unwritten: bool = False  # an engine has come that the last record does not know of
    witnesses_due: set[int] = field(default_factory=set)  # who may still show that it is old
    outdated: str = ""  # why this journal is older than the run: nothing is decided any more
    counters: Counters = field(default_factory=Counters)
    effects: list[Effect] = field(default_factory=list)
    tokens: int = 0

    def __post_init__(self) -> None:
        self.flaps = Flaps(self.config.flap_first_s, self.config.flap_max_s)

    def back_by_s(self, pause_s: float) -> float:
        """Returns until when peers may come back after a pause as long as a restart, else 0.0."""
        return self.now_s + self.config.profile.reattach_window_s if pause_s > LONG_PAUSE_S else 0.0

    def send(self, peer: Peer, msg: CoordinatorMessageBody) -> None:
        """Sends to the member agent if it is connected; a level to be told again is never lost."""
        if peer.agent is not None and not (self.witnesses_due and isinstance(msg, ORDERS)):
            self.effects.append(Send(peer.agent, msg))

    def send_native(self, peer: Peer, frame: Frame) -> None:
        if peer.native is not None and not (self.witnesses_due and isinstance(frame, Flush)):
            self.effects.append(SendNative(peer.native, frame))

    def log(self, level: str, text: str) -> None:
        assert level in ("debug", "info", "warning", "error")
        self.effects.append(Log(level, text))  # type: ignore[arg-type]  # checked above

    def persist(self) -> None:
        self.epochs_reserved = max(self.epochs_reserved, self.epoch_high + EPOCHS_RESERVED)
        self.tokens, self.unwritten = self.tokens + 1, False
        self.effects.append(Persist(self.tokens, self.record()))

    def record(self) -> Record:
        return Record(
            run_id=self.run_id,
            lineage=self.lineage,
            generation=self.generation,
            min_world=self.min_world,
            incarnations=self.incarnations,
            epochs_reserved=self.epochs_reserved,
            # Also one that is about to begin: its reason may be gone from the rest of the record.
            flushing=self.flushing or (bool(self.flush_reasons) and self.view is not None),
            view=self.view,
            history=self.history,
            activation=self.activation,
            note=self.note,
            carried=self.carried,
            peers=tuple(p.admitted() for p in self.peers.values()),
            on_underflow=self.on_underflow,
            straggler_s=self.straggler_s,
            adopted=self.adopted,
        )

    def new_epoch(self) -> int:
        """Names an epoch nobody has heard of, also if this coordinator crashes right now."""
        self.epoch_high += 1
        if self.epoch_high > self.epochs_reserved:
            self.persist()
        return self.epoch_high

    def effective_min_world(self) -> int:
        return max(1, self.min_world)

    def underflow(self) -> Underflow:
        """Returns what becomes of steps below `min_world`."""
        return Underflow(self.on_underflow) if self.on_underflow else Underflow.WAIT

    def floor(self) -> int:
        """Returns how many members a view must have for steps to run in it, but for the first."""
        return 1 if self.underflow() is Underflow.ALONE else self.effective_min_world()

    def is_short(self, view: View) -> bool:
        """Says whether a view has too few members for steps to run."""
        return len(view.members) < self.floor()

    def straggler_after_s(self) -> float | None:
        """Returns how long members wait for a straggler; None: as long as it takes."""
        return self.straggler_s if self.straggler_s > 0 else None

    def current(self) -> View | None:
        """Returns the newest view that has members running in it (or about to, all agreed)."""
        if self.activation is not None and self.activation.resolved:
            return self.activation.view
        return self.view

    def epoch(self) -> int:
        view = self.current()
        return 0 if view is None else view.epoch

    def is_member(self, incarnation: int) -> bool:
        view = self.current()
        return view is not None and incarnation in view

    def members(self) -> list[Peer]:
        """Returns the members in rank order.  All are in `peers` until a view excludes them."""
        view = self.current()
        return [] if view is None else [self.peers[i] for i in view.incarnations()]

    def learners(self) -> list[Peer]:
        return [p for i, p in self.peers.items() if not self.is_member(i)]

    def joiners(self) -> tuple[int, ...]:
        """Returns who enters with the activation."""
        if self.activation is None or self.view is None:
            return ()
        old = set(self.view.incarnations())
        return tuple(i for i in self.activation.view.incarnations() if i not in old)

    def leavers(self) -> tuple[int, ...]:
        """Returns the members that the activated view is without."""
        if self.activation is None or self.view is None:
            return ()
        new = set(self.activation.view.incarnations())
        return tuple(i for i in self.view.incarnations() if i not in new)

    def is_leaver(self, incarnation: int) -> bool:
        if self.activation is None or self.view is None:
            return False
        return incarnation in self.view and incarnation not in self.activation.view

    def is_drained(self, leaver: Peer) -> bool:
        """Says whether nobody needs this leaver any more: all others that are still here have
        decided every step in which it takes part."""
        entering = self.activation
        if entering is None or not self.is_leaver(leaver.incarnation):
            return False
        if not entering.view.members and leaver.here() and leaver.watermark < entering.step:
            return False  # where all leave, each is there for itself to the end
        others = [p for p in self.members() if p is not leaver and p.here()]
        return all(p.watermark >= entering.step for p in others)

    def send_view(self, peer: Peer) -> None:
        """Tells a member what it has not installed yet: a view in force, or how to enter one."""
        view, entering = self.view, self.activation
        assert view is not None
        old = peer.incarnation in view
        if old and peer.epoch < view.epoch:
            self.send(peer, self.install_message(view, self.note))
        if entering is None:
            return
        unnamed = entering.name == ANY_NAME
        if old and (peer.epoch < entering.view.epoch or not (entering.resolved or unnamed)):
            # Members enter it by themselves; an Install before would cut their open steps short.
            # Who has entered already answers with Switched again.
            self.send(peer, self.activate_message(entering))
        elif entering.resolved and peer.epoch < entering.view.epoch:
            self.send_entered(peer)

    def send_entered(self, peer: Peer) -> None:
        """Tells a joiner, or a member that has entered, the activated view with all its steps."""
        assert self.activation is not None and self.activation.resolved
        note = InstallNote(False, self.note.committed_below, (), ())
        self.send(peer, self.install_message(self.activation.view, note))

    def send_excluded(self, peer: Peer) -> None:
        """Tells a peer that it was left out of a view and stays admitted, until it knows."""
        if peer.epoch < peer.excluded_epoch and not self.is_member(peer.incarnation):
            text = peer.excluded_text[:TEXT_CHARACTERS_MAX] or "the others went on without it"
            code = SuspectCode.DESCRIPTOR if peer.unfit else SuspectCode.EXCLUDED
            self.send(peer, Excluded(self.generation, peer.excluded_epoch, text, int(code)))

    def activate_message(self, entering: Activation) -> Activate:
        return Activate(
            generation=self.generation,
            epoch=entering.view.epoch,
            members=entering.view.infos(),
            step=entering.step,
            name=entering.name,
            paused=self.is_short(entering.view),
            raises=self.is_short(entering.view) and self.underflow() is Underflow.RAISE,
        )

    def install_message(self, view: View, note: InstallNote) -> Install:
        return Install(
            generation=self.generation,
            epoch=view.epoch,
            members=view.infos(),
            paused=note.paused,
            committed_below=note.committed_below,
            decisions=note.decisions,
            lost=note.lost,
            raises=note.raises,
        )

    def forget_run(self) -> None:
        """No member is left: the next first view begins another lineage."""
        self.view, self.history, self.activation, self.note = None, (), None, NO_NOTE
        self.carried = ()
        self.lineage += 1

    def expel(self, peer: Peer, text: str) -> None:
        """Takes away the admission of a peer that is in no view, and tells it."""
        assert not self.is_member(peer.incarnation)
        self.peers.pop(peer.incarnation)
        self.farewell(peer, text)

    def farewell(self, peer: Peer, text: str) -> None:
        """Tells a peer on every connection it has that its incarnation is over."""
        assert peer.incarnation not in self.peers or self.is_leaver(peer.incarnation)
        text = text[:TEXT_CHARACTERS_MAX]
        if peer.agent is not None:
            self.effects += [Send(peer.agent, Evicted(self.generation, text)), Close(peer.agent)]
            self.conns.pop(peer.agent, None)
        if peer.native is not None:
            frame = EvictedFrame(self.generation, native_text(text))
            self.effects += [SendNative(peer.native, frame), Close(peer.native)]
            self.conns.pop(peer.native, None)
        peer.agent = peer.native = None
        peer.gone = peer.gone or text

    def dismiss(self, leaver: Peer, text: str) -> None:
        """Lets a leaver go that is not needed any more; it is a member until all have switched."""
        assert self.is_drained(leaver)
        self.log("info", f"peer {name(leaver)}: {text}")
        leaver.leaving_s = self.now_s
        self.farewell(leaver, text)

    def lose(self, peer: Peer, text: str) -> None:
        """Notes that a peer will not come back: a member costs a flush, a learner nothing, and a
        leaver only if it is still needed."""
        if peer.gone is not None:
            return
        peer.gone = text
        self.effects.append(Lost(peer.peer_id, text))
        self.log("warning", f"peer {name(peer)} is lost: {text}")
        if self.is_leaver(peer.incarnation):
            peer.lost_s = self.now_s  # it may not be needed any more
        elif self.is_member(peer.incarnation):
            self.want_flush(f"{name(peer)}: {text}")
        elif self.activation is not None and peer.incarnation in self.activation.view:
            self.want_flush(f"joiner {name(peer)}: {text}")
            self.expel(peer, text)
        else:
            self.expel(peer, text)

    def exclude(self, peer: Peer, reason: str) -> bool:
        """Asks that the next view is without this straggler; it stays admitted, as a learner.

        Returns False, and does nothing, if the members left would be too few to run a step.
        """
        if not self.is_member(peer.incarnation) or not peer.present():
            return False
        staying = [p for p in self.members() if p.present() and p.drain_cut_s is None]
        if sum(p is not peer for p in staying) < self.floor() or self.flushing:
            return False
        if peer.drain_cut_s is not None:
            peer.leaving_s = self.now_s  # it wants to go anyway
        else:
            peer.excluding, peer.unfit = reason, False
        self.log("warning", f"peer {name(peer)} is excluded: {reason}")
        self.want_flush(f"{name(peer)}: {reason}")
        return True

    def turn_back(self, incarnations: Iterable[int]) -> str:
        """Keeps plans away from newcomers whose entry the members do not come to; says why."""
        first_s, most_s = self.config.plan_backoff_s, self.config.plan_backoff_max_s
        peers = [self.peers[i] for i in incarnations if i in self.peers]
        told = [f"{name(p)} {p.turn_back(self.now_s, first_s, most_s)}" for p in peers]
        return "; ".join(told[:8])

    def became_members(self, incarnations: Iterable[int]) -> None:
        """Notes who has just come into a view."""
        for incarnation in incarnations:
            peer = self.peers[incarnation]
            peer.entry, peer.plan_backoff_s, peer.member_since_s = None, 0.0, self.now_s
            peer.planned_s = peer.entry_retry_s = peer.entry_backoff_s = 0.0
            peer.watermark = 0  # it may have been a member before, of a run that is over

    def want_flush(self, reason: str) -> None:
        if len(self.flush_reasons) < ACCUSATIONS_MAX:
            self.flush_reasons.append(reason)
