"""What happened in a run, and the invariants that hold after every event of it.

Each is checked where it could begin to be untrue, so a failure points at its moment.  The numbers
are those of the protocol's invariants:

    I1, I2   `decided`: a step ends alike everywhere, the dead included: outcome, contributors, bits
    I3       `decided`: the result is the sum over exactly the declared contributors
    I4       `restored`: the input is back before a step runs again or has failed
    I5       `decided`, `check_end`: what a peer decides is everything from its first step on
    I6       `in_force`, `generation_seen`, `followed`: epochs and generations never go down
    I7       data_plane.py: a frozen engine folds, completes and commits nothing
    I8       `recorded`: an epoch names one view; who is in a view made by a flush was in the last
    I9       `done_sent`, `all_done`: who says DONE takes part, and nobody commits without all DONEs
    I12      `started`, `in_force`: what was durable or told is in every later record
    I13      durability.py: what is said is on disk before
    I14      `recorded`: an incarnation that was given up is in no later record
    I15      verdict.py: nothing grows with the length of a run
    I16-I20  verdict.py, when the faults are over

I10 and I11 follow from I1 and I5, because the model's state is the sequence of its results; I21
and I22 are about encryption, which there is none of, and about bytes, which the codecs' own tests
and those of the drivers see.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pccl.membership.messages import MemberInfo
from pccl.membership.record import Record
from pccl.membership.view import View

if TYPE_CHECKING:
    from tests.sim.peer_process import PeerProcess

DIGIT_BITS = 8  # of one contribution, so that counting somebody twice shows


def unit(incarnation: int) -> int:
    """The contribution of a peer: a one in a digit of its own."""
    return 1 << (DIGIT_BITS * (incarnation % 96))


@dataclass
class History:
    outcomes: dict[tuple[int, int, int], tuple[object, ...]] = field(default_factory=dict)
    _ends: dict[tuple[int, int], str] = field(default_factory=dict)  # of a step, in all groups
    views: dict[int, tuple[int, ...]] = field(default_factory=dict)  # in force somewhere
    lineages: dict[int, int] = field(default_factory=dict)
    commits: int = 0
    fails: int = 0
    undos: int = 0
    evicted: int = 0
    generation: int = 0
    _views: dict[int, tuple[int, ...]] = field(default_factory=dict)  # ever recorded
    _activated: set[int] = field(default_factory=set)  # epochs
    _ever: dict[int, set[int]] = field(default_factory=dict)  # members of a lineage
    _first_steps: dict[int, int] = field(default_factory=dict)  # in force
    _dones: dict[tuple[int, int], set[int]] = field(default_factory=dict)
    _admitted: set[int] = field(default_factory=set)
    _given_up: set[int] = field(default_factory=set)
    _told_off: set[int] = field(default_factory=set)
    _record_generation: int = 0

    # ------------------------------------------------------------ the coordinator

    def started(self, generation: int) -> None:
        assert generation > self.generation, f"generation {generation} was there before"
        self.generation = generation

    def recorded(self, record: Record) -> None:
        """A record was issued; one of a deposed coordinator will not become durable."""
        if record.generation < self.generation:
            return
        admitted = {p.incarnation for p in record.peers}
        if record.generation > self._record_generation:
            # What an earlier generation said last may be lost, and then was never said.
            self._record_generation = record.generation
            self._given_up &= self._told_off
            self._admitted = admitted
            self._ever.clear()
        returned = admitted & self._given_up
        assert not returned, f"incarnations {sorted(returned)} were given up before"
        self._given_up |= self._admitted - admitted
        self._admitted = admitted
        entering = record.activation
        if entering is not None:
            self._recorded_view(entering.view, record, admitted)
            self._activated.add(entering.view.epoch)
        if record.view is not None:
            self._recorded_view(record.view, record, admitted)
            self._check_survivors(record.view, record.lineage)
            members = self._ever.setdefault(record.lineage, set())
            members.update(record.view.incarnations())
            if entering is not None and entering.resolved:
                members.update(entering.view.incarnations())

    def told_off(self, incarnation: int) -> None:
        """A peer was told that it is out: whatever a crash loses, this stays true."""
        self._told_off.add(incarnation)

    def _recorded_view(self, view: View, record: Record, admitted: set[int]) -> None:
        ids = view.incarnations()
        known = self._views.setdefault(view.epoch, ids)
        assert known == ids, f"epoch {view.epoch} was {known}, now {ids}"
        lineage = self.lineages.setdefault(view.epoch, record.lineage)
        assert lineage == record.lineage, f"epoch {view.epoch} moved to another lineage"
        unknown = set(ids) - admitted
        # A flush that is on takes an activation back for which nobody waits any more.
        void = record.flushing and view is not record.view
        assert not unknown or void, (
            f"epoch {view.epoch} has {sorted(unknown)}, who are not admitted"
        )
        for member in view.members:
            entered = self._first_steps.get(member.incarnation, member.first_step)
            assert entered == member.first_step, (
                f"{member.incarnation} began at {entered}; a record says {member.first_step}"
            )

    def _check_survivors(self, view: View, lineage: int) -> None:
        """A view that a flush made consists of members."""
        if view.epoch not in self._activated and lineage in self._ever:
            strangers = set(view.incarnations()) - self._ever[lineage]
            assert not strangers, f"a flush let {sorted(strangers)} into epoch {view.epoch}"

    # ------------------------------------------------------------ peers

    def in_force(self, peer: PeerProcess, epoch: int, members: tuple[MemberInfo, ...]) -> None:
        ids = tuple(m.incarnation for m in members)
        assert epoch > peer.epoch_seen, f"{peer} went from epoch {peer.epoch_seen} to {epoch}"
        peer.epoch_seen = epoch
        assert self.views.setdefault(epoch, ids) == ids, f"two views of epoch {epoch}"
        recorded = self._views.get(epoch)
        # Where all leave, the record of it may share a write with the end of the run.
        over = not ids and recorded is None
        assert recorded == ids or over, f"epoch {epoch} at {peer} is {ids}, recorded {recorded}"
        peer.lineage = self.lineages.get(epoch, peer.lineage)
        own = next((m for m in members if m.incarnation == peer.incarnation), None)
        if own is not None and peer.first_step is None:
            peer.first_step = peer.expected_step = own.first_step
            self._first_steps[peer.incarnation] = own.first_step

    def excluded(self, peer: PeerProcess, epoch: int) -> None:
        """A peer is in no view any more, and comes in again like a newcomer."""
        assert epoch > peer.epoch_seen, f"{peer} went from epoch {peer.epoch_seen} to {epoch}"
        peer.epoch_seen = epoch
        peer.first_step = None
        peer.decided_ahead.clear()
        self._first_steps.pop(peer.incarnation, None)

    def generation_seen(self, peer: PeerProcess, generation: int) -> None:
        assert generation >= peer.generation_seen, f"{peer} obeyed an older coordinator"
        assert generation <= self.generation, f"{peer} saw generation {generation}"
        peer.generation_seen = generation
        peer.generation_followed = max(peer.generation_followed, generation)

    def followed(self, peer: PeerProcess, generation: int) -> None:
        """The control thread obeys a coordinator; it may find one before the agent does."""
        assert generation >= peer.generation_seen, f"{peer} followed an older coordinator"
        assert generation <= self.generation, f"{peer} follows generation {generation}"
        peer.generation_followed = generation

    def done_sent(
        self, peer: PeerProcess, epoch: int, step: int, participants: tuple[int, ...]
    ) -> None:
        assert peer.incarnation in participants, f"{peer} says DONE({step}) and takes no part"
        self._dones.setdefault((epoch, step), set()).add(peer.incarnation)

    def all_done(
        self, peer: PeerProcess, epoch: int, step: int, participants: tuple[int, ...]
    ) -> None:
        """A peer commits a step by itself, without a flush: then all were complete."""
        missing = set(participants) - self._dones.get((epoch, step), set())
        assert not missing, f"{peer} commits step {step} without the DONE of {sorted(missing)}"

    def restored(self, peer: PeerProcess, step: int, buffer: list[int]) -> None:
        assert buffer == [unit(peer.incarnation)], f"{peer} has lost its input of step {step}"
        self.undos += 1

    def decided(
        self,
        peer: PeerProcess,
        step: int,
        outcome: str,
        contributors: tuple[int, ...] = (),
        result: tuple[int, ...] = (),
        *,
        alone: bool = False,
    ) -> None:
        """A step ended at a peer; `alone`: its result was damaged, and no other one is left."""
        if outcome == "commit" and not alone:
            total = sum(unit(i) for i in contributors)
            whole = tuple(value // scale(len(result), k) for k, value in enumerate(result))
            assert all(part == total for part in whole), (
                f"wrong sum of step {step} at {peer}: {result} from {contributors}"
            )
        assert step not in peer.decided_ahead and step >= peer.expected_step, (
            f"step {step} decided twice at {peer}"
        )
        peer.decided_ahead.add(step)
        while peer.expected_step in peer.decided_ahead:
            peer.decided_ahead.discard(peer.expected_step)
            peer.expected_step += 1
        said = (outcome, contributors, result)
        ended = self._ends.setdefault((peer.lineage, step), outcome)
        assert ended == outcome, f"step {step} at {peer}: {said}, elsewhere {ended}"
        known = self.outcomes.setdefault((peer.lineage, step, peer.group), said)
        assert known == said, f"step {step} at {peer}: {said}, elsewhere {known}"
        if known is said:
            self.commits += outcome == "commit"
            self.fails += outcome == "fail"

    def check_end(self, peer: PeerProcess, watermark: int) -> None:
        """What a peer decided is everything from its first step on."""
        if peer.first_step is None:
            return
        assert watermark == peer.expected_step, (
            f"{peer} counts {watermark} steps as decided; {peer.expected_step} were"
        )
        for step in range(peer.first_step, watermark):
            assert (peer.lineage, step) in self._ends, f"{peer} skipped step {step}"


def scale(shards: int, shard: int) -> int:
    """Marks data with the layout it is part of, so that data of another layout shows."""
    return 1 if shards == 1 else 16 * shards + shard + 1
