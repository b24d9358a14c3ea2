"""A copy of the disk that is started so often that it seems to be the newest.

Its generation is above the right coordinator's, so only the views in force at some members show
that it is old, and nobody else may have followed it when the right one is back.  Somebody who can
tell must be there and be heard, for if nobody is, the copy leads the run.
"""

from __future__ import annotations

from typing import Final

from tests.sim.disk import Disk
from tests.sim.peer_process import PeerProcess
from tests.sim.script import Fault
from tests.sim.world import World

KNOWN_S: Final = 4.0  # within it a newcomer has come in, and the copy is old
LOOK_EVERY_S: Final = 0.05
WAYS: Final = [(kind, way) for kind in ("agent", "native") for way in ("up", "down")]


class GrownCopy:
    def __init__(self, world: World, fault: Fault, copy: Disk) -> None:
        self._world = world
        self._copy = copy
        self._written = fault.y
        self._life_s = 0.3 + 0.4 * min(fault.x, 2.0)
        self._lives = 2 + fault.b % 3
        self._give_up_s = world.now_s + KNOWN_S
        record = copy.open().load()
        views = [] if record is None or record.view is None else [record.view]
        if record is not None and record.activation is not None:
            views.append(record.activation.view)
        self._members = {i for view in views for i in view.incarnations()}
        self._newest = max((view.epoch for view in views), default=0)
        world.faults_until_s = max(world.faults_until_s, self._give_up_s + 0.5)

    def wait(self) -> None:
        """Takes the right one's place as soon as some member knows more than the copy."""
        world = self._world
        right = world.listening
        if world.quiet or world.now_s > self._give_up_s or not self._members:
            return
        if right is None or right.is_copy or not self._somebody_can_tell():
            world.at(world.now_s + LOOK_EVERY_S, None, self.wait)
            return
        while self._copy.generation <= world.disk.generation:
            self._copy.open()
        world.faults_until_s = world.now_s + (self._lives + 1) * self._life_s + 1.0
        self._take()

    def _somebody_can_tell(self) -> bool:
        return any(self._can_tell(peer) for peer in self._world.living())

    def _can_tell(self, peer: PeerProcess) -> bool:
        world = self._world
        ways = [world.blocked_until_s((kind, peer.index, way)) for kind, way in WAYS]
        return (
            peer.incarnation in self._members
            and peer.engine.epoch > self._newest
            and not peer.dies_in
            and max([peer.stopped_until_s, *ways]) <= world.now_s
        )

    def _take(self) -> None:
        world = self._world
        if world.listening is not None:
            world.listening.back_after_s = 0.2
            world.listening.die(self._written)
        self._lives -= 1
        taker = world.make_coordinator(world, self._copy)
        over_s = world.now_s + self._life_s

        def look() -> None:
            if not taker.alive:
                return
            if world.quiet or not self._somebody_can_tell():
                taker.die(0.0)
            elif world.now_s >= over_s:
                if self._lives:
                    self._take()
                else:
                    taker.die(self._written)
            else:
                world.at(world.now_s + LOOK_EVERY_S, None, look)

        look()
