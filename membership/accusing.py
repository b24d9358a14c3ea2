"""What members say of each other's calls, and what becomes of newcomers by it.

Invariant: only newcomers are put out by what others say; `misfits` has the rule.
"""

from __future__ import annotations

from typing import Final

from pccl.membership.core import ACCUSATIONS_MAX, Core, Peer, name
from pccl.membership.decide import Outcome
from pccl.membership.events import Lost
from pccl.membership.misfits import Accusation, is_hearsay
from pccl.membership.view import View
from pccl.transport.native_frames import Suspect, SuspectCode

SPOILED_STEPS_MAX: Final = 64  # whose attempts are counted at a time


class SpoiledSteps:
    """How often each step that is not decided was run again, by the reason."""

    def __init__(self) -> None:
        self.corrupt: dict[int, int] = {}  # digests were unequal
        self.put_outs: dict[int, int] = {}  # newcomers were put out

    def count(self, outcome: Outcome) -> None:
        put_out_of = sorted({step for _, step, _ in outcome.misfits})
        for counts, steps in ((self.corrupt, outcome.corrupt), (self.put_outs, put_out_of)):
            for step in steps:
                counts[step] = counts.get(step, 0) + 1
            for step in [s for s in counts if s < outcome.committed_below]:
                counts.pop(step)
            while len(counts) > SPOILED_STEPS_MAX:
                counts.pop(min(counts))


def accused(core: Core, peer: Peer, frame: Suspect, attempt: View) -> None:
    """Takes note of a SUSPECT about a step that ran in the view `attempt`; a flush judges it."""
    said = Accusation(frame.step, frame.code, frame.text, peer.incarnation, frame.suspects)
    if len(core.accusations) < ACCUSATIONS_MAX:
        core.accusations.append(said)
    differ = frame.code == SuspectCode.DESCRIPTOR
    if not (differ and is_hearsay(attempt, said)):
        core.want_flush(f"step {frame.step}: {SuspectCode(frame.code).name.lower()}")


def put_out(core: Core, outcome: Outcome) -> None:
    """Leaves newcomers out of the next view whose calls do not fit in; they stay admitted."""
    for incarnation, step, text in outcome.misfits:
        peer = core.peers[incarnation]
        if not peer.present():
            continue
        why = f"put out, for it is new here and its call does not fit in; {text}"
        core.log("warning", f"step {step}: peer {name(peer)} is {why}")
        core.effects.append(Lost(peer.peer_id, why))
        if peer.drain_cut_s is not None:
            peer.leaving_s = core.now_s  # it wants to go anyway
        else:
            peer.excluding, peer.unfit = why, True
