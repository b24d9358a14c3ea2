"""An asyncio event loop in virtual time: a process of the world, turned by it.

The loop runs when something is ready or a timer is due, one turn per event of the world, and its
clock is the world's.  Connections are the world's wires.  Its death is simply not to be turned any
more: no `finally` block runs, no task is cancelled, as when a process is killed.
"""

from __future__ import annotations

import asyncio
from asyncio import base_events, events
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from tests.sim.drivers.streams import Accepted, VirtualTransport
from tests.sim.world import Process, Wire, World

PEER_PORT_FIRST: Final = 4000
FINISH_TURNS_MAX: Final = 50
EVENT_FD: Final = 77  # of an engine


class _NoSelector:
    def select(self, timeout: float | None) -> list[Any]:
        return []

    def close(self) -> None:
        return None


class VirtualLoop(base_events.BaseEventLoop):
    """One process's loop."""

    _ready: Any  # of BaseEventLoop, whose turn `_run_once` is; no stub names them
    _scheduled: Any
    _run_once: Callable[[], None]

    def __init__(self, world: World, process: Process) -> None:
        super().__init__()
        self.world = world
        world.loops.append(self)  # type: ignore[attr-defined]  # of a DriverWorld
        self.process = process
        self.readers: dict[int, Callable[[], object]] = {}
        self.transports: list[VirtualTransport] = []
        self.turns_left = 0  # then the process dies, if it is not 0 now
        self.on_last_turn: Callable[[], None] = lambda: None
        self.dial: Callable[[int, Callable[[Wire | None], None]], None] | None = None
        self.errors: list[str] = []
        self._selector = _NoSelector()
        self._armed = False
        self.set_exception_handler(self._on_error)

    def _on_error(self, loop: object, context: dict[str, Any]) -> None:
        self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")

    # ------------------------------------------------------------ turning

    def time(self) -> float:
        return self.world.now_s

    def call_soon(  # type: ignore[override]  # the same, less exactly typed; so below
        self, callback: Any, *args: Any, context: Any = None
    ) -> Any:
        handle = super().call_soon(callback, *args, context=context)
        self._arm()
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> Any:
        handle = super().call_at(when, callback, *args, context=context)
        self.world.at(when, self.process, self.turn)
        return handle

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self.world.at(self.world.now_s, self.process, self._ready_turn)

    def _ready_turn(self) -> None:
        self._armed = False
        self.turn()

    def turn(self) -> None:
        if self.turns_left:
            self.turns_left -= 1
            if self.turns_left == 0:
                self.on_last_turn()
                return
        outer = events._get_running_loop()
        events._set_running_loop(self)
        try:
            self._run_once()
        finally:
            events._set_running_loop(outer)
        if self._ready:
            self._arm()
        assert not self.errors, f"{self.process}: {self.errors[0]}"

    def finish(self) -> None:
        """Cancels what is left and lets it end; after the run."""
        for transport in self.transports:
            transport.forget()
        for _ in range(FINISH_TURNS_MAX):
            tasks = asyncio.all_tasks(self)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            events._set_running_loop(self)
            try:
                self._run_once()
            finally:
                events._set_running_loop(None)
        self._ready.clear()
        self._scheduled.clear()
        self.close()

    def _process_events(self, event_list: Any) -> None:
        return None

    def _write_to_self(self) -> None:
        self._arm()

    # ------------------------------------------------------------ what a process needs of it

    def add_reader(  # type: ignore[override]
        self, fd: Any, callback: Any, *args: Any
    ) -> None:
        self.readers[fd] = partial(callback, *args)
        self.call_soon(self.readers[fd])

    def remove_reader(self, fd: Any) -> bool:
        return self.readers.pop(fd, None) is not None

    def readable(self, fd: int) -> None:
        if fd in self.readers:
            self.call_soon(self.readers[fd])

    async def create_connection(  # type: ignore[override]  # as much as open_connection uses
        self, protocol_factory: Any, host: str, port: int, **_: Any
    ) -> tuple[VirtualTransport, Any]:
        assert self.dial is not None
        answered: asyncio.Future[Wire | None] = self.create_future()

        def answer(wire: Wire | None) -> None:
            if not answered.done():
                answered.set_result(wire)

        self.dial(port, answer)
        wire = await answered
        if wire is None:
            raise ConnectionRefusedError("nobody listens there")
        protocol = protocol_factory()
        transport = VirtualTransport(self, wire, protocol, up=True)
        self.transports.append(transport)
        return transport, protocol

    async def connect_accepted_socket(
        self, protocol_factory: Any, sock: Any, **_: Any
    ) -> tuple[VirtualTransport, Any]:
        assert isinstance(sock, Accepted)
        protocol = protocol_factory()
        transport = sock.open(self, protocol)
        self.transports.append(transport)
        return transport, protocol

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> Any:
        """The journal's thread: it takes as long as the process says."""
        future = self.create_future()
        self.in_executor(partial(func, *args), future)
        return future

    in_executor: Callable[[Callable[[], Any], asyncio.Future[Any]], None]
