"""What a peer can say of its run to a coordinator that has lost its journal.

A peer learns the members of a view with the message that announces it, and that the view is in
force from its engine, later; both together are what it can testify.

Invariant: what is told is the newest view in force here, and the planned ones before it since the
last flush, in which steps of this peer may still be open.
"""

from __future__ import annotations

from dataclasses import replace

from pccl.membership import messages as m
from pccl.membership.member_events import Identity
from pccl.membership.view import FIRST_STEP_UNKNOWN

VIEWS_MAX = 16  # announced, or older: as many as a coordinator remembers
OLDER_MEMBERS_MAX = 4096  # in all older views together, so that a testimony is one message


class Witness:
    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._announced: dict[int, tuple[m.MemberInfo, ...]] = {}
        self._epoch = 0
        self._members: tuple[m.MemberInfo, ...] = ()
        self._older: list[m.ViewInfo] = []

    def announced(self, epoch: int, members: tuple[m.MemberInfo, ...]) -> None:
        if epoch > self._epoch:
            self._announced[epoch] = members
            while len(self._announced) > VIEWS_MAX:
                self._announced.pop(min(self._announced))

    def installed(self, epoch: int) -> None:
        """A view came into force by an Install: no step is open in an earlier one any more."""
        if self._enter(epoch, FIRST_STEP_UNKNOWN):
            self._older.clear()

    def switched(self, epoch: int, first_step: int) -> None:
        """A planned view came into force; its newcomers, and it, begin with this step."""
        before = m.ViewInfo(self._epoch, self._members)
        if not self._enter(epoch, first_step) or not before.members:
            return
        self._older.append(before)
        while (
            len(self._older) >= VIEWS_MAX
            or sum(len(view.members) for view in self._older) > OLDER_MEMBERS_MAX
        ):
            self._older.pop(0)

    def _enter(self, epoch: int, first_step: int) -> bool:
        members = self._announced.get(epoch)
        if epoch <= self._epoch or members is None:
            return False
        self._epoch = epoch
        self._members = tuple(
            replace(x, first_step=first_step) if x.first_step == FIRST_STEP_UNKNOWN else x
            for x in members
        )
        self._announced = {e: those for e, those in self._announced.items() if e > epoch}
        return True

    def testify(self, admitted: m.Admitted, world: m.World | None, generation: int) -> m.Testimony:
        me = self._identity
        return m.Testimony(
            run_id=admitted.run_id,
            lineage=admitted.lineage,
            generation=generation,
            epoch=self._epoch,
            incarnation=admitted.incarnation,
            secret=admitted.secret,
            peer_id=me.peer_id,
            min_world=(world.min_world if world is not None else 0) or admitted.min_world,
            members=self._members,
            data_host=me.data_host,
            data_port=me.data_port,
            hostname=me.hostname,
            pid=me.pid,
            host_key=me.host_key,
            older=tuple(self._older),
        )
