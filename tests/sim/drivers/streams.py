"""Transports over the world's wires: bytes in order, split anywhere, with resets in between."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from tests.sim.world import Wire

if TYPE_CHECKING:
    from tests.sim.drivers.loop import VirtualLoop

SPLIT_CHANCE: Final = 0.1  # that a write arrives in two pieces


class VirtualTransport(asyncio.Transport):
    def __init__(self, loop: VirtualLoop, wire: Wire, protocol: Any, *, up: bool) -> None:
        super().__init__()
        self._loop = loop
        self._wire = wire
        self._protocol = protocol
        self._up = up  # this is the peer's end
        self._closing = False
        self._ended = False
        if up:
            wire.on_message, wire.on_closed = self.feed, self.lost
        loop.call_soon(protocol.connection_made, self)

    # ------------------------------------------------------------ for the program

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "peername":
            return ("127.0.0.1", 9000 if self._up else 5000 + self._wire.peer.index)
        return ("127.0.0.1", 5000) if name == "sockname" else default

    def is_closing(self) -> bool:
        return self._closing

    def get_protocol(self) -> Any:
        return self._protocol

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        return None

    def resume_reading(self) -> None:
        return None

    def can_write_eof(self) -> bool:
        return False

    def write(self, data: Any) -> None:
        if self._closing or not self._loop.process.alive:
            return
        data = bytes(data)
        world = self._loop.world
        send = world.send_up if self._up else world.send_down
        if len(data) > 1 and world.rng.random() < SPLIT_CHANCE:
            cut = world.rng.randrange(1, len(data))
            send(self._wire, data[:cut])
            data = data[cut:]
        send(self._wire, data)

    def close(self) -> None:
        self._close()

    def abort(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if not self._loop.process.alive:
            return
        world = self._loop.world
        if self._up:
            world.close_up(self._wire)
        else:
            world.close_down(self._wire)
        self._loop.call_soon(self._end)

    def forget(self) -> None:
        self._closing = self._ended = True

    # ------------------------------------------------------------ from the other end

    def feed(self, data: bytes) -> None:
        if not self._closing and not self._ended:
            self._loop.call_soon(self._deliver, data)

    def _deliver(self, data: bytes) -> None:
        if not self._closing and not self._ended:
            self._protocol.data_received(data)

    def lost(self) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._end)

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._protocol.eof_received()
            self._protocol.connection_lost(None)


class Accepted:
    """What stands for an accepted socket until a transport takes it over."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.transport: VirtualTransport | None = None
        self._early: list[bytes] = []
        self._lost = False

    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", 5000 + self.wire.peer.index)

    def close(self) -> None:
        if self.transport is None:
            self.wire.coordinator.world.close_down(self.wire)

    def open(self, loop: VirtualLoop, protocol: Any) -> VirtualTransport:
        self.transport = VirtualTransport(loop, self.wire, protocol, up=False)
        for data in self._early:
            self.transport.feed(data)
        if self._lost:
            self.transport.lost()
        return self.transport

    def feed(self, data: bytes) -> None:
        if self.transport is None:
            self._early.append(data)
        else:
            self.transport.feed(data)

    def lost(self) -> None:
        self._lost = True
        if self.transport is not None:
            self.transport.lost()
