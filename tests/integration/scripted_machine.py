"""A driver under test: a scripted machine behind it, clients on real sockets in front."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from pccl.base.clock import Clock, system_clock
from pccl.base.config import ControlLimits
from pccl.membership.events import Effect, Event
from pccl.membership.messages import StatusRequest, World, peer_codec
from pccl.membership.service_driver import CoordinatorService
from pccl.transport import native_frames as nf
from pccl.transport.address import Address
from pccl.transport.channel import Channel

STORY_TIMEOUT_S = 20.0
HELLO = nf.NativeHello(0, bytes(16), b"p" * 16, 1, b"s" * 16)
STATUS = peer_codec.encode(StatusRequest())
ANY = Address("127.0.0.1", 0)


class ScriptedMachine:
    """Writes down what it is told, and answers as the story says."""

    def __init__(self, answer: Callable[[Event], list[Effect]] = lambda event: []) -> None:
        self.deadline_s: float | None = None
        self.urgent = False
        self.outdated = ""
        self.told: list[Event | str] = []
        self.dropped = 0
        self.answer = answer
        self._changed = asyncio.Event()

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        self._note(event)
        return self.answer(event)

    def on_deadline(self, now_s: float) -> list[Effect]:
        self.deadline_s = None
        self._note("deadline")
        return []

    def dropped_frame(self) -> None:
        self.dropped += 1

    async def until(self, holds: Callable[[list[Event | str]], bool]) -> None:
        while not holds(self.told):
            self._changed.clear()
            await self._changed.wait()

    def count(self, kind: type) -> int:
        return sum(isinstance(event, kind) for event in self.told)

    def _note(self, event: Event | str) -> None:
        self.told.append(event)
        self._changed.set()


class Running:
    """A driver at work, and the clients of a story."""

    def __init__(self, service: CoordinatorService, address: Address, task: Any) -> None:
        self.service, self.address, self.task = service, address, task

    async def dial(self) -> Channel:
        reader, writer = await asyncio.open_connection(self.address.host, self.address.port)
        return Channel(reader, writer, trusted=True)

    async def dial_native(self) -> Channel:
        channel = await self.dial()
        channel.send(nf.encode(HELLO))
        return channel


@asynccontextmanager
async def running(
    machine: ScriptedMachine,
    write_record: Callable[[Any], None] = lambda record: None,
    *,
    settle: Callable[[], None] = lambda: None,
    limits: ControlLimits | None = None,
    clock: Clock = system_clock,
) -> AsyncIterator[Running]:
    service = CoordinatorService(machine, write_record, settle=settle, limits=limits, clock=clock)
    address = await service.listen(ANY)
    task = asyncio.create_task(service.run())
    try:
        async with asyncio.timeout(STORY_TIMEOUT_S):
            yield Running(service, address, task)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def tell(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


def world(number: int) -> World:
    return World(number, 0, 0)
