"""Whether the run is ahead of this journal, and what a coordinator does that has learnt so.

    in office --a witness shows a sign--> outdated (for good)

A coordinator that was started on an old copy of its journal cannot tell from the copy; peers can.
They have followed a later generation, a view is in force there that this journal has not heard of,
or they have an incarnation that it never gave.  Who shows such a *sign* is turned away for now and
never evicted, whether the journal knows it or not: it goes on without a coordinator, and dials
again.  A *witness* is a peer that the journal, when it was opened, held as a member of a view, or,
if it held no view, as one whose engine had come.  A witness that shows a sign and its secret makes
the coordinator outdated, for whatever is decided on this journal may contradict what was decided
since.  Who was admitted since is none: anybody can say hello and be given a secret.

A peer *follows* a coordinator from its first order or PONG on and shows its generation to others,
so that of a copy that has grown by restarts would be a sign against the right one.  Hence no order
is given and PONGs name no generation while a witness is *due*: until each has come without a sign,
or is gone, or has had its time.  Not due is whom an activated view leaves out, if it has members:
its machine may be gone already, and others can show the sign.  A flush would not be decided before
either.

Invariants: the word of who is no witness changes nothing but its own answer; an outdated
coordinator judges and admits nobody, flushes and plans nothing, and writes nothing; it answers
hellos with a refusal and shows its status, and says nothing else, not even what it had decided
before and its disk has held since (`still_due`).
"""

from __future__ import annotations

from typing import Final

from pccl.membership.core import Core, Peer, name, native_text
from pccl.membership.decide import UnknownView
from pccl.membership.events import Close, Effect, Send, SendNative
from pccl.membership.messages import REFUSED_FOR_AN_OLD_COPY, Refused, StatusReply
from pccl.transport.native_frames import RefusalCode, RefusedFrame

ADVICE: Final = (
    "stop this coordinator and start the one with the newest journal; if that is lost, let one "
    "adopt the run: pccl coordinator adopt --journal FILE"
)
WITNESS_SHARE: Final = 0.75  # of the time to re-attach; native connections are dialled every 2 s


def still_due(effects: list[Effect], outdated: str) -> list[Effect]:
    """Returns which effects that waited for the disk are to be performed all the same.

    Args:
        outdated: why the coordinator is outdated, "" if it is not.
    """
    return [effect for effect in effects if not _commits_to_more(effect)] if outdated else effects


def _commits_to_more(effect: Effect) -> bool:
    """Says whether an effect tells somebody more than a refusal or a status."""
    match effect:
        case Send(_, msg):
            return not isinstance(msg, Refused | StatusReply)
        case SendNative(_, frame):
            return not isinstance(frame, RefusedFrame)
        case _:
            return False


class Outdated:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._warned = False
        # Who is planned out may be gone already.  Where all are, no one else could show a sign.
        entering = core.activation
        out = core.leavers() if entering is not None and entering.view.members else ()
        core.witnesses_due = {i for i, p in core.peers.items() if p.is_witness and i not in out}
        self._waits = bool(core.witnesses_due)
        self._due_s = core.started_s + WITNESS_SHARE * core.config.profile.reattach_window_s

    def sign(self, generation: int, epoch: int, incarnation: int = 0) -> str:
        """Returns what shows that the run is ahead of this journal; "" if nothing does."""
        core = self._core
        if generation > core.generation:
            return f"generation {generation} has led the run, and this is {core.generation}"
        newest = self._newest_epoch()
        if epoch > newest:
            return f"epoch {epoch} is in force, and the journal knows of none after {newest}"
        if incarnation > core.incarnations:
            return f"there is an incarnation {incarnation}, and {core.incarnations} were given here"
        return ""

    def _newest_epoch(self) -> int:
        """Returns the highest epoch that can be in force anywhere if this journal is the newest.

        A view is durable before anybody hears of it; the target of a flush that is on is in force
        nowhere.  An adopted record may lack a view all the same, until the flush with which it
        begins is over; its reserve is above all that there were.
        """
        core = self._core
        if core.view is None or core.adopted:
            return core.epoch_high
        return core.view.epoch if core.activation is None else core.activation.view.epoch

    @property
    def deadline_s(self) -> float | None:
        return self._due_s if self._core.witnesses_due else None

    def agrees(self, peer: Peer) -> None:
        """A native connection of the peer shows no sign."""
        self._core.witnesses_due.discard(peer.incarnation)

    def is_over(self, now_s: float) -> bool:
        """Says, once, that no witness is due any more."""
        core = self._core
        if not self._waits:
            return False
        over = now_s >= self._due_s
        here = {i for i in core.witnesses_due if i in core.peers and core.peers[i].gone is None}
        core.witnesses_due = set() if over else here
        self._waits = bool(core.witnesses_due)
        return not self._waits

    def paused(self, duration_s: float) -> None:
        self._due_s += duration_s

    def shown_generation(self) -> int:
        """Returns what PONGs name; 0 asks nobody to follow."""
        return 0 if self._core.witnesses_due else self._core.generation

    def shown(self, peer: Peer, sign: str) -> None:
        """An admitted peer shows a sign on its native connection."""
        if peer.is_witness:
            self.learnt(peer, sign)
        elif peer.native is not None:
            frame = RefusedFrame(int(RefusalCode.GENERATION), native_text(self.doubt(sign)))
            self._core.effects += [SendNative(peer.native, frame), Close(peer.native)]

    def decides_nothing(self, error: UnknownView) -> None:
        """A flush of an adopted record has come upon a view that nobody testified to."""
        sign = f"a step is open in epoch {error.epoch}, which the journal does not know"
        self._learn(self._core.peers[error.incarnation], sign)

    def learnt(self, peer: Peer, sign: str) -> None:
        """A witness has shown a sign."""
        assert peer.is_witness
        self._learn(peer, sign)

    def _learn(self, peer: Peer, sign: str) -> None:
        """From now on nothing is decided here, and everybody is turned away for now."""
        core = self._core
        if core.outdated:
            return
        core.outdated = (
            f"the journal of this coordinator (generation {core.generation}) is an old copy: "
            f"{sign}, says {name(peer)}; {ADVICE}"
        )
        core.log("error", core.outdated)
        answer = Refused(REFUSED_FOR_AN_OLD_COPY, core.outdated)
        frame = RefusedFrame(int(RefusalCode.GENERATION), native_text(core.outdated))
        for other in core.peers.values():
            if other.agent is not None:
                core.effects += [Send(other.agent, answer), Close(other.agent)]
            if other.native is not None:
                core.effects += [SendNative(other.native, frame), Close(other.native)]
            for conn in (other.agent, other.native):
                core.conns.pop(conn or 0, None)
            other.agent = other.native = None

    def doubt(self, sign: str) -> str:
        """Returns what to tell somebody who shows a sign and proves nothing."""
        core = self._core
        text = (
            f"this peer says that {sign}: the journal of this coordinator (generation "
            f"{core.generation}) may be an old copy; if it is, {ADVICE}"
        )
        if not self._warned:
            self._warned = True
            core.log("warning", f"turned away for now: {text}")
        return text
