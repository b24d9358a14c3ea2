"""The coordinator: decides who is in, from which step on, and what became of open steps.

A machine without I/O.  It routes each event to the part that owns it and then lets every part draw
its conclusions, always in the same order: liveness, departures, flushes, plans, and who needs to
be told.

The shell calls `handle` for each event and `on_deadline` once `deadline_s` has come, and carries
out the returned effects in order.  Its two duties are in `events`.  It also reports an undecodable
first frame with `dropped_frame`, for the count; the connection is its own to close.

Invariants: docs/PROTOCOL.md, "Membership".  Same events, same dice: same effects.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import assert_never

from pccl.membership import rules
from pccl.membership.accusing import accused
from pccl.membership.admission import NOT_IN_THE_RUN, Admission
from pccl.membership.core import Connection, CoordinatorConfig, Peer
from pccl.membership.decide import UnknownView
from pccl.membership.departures import Departures
from pccl.membership.events import (
    Close,
    ConnDown,
    ConnUp,
    Denied,
    Dialled,
    Effect,
    Event,
    NativeFrame,
    Paused,
    PeerMessage,
    Send,
    SendNative,
    Synced,
)
from pccl.membership.flushing import Flushing
from pccl.membership.links import Links
from pccl.membership.liveness import Liveness
from pccl.membership.messages import (
    AtEntry,
    CarriedBy,
    Drain,
    Hello,
    HoldFrom,
    Installed,
    Leaving,
    LinksFailed,
    LinksUp,
    PeerMessageBody,
    StatusReply,
    StatusRequest,
    Switched,
    Testimony,
    WaitFor,
)
from pccl.membership.news import News
from pccl.membership.outdated import Outdated
from pccl.membership.pace import Pace
from pccl.membership.planning import Planning
from pccl.membership.progress import Progress
from pccl.membership.record import Record
from pccl.membership.restore import restore
from pccl.membership.status import Parts, status_json
from pccl.transport.native_frames import (
    EvictedFrame,
    Frame,
    Heartbeat,
    NativeHello,
    Pong,
    Report,
    Suspect,
    SuspectCode,
)

RESEND_S = 1.0  # a level is told again at most this often, unless the peer re-attaches


class Coordinator:
    """One run's coordinator.

    Args:
        generation: of the store's opening.
        record: what the store held, or None for a new run.
        token_bytes: dice, for the run id and secrets.
        now_s: the clock at the start.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        *,
        generation: int,
        record: Record | None,
        token_bytes: Callable[[int], bytes],
        now_s: float,
    ) -> None:
        self._core = restore(config, generation, record, token_bytes, now_s)
        self._judged_s = now_s  # the time that conclusions were drawn for last
        self._outdated = Outdated(self._core)
        self._liveness = Liveness(self._core)
        self._admission = Admission(self._core, self._outdated, self._liveness)
        self._pace = Pace(self._core)
        self._progress = Progress(self._core)
        self._links = Links(self._core)
        self._flushing = Flushing(self._core)
        self._departures = Departures(self._core)
        self._planning = Planning(self._core)
        self._parts = Parts(self._flushing, self._planning, self._links, self._progress)
        self._news = News(self._core, self._flushing)
        if record is None:
            self._core.persist()  # the run id is told to peers

    @property
    def run_id(self) -> bytes:
        return self._core.run_id

    @property
    def outdated(self) -> str:
        """Why the journal is older than the run; "" while nobody has shown that it is."""
        return self._core.outdated

    @property
    def deadline_s(self) -> float | None:
        """When `on_deadline` must be called at the latest; None while nothing is awaited."""
        if self._core.outdated:
            return None
        parts = (self._outdated, self._progress, self._links, self._flushing, self._planning)
        times = [self._liveness.deadline_s(), self._departures.deadline_s()]
        times += [part.deadline_s for part in parts]
        return min((t for t in times if t is not None), default=None)

    @property
    def urgent(self) -> bool:
        """Says whether members wait for what is decided next, and nobody who is not here is needed
        for that: a dial may prove a death, or a flush hears members that are all connected."""
        core = self._core
        flush = core.flushing and all(p.native is not None or p.gone for p in core.members())
        return flush or self._liveness.dials_a_member()

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        """Takes one event; no deadline passes by it, only by `on_deadline`.

        Else, where the shell stood still for a moment, the first of several events that wait would
        let the time pass, and whoever sent the second would count as silent.
        """
        judged_s = now_s if isinstance(event, Paused) else self._before_deadline(now_s)
        self._core.now_s = now_s
        match event:
            case ConnUp(conn, host):
                self._core.conns[conn] = Connection(host)
            case ConnDown(conn):
                self._connection_down(conn, now_s)
            case PeerMessage(conn, msg):
                self._peer_message(conn, msg, now_s)
            case NativeFrame(conn, frame):
                self._native_frame(conn, frame, now_s)
            case Dialled():
                self._liveness.dialled(event, now_s)
            case Denied(peer_ids):
                self._departures.denied(peer_ids)
            case Paused(duration_s):
                parts = (self._liveness, self._departures, self._pace, self._progress)
                for part in (*parts, self._links, self._flushing, self._outdated):
                    part.paused(duration_s)
            case Synced():
                pass  # output commit makes durability the shell's matter
            case _:
                assert_never(event)
        return self._conclude(judged_s)

    def on_deadline(self, now_s: float) -> list[Effect]:
        self._core.now_s = now_s
        return self._conclude(now_s)

    def _before_deadline(self, now_s: float) -> float:
        deadline_s = self.deadline_s
        if deadline_s is None or now_s < deadline_s:
            return now_s
        return max(self._judged_s, math.nextafter(deadline_s, -math.inf))

    def status(self, now_s: float) -> bytes:
        """Returns what `pccl status` shows, a JSON document."""
        return status_json(self._core, self._parts, now_s)

    def dropped_frame(self) -> None:
        """Counts bytes that were no message."""
        self._core.counters.dropped_frames += 1

    def _conclude(self, now_s: float) -> list[Effect]:
        self._judged_s = now_s
        if not self._core.outdated:  # else nothing follows from anything
            try:
                self._judge(now_s)
            except UnknownView as error:
                self._outdated.decides_nothing(error)
        effects, self._core.effects = self._core.effects, []
        return effects

    def _judge(self, now_s: float) -> None:
        self._liveness.advance(now_s)
        if self._outdated.is_over(now_s):
            for peer in self._core.peers.values():
                self._flushing.repeat(peer)
            self._planning.tell_all()
        self._progress.advance(now_s)
        self._links.advance(now_s)
        self._departures.advance(now_s)
        rules.choose(self._core)  # who asked may be gone now
        self._flushing.advance(now_s)
        self._planning.advance(now_s)
        if self._core.flush_reasons and not self._core.flushing:  # a plan ends by a flush
            self._flushing.advance(now_s)
            self._planning.advance(now_s)
        self._news.tell_all()
        if self._core.unwritten:
            self._core.persist()  # last: nothing that is said now rests on it

    # -------------------------------------------------------------- connections

    def _connection_down(self, conn: int, now_s: float) -> None:
        connection = self._core.conns.pop(conn, None)
        if connection is None or connection.incarnation is None:
            return
        peer = self._core.peers.get(connection.incarnation)
        if peer is None:
            return
        if peer.agent == conn:
            peer.agent = None
        elif peer.native == conn:
            peer.native = None
        else:
            return
        self._liveness.connection_lost(peer, now_s)

    def _drop(self, conn: int, why: str) -> None:
        """Ends a connection whose owner broke the protocol; the owner's lease goes on."""
        core = self._core
        core.counters.dropped_frames += 1
        core.log("warning", f"connection {conn} closed: {why}")
        core.effects.append(Close(conn))

    # -------------------------------------------------------------- member agents

    def _peer_message(self, conn: int, msg: PeerMessageBody, now_s: float) -> None:
        core = self._core
        connection = core.conns.get(conn)
        if connection is None:
            return  # closed from this side; what was still under way has no effect
        if connection.native:
            self._drop(conn, "a member agent's message on a native connection")
            return
        if isinstance(msg, StatusRequest):
            core.effects.append(Send(conn, StatusReply(self.status(now_s))))
            return
        if isinstance(msg, Hello):
            if connection.incarnation not in (None, msg.incarnation):
                self._drop(conn, "a second hello for somebody else")
                return
            self._hello(conn, msg, now_s)
            return
        peer = core.peers.get(connection.incarnation or 0)
        if peer is None or peer.agent != conn:
            self._drop(conn, "a message before a hello")
            return
        self._agent_message(peer, msg, now_s)

    def _hello(self, conn: int, msg: Hello, now_s: float) -> None:
        peer = self._admission.hello(conn, msg, now_s)
        if peer is None:
            return
        if msg.incarnation == 0:
            self._liveness.admitted(peer, now_s)
        else:
            self._liveness.attached(peer)
            self._flushing.repeat(peer)
            self._planning.reattached(peer)
            peer.resent_s = now_s
        self._news.greet(peer)

    def _agent_message(self, peer: Peer, msg: PeerMessageBody, now_s: float) -> None:
        match msg:
            case AtEntry(entry, _):
                self._planning.at_entry(peer, entry, now_s)
                self._news.tell_why(peer, now_s)
                self._resend(peer, now_s)
            case LinksUp(epoch):
                self._planning.links_up(peer, epoch)
            case LinksFailed(epoch, peers):
                self._planning.links_failed(peer, epoch, peers, now_s)
            case HoldFrom(epoch, step, within):
                self._planning.hold_from(peer, epoch, step, within)
            case Switched(epoch, step):
                self._planning.switched(peer, epoch, step, now_s)
            case Installed(epoch):
                self._note_epoch(peer, epoch)
            case Leaving(reason, decided_below):
                self._departures.leaving(peer, reason, decided_below, now_s)
            case Drain(deadline_s, reason):
                self._departures.drain(peer, deadline_s, reason, now_s)
            case WaitFor() | CarriedBy() | Testimony():
                peer.note(msg)
            case Hello() | StatusRequest():
                raise AssertionError("handled before")
            case _:
                assert_never(msg)

    # -------------------------------------------------------------- native control threads

    def _native_frame(self, conn: int, frame: Frame, now_s: float) -> None:
        core = self._core
        connection = core.conns.get(conn)
        if connection is None:
            return
        if isinstance(frame, NativeHello):
            if connection.incarnation is not None:
                self._drop(conn, "a second hello")
                return
            attached = self._admission.native_hello(conn, frame, now_s)
            if attached is not None:
                self._liveness.beat(attached, now_s)
                self._liveness.attached(attached)
                self._flushing.repeat(attached)
                self._outdated.agrees(attached)
            return
        peer = core.peers.get(connection.incarnation or 0)
        if peer is None or peer.native != conn or peer.gone is not None:
            evicted = EvictedFrame(core.generation, NOT_IN_THE_RUN)
            core.effects.append(SendNative(conn, evicted))
            self._drop(conn, "a native frame of a peer that is not in the run")
            return
        self._liveness.beat(peer, now_s)
        match frame:
            case Heartbeat():
                self._heartbeat(peer, frame, now_s)
            case Report():
                self._reported(peer, frame, now_s)
            case Suspect():
                self._suspect(peer, frame, now_s)
            case _:
                self._drop(conn, f"a {type(frame).__name__} is for peers, not for coordinators")

    def _reported(self, peer: Peer, frame: Report, now_s: float) -> None:
        attempts = [step.epoch for step in frame.open if not step.waiting]
        sign = self._outdated.sign(frame.generation, max([frame.epoch, *attempts]))
        if sign:
            self._outdated.shown(peer, sign)
        else:
            self._flushing.reported(peer, frame, now_s)

    def _heartbeat(self, peer: Peer, frame: Heartbeat, now_s: float) -> None:
        core = self._core
        sign = self._outdated.sign(frame.generation, frame.epoch)
        if sign:
            self._outdated.shown(peer, sign)
            return
        self._progress.beat(peer, frame, now_s)
        self._pace.beat(now_s)
        peer.next_step, peer.down, peer.relayed = frame.next_step, frame.down, frame.relayed
        self._note_epoch(peer, frame.epoch)
        core.send_native(peer, Pong(self._outdated.shown_generation(), core.epoch()))
        self._flushing.repeat(peer)
        self._resend(peer, now_s)
        down = (*frame.down, *self._progress.blocked(peer))
        self._links.beat(peer, frame.epoch, down, frame.relayed, now_s)

    def _suspect(self, peer: Peer, frame: Suspect, now_s: float) -> None:
        core = self._core
        views = [] if core.view is None else [*core.history, core.view]
        views += [] if core.activation is None else [core.activation.view]
        if frame.epoch not in {v.epoch for v in views} or not core.is_member(peer.incarnation):
            return  # about a view that is over: its flush has answered already
        if frame.code == SuspectCode.LINK_DOWN:
            self._links.reported_down(peer, frame.epoch, frame.suspects, now_s)
        elif frame.code == SuspectCode.LOCAL:
            core.lose(peer, f"it gave up step {frame.step}: {frame.text}")
        elif frame.code == SuspectCode.EXCLUDED:  # itself; if it is needed it asks again
            if frame.epoch >= peer.excluded_epoch:  # else of the time before it was left out
                core.exclude(peer, f"it steps back from step {frame.step}: {frame.text}")
        else:
            accused(core, peer, frame, next(v for v in views if v.epoch == frame.epoch))

    # -------------------------------------------------------------- levels

    def _note_epoch(self, peer: Peer, epoch: int) -> None:
        """Believes what a peer says is in force there, as far as that can be."""
        entering = self._core.activation
        known = self._core.epoch() if entering is None else entering.view.epoch
        if peer.epoch < epoch <= known:
            peer.epoch = epoch

    def _resend(self, peer: Peer, now_s: float) -> None:
        if now_s >= max(peer.resent_s, self._core.installed_s) + RESEND_S:
            peer.resent_s = now_s
            self._planning.repeat(peer)
