"""Runs scripts with the shipped asyncio drivers instead of the simulation's own shells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.sim.drivers.loop import VirtualLoop
from tests.sim.drivers.processes import DriverCoordinator, DriverPeer
from tests.sim.links import Links
from tests.sim.run import Result, run
from tests.sim.script import Script, draw
from tests.sim.world import World


class DriverWorld(World):
    def __init__(self, script: Script, *, traced: bool = False) -> None:
        super().__init__(script, traced=traced)
        self.loops: list[VirtualLoop] = []

    def send_down(self, wire: Any, message: Any) -> None:
        wire.coordinator.said(wire, message)
        super().send_down(wire, message)

    def dispose(self) -> None:
        """Ends what was abandoned, now that it can touch nothing of the run any more.

        A coroutine that is collected in the middle would be closed by the interpreter, wherever it
        stands; so each is cancelled and finished as asyncio means it to be.
        """
        super().dispose()
        for process in (*self.peers, *self.coordinators):
            process.alive = False
        for loop in self.loops:
            loop.finish()


def make_driver_world(script: Script, traced: bool = False) -> World:
    world = DriverWorld(script, traced=traced)
    world.links = Links(world)
    world.make_coordinator, world.make_peer = DriverCoordinator, DriverPeer
    return world


def draw_drivers(seed: int, kind: str = "") -> Script:
    return replace(draw(seed, kind), real_bytes=False, lag_s=0.0)


def run_drivers(script: Script, *, traced: bool = False) -> Result:
    return run(script, traced=traced, make=make_driver_world)
