"""Decides what one peer tells the coordinator and what its engine must do.  No I/O, no clock.

    WAITING --deadline--> DIALLING --connected--> GREETING --Admitted--> ATTACHED
       ^                     |                       |                      |
       +------- back-off ----+------- no answer -----+----- disconnected ---+
    any --Evicted, Refused, grace over, Leave--> ENDED (for good; a new connection starts anew)

Theory.  The engine knows the truth about steps and views, the coordinator about who is in; this
machine carries one to the other and remembers only what it must say again.  Everything the
coordinator sends is level-triggered: a message about a view is forwarded to the engine until the
engine says it is done, and answered from memory after that.

Invariants: generations and installed epochs never go down, and what an older coordinator or an
abandoned plan still says has no effect; a coordinator's generation counts from its first order or
confirmed PONG on, not for its greeting; every state but ATTACHED has a deadline; after ENDED no
effect is returned any more.  Source: docs/PROTOCOL.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from pccl.base.config import LAN, REDIAL_MAX_S
from pccl.membership import messages as m
from pccl.membership.member_events import (
    AdmitEngine,
    Connected,
    Dial,
    Disconnected,
    Drain,
    Effect,
    Ended,
    Event,
    FailEngine,
    HangUp,
    Held,
    Identity,
    Leave,
    Phase,
    Progress,
    Received,
    Send,
    WantWorld,
)
from pccl.membership.member_views import Views
from pccl.membership.testimony import Witness
from pccl.transport import engine_events as n

__all__ = ["Ended", "Member", "Phase"]

REDIAL_MIN_S = 0.1
NATIVE_DOWN_MAX_S = 6.0  # the engine dials again every 2 s at the slowest
RECALL_S = 60.0  # an operator may let a coordinator gather testimony for a while
HELLO_ANSWER_S = 5.0  # as long as the coordinator waits for a first frame
GOODBYE_S = 2.0  # how long close() waits for the coordinator to let go
ENTRY_REPEAT_S = 0.25  # until the coordinator's heartbeat interval is known
REFUSED_PROTOCOL = 1  # codes of the native REFUSED frame; the others heal or end by the lease
REFUSED_INCARNATION = 4


class Member:
    """One peer's side of membership.  `dice` returns numbers in [0, 1), for the back-off."""

    def __init__(
        self,
        identity: Identity,
        *,
        now_s: float,
        connect_timeout_s: float,
        coordinator_grace_s: float | None,  # None: what the coordinator's profile says
        dice: Callable[[], float],
    ) -> None:
        self.phase = Phase.WAITING
        self.ended: Ended | None = None
        self.admitted: m.Admitted | None = None
        self.world: m.World | None = None
        self._identity = identity
        self._witness = Witness(identity)
        self._grace_s = coordinator_grace_s
        self._dice = dice
        self.views = Views(self._witness)
        self._entry: m.AtEntry | None = None
        self._wanted = 0
        self._carried = m.CarriedBy(identity.carried_by) if identity.carried_by else None
        self._coordinator = ("", 0)
        self._leaving = False
        self._drain_reason: str | None = None  # this peer asked to be planned out
        self.last_reason = "not tried yet"
        self._native_is_down = False  # it was up, and is not
        self._steps = 0
        self._steps_at_loss = 0
        self._redial_s = REDIAL_MIN_S
        # Deadlines; None = not running.
        self._redial_at_s: float | None = now_s
        self._answer_by_s: float | None = None
        self._entry_at_s: float | None = None
        self._native_by_s: float | None = None  # the engine's connection must be back by then
        self._leave_by_s: float | None = None
        self._drain_by_s: float | None = None
        self._give_up_at_s: float | None = now_s + connect_timeout_s

    @property
    def deadline_s(self) -> float | None:
        if self.phase is Phase.ENDED:
            return None
        running = (
            self._redial_at_s,
            self._answer_by_s,
            self._entry_at_s,
            self._native_by_s,
            self._leave_by_s,
            self._drain_by_s,
            self._give_up_at_s,
        )
        return min((at for at in running if at is not None), default=None)

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        if self.phase is Phase.ENDED:
            return []
        match event:
            case Connected(host, port):
                return self._connected(host, port, now_s)
            case Disconnected(reason, foreign):
                return self._disconnected(reason, foreign, now_s)
            case Received(message):
                return self._received(message, now_s)
            case Held(generation, epoch, step, within):
                if self.views.is_past(generation, epoch):
                    return []
                return self._send(m.HoldFrom(epoch, step, within))
            case WantWorld(world_size):
                self._wanted = world_size
                return self._send(m.WaitFor(world_size))
            case Progress(steps):
                self._steps = steps
                return []
            case Drain(deadline_s, reason):
                return self._drain(deadline_s, reason, now_s)
            case Leave(reason, decided_below):
                return self._leave(reason, decided_below, now_s)
            case _:
                return self._engine(event, now_s)

    def on_deadline(self, now_s: float) -> list[Effect]:
        if self.phase is Phase.ENDED:
            return []
        if _due(self._leave_by_s, now_s):
            text = "this process has left; the coordinator gave no answer: ended or stopped"
            return self._end(self._way_out(), text)
        if _due(self._give_up_at_s, now_s):
            return self._give_up(now_s)
        if _due(self._drain_by_s, now_s):
            self._drain_by_s = None
            return self._leave(self._drain_reason or "", 0, now_s)
        effects: list[Effect] = []
        if _due(self._answer_by_s, now_s):
            effects += [HangUp()]
            effects += self._disconnected("it accepted, but did not answer", False, now_s)
        elif _due(self._native_by_s, now_s):
            effects += [HangUp()]
            effects += self._disconnected("only its native port is silent", False, now_s)
        elif _due(self._redial_at_s, now_s):
            self._redial_at_s = None
            self.phase = Phase.DIALLING
            effects += [Dial()]
        if _due(self._entry_at_s, now_s):
            effects += self._tell_entry(now_s)
        return effects

    # ---- the control connection

    def _connected(self, host: str, port: int, now_s: float) -> list[Effect]:
        self._coordinator = (host, port)
        self.phase = Phase.GREETING
        self._redial_at_s = None
        self._answer_by_s = now_s + HELLO_ANSWER_S
        return [Send(self._identity.hello(self.admitted, self.views.generation, self.views.epoch))]

    def _disconnected(self, reason: str, foreign: bool, now_s: float) -> list[Effect]:
        if self._leaving:
            return self._end(self._way_out(), "left the run")
        if foreign and self.admitted is None:
            return self._end("foreign", reason)
        self.last_reason = reason
        if self.phase is Phase.ATTACHED:
            self._steps_at_loss = self._steps
            self._give_up_at_s = now_s + self._patience_s()
        self.phase = Phase.WAITING
        self._answer_by_s = self._entry_at_s = self._native_by_s = None
        # Half to one and a half of the delay, so that many peers do not come back in step.
        self._redial_at_s = now_s + self._redial_s * (0.5 + self._dice())
        self._redial_s = min(2 * self._redial_s, REDIAL_MAX_S)
        return []

    def _give_up(self, now_s: float) -> list[Effect]:
        if self.admitted is None:
            return self._end("unreachable", self.last_reason)
        if self._steps > self._steps_at_loss:
            # Steps still commit: nothing waits for a decision, and nobody needs a coordinator yet.
            self._steps_at_loss = self._steps
            self._give_up_at_s = now_s + self._patience_s()
            return []
        return self._end(
            "coordinator_lost",
            f"no coordinator for {self._patience_s():g} s (last attempt: {self.last_reason}); "
            "connect again",
        )

    def _patience_s(self) -> float:
        """How long to go on without a coordinator: as the program or else the run says."""
        if self._grace_s is not None:
            return self._grace_s
        return (
            LAN.coordinator_grace_s if self.admitted is None else self.admitted.coordinator_grace_s
        )

    def _drain(self, deadline_s: float, reason: str, now_s: float) -> list[Effect]:
        by_s = now_s + deadline_s
        if self._drain_reason is not None and by_s >= (self._drain_by_s or 0.0):
            return []  # asked already, with as little time
        self._drain_reason, self._drain_by_s = reason, by_s
        return self._send(m.Drain(deadline_s, reason))

    def _leave(self, reason: str, decided_below: int, now_s: float) -> list[Effect]:
        if self._leaving:
            return []
        self._leaving = True
        if self.phase is not Phase.ATTACHED:
            return self._end(self._way_out(), reason)
        self._entry_at_s = None
        self._leave_by_s = now_s + GOODBYE_S
        return [Send(m.Leaving(reason, decided_below))]

    def _way_out(self) -> str:
        """Returns how an end is called that this peer has asked for, or has not."""
        if self._drain_reason is not None:
            return "left"
        return "closed" if self._leaving else "evicted"

    def _end(self, code: str, text: str) -> list[Effect]:
        self.phase = Phase.ENDED
        self.ended = Ended(code, text)
        return [FailEngine(code, text), HangUp()]

    def _send(self, message: m.PeerMessageBody) -> list[Effect]:
        return [Send(message)] if self.phase is Phase.ATTACHED else []

    def _told(self, effects: list[Effect]) -> list[Effect]:
        """Leaves out answers while there is nobody to hear them; they are said again later."""
        if self.phase is Phase.ATTACHED:
            return effects
        return [effect for effect in effects if not isinstance(effect, Send)]

    # ---- the coordinator's messages

    def _received(self, message: m.CoordinatorMessageBody, now_s: float) -> list[Effect]:
        match message:
            case m.Admitted():
                return self._on_admitted(message, now_s)
            case m.Refused(code, text):
                if code in m.REFUSALS_FOR_NOW:  # somebody has to put the coordinator right
                    return [HangUp(), *self._disconnected(text, False, now_s)]
                return self._end("refused", f"{text} ({code})")
            case m.Recall():
                return self._on_recall(now_s)
            case m.Evicted(generation, text):
                if generation < self.views.generation:
                    return []
                return self._end(self._way_out(), text)
            case m.ViewPlan():
                return self._told(self.views.plan(message))
            case m.Hold():
                return self._told(self.views.hold(message))
            case m.Activate():
                return self._told(self.views.activate(message))
            case m.CancelPlan():
                return self.views.cancel(message)
            case m.Install():
                return self._told(self.views.install(message))
            case m.Excluded():
                return self._told(self.views.excluded(message))
            case m.World() | m.StatusReply():
                if isinstance(message, m.World):
                    self.world = message
                return []
            case _:
                assert_never(message)

    def _on_admitted(self, admitted: m.Admitted, now_s: float) -> list[Effect]:
        if admitted.generation < self.views.generation:
            # A coordinator that has been replaced; the next dial finds the present one.
            return [HangUp(), *self._disconnected("an older coordinator answered", False, now_s)]
        before = self.admitted
        if before is not None and before.incarnation != admitted.incarnation:
            return self._end("evicted", "the coordinator knows this process no more; connect again")
        self.admitted = admitted
        self.phase = Phase.ATTACHED
        self._answer_by_s = self._give_up_at_s = None
        self._redial_s = REDIAL_MIN_S
        self._watch_native(now_s)
        effects: list[Effect] = [AdmitEngine(admitted, *self._coordinator), *self.views.unsaid()]
        if self._drain_reason is not None:
            left_s = max(0.0, (self._drain_by_s or now_s) - now_s)
            effects.append(Send(m.Drain(left_s, self._drain_reason)))
        if self._wanted:
            effects.append(Send(m.WaitFor(self._wanted)))
        if self._carried is not None:
            effects.append(Send(self._carried))
        return effects + self._tell_entry(now_s)

    def _on_recall(self, now_s: float) -> list[Effect]:
        """A coordinator that gathers what is known; it lets go when it has heard enough."""
        self._answer_by_s = now_s + RECALL_S
        if self.admitted is None:
            return []  # a newcomer knows nothing of the run, and is admitted afterwards
        newest = max(self.views.generation, self.admitted.generation)
        return [Send(self._witness.testify(self.admitted, self.world, newest))]

    # ---- the engine's events

    def _engine(self, event: n.EngineEvent, now_s: float) -> list[Effect]:
        match event:
            case n.EntryReached(name, next_step):
                self._entry = m.AtEntry(name, next_step)
                return self._tell_entry(now_s)
            case n.EntryLeft():
                self._entry = self._entry_at_s = None
                return []
            case n.LinksOpened(epoch):
                return self._told(self.views.links(epoch, m.LinksUp(epoch)))
            case n.LinksUnreachable(epoch, peers):
                return self._told(self.views.links(epoch, m.LinksFailed(epoch, peers)))
            case n.ViewSwitched(epoch, step):
                return self._told(self.views.switched(epoch, step))
            case n.ViewLeft(epoch):
                return self.views.left(epoch)
            case n.ViewInstalled(epoch) | n.EngineExcluded(epoch):
                return self._told(self.views.in_force(epoch))
            case n.NativeEvicted(text):
                return self._end(self._way_out(), text)
            case n.NativeRefused(code, text) if code == REFUSED_PROTOCOL:
                return self._end("refused", text)
            case n.NativeRefused(code, text):
                return self._end(self._way_out(), text) if code == REFUSED_INCARNATION else []
            case n.EngineFailed(code, text):
                return self._end(code, text)
            case n.NativeLink(connected, generation):
                self._native_is_down = not connected
                self._watch_native(now_s)
                return self._on_newer(generation if connected else 0, now_s)
            case n.NativeFollows(generation):
                self.views.follow(generation)
                return self._on_newer(generation, now_s)
            case n.UcxChose(transports):
                return self._told(self._carried_by(transports))
            case n.StepDecided() | n.LetterEnded():
                return []
            case _:
                assert_never(event)

    def _carried_by(self, transports: str) -> list[Effect]:
        """For people who look at the run; said again to each coordinator."""
        if not transports:  # news of one link, not of this peer
            return []
        self._carried = m.CarriedBy(transports[: m.TEXT_CHARACTERS_MAX])
        return [Send(self._carried)]

    def _on_newer(self, generation: int, now_s: float) -> list[Effect]:
        """The control thread may find a newer coordinator first; the older one is left then."""
        admitted = self.admitted if self.phase is Phase.ATTACHED else None
        if admitted is None or admitted.generation >= generation:
            return []
        return [HangUp(), *self._disconnected("a newer coordinator is there", False, now_s)]

    def _watch_native(self, now_s: float) -> None:
        """Two connections end where one does.  If the engine's stays away, this one may only seem
        to be there: a machine that vanished says no goodbye, and another may have taken its place.
        A coordinator that is merely stopped keeps both."""
        watched = self._native_is_down and self.phase is Phase.ATTACHED
        self._native_by_s = now_s + NATIVE_DOWN_MAX_S if watched else None

    def _tell_entry(self, now_s: float) -> list[Effect]:
        self._entry_at_s = None
        if self._entry is None or self.phase is not Phase.ATTACHED or self._leaving:
            return []
        heartbeat_s = ENTRY_REPEAT_S if self.admitted is None else self.admitted.heartbeat_s
        self._entry_at_s = now_s + heartbeat_s
        return [Send(self._entry)]


def _due(at_s: float | None, now_s: float) -> bool:
    return at_s is not None and now_s >= at_s
