"""What happened in a run, and the invariants that must hold after every event of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pccl.membership.messages import MemberInfo
from pccl.membership.record import Record

if TYPE_CHECKING:
    from tests.sim.model_peer import ModelPeer


@dataclass
class History:
    """Told by the engines; asserts agreement at once, so a failure points at its moment."""

    outcomes: dict[tuple[int, int], tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    views: dict[int, tuple[int, ...]] = field(default_factory=dict)
    lineages: dict[int, int] = field(default_factory=dict)
    undo_count: int = 0

    def recorded(self, record: Record) -> None:
        """A record was written: it says to which lineage an epoch belongs."""
        for view in (record.view, record.activation.view if record.activation else None):
            if view is not None:
                self.lineages.setdefault(view.epoch, record.lineage)

    def in_force(self, peer: ModelPeer, epoch: int, members: tuple[MemberInfo, ...]) -> None:
        """A view came into force: there is one per epoch."""
        ids = tuple(m.incarnation for m in members)
        assert self.views.setdefault(epoch, ids) == ids, f"two views of epoch {epoch}"
        peer.lineage = self.lineages[epoch]
        if peer.first_step is None:
            assert peer.engine is not None
            own = peer.engine.incarnation
            peer.first_step = next(m.first_step for m in members if m.incarnation == own)

    def decided(
        self, peer: ModelPeer, step: int, outcome: str, contributors: tuple[int, ...]
    ) -> None:
        """A step ended at a peer: everywhere alike, the dead included, from the same inputs."""
        result = (outcome, contributors)
        known = self.outcomes.setdefault((peer.lineage, step), result)
        assert known == result, f"step {step} at {peer}: {result}, elsewhere {known}"

    def undone(self) -> None:
        self.undo_count += 1

    def check_no_step_skipped(self, peer: ModelPeer) -> None:
        """What a peer decided is everything from its first step on."""
        if peer.engine is None or peer.first_step is None:
            return
        for step in range(peer.first_step, peer.engine.watermark):
            assert (peer.lineage, step) in self.outcomes, f"{peer} skipped step {step}"
