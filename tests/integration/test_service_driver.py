"""The coordinator's driver with a scripted machine behind it and real sockets in front."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from pccl.base.clock import ManualClock, system_clock
from pccl.base.config import ControlLimits
from pccl.base.errors import PcclError, UsageError
from pccl.membership.events import (
    Close,
    ConnDown,
    ConnUp,
    Dialled,
    Effect,
    Event,
    NativeFrame,
    Paused,
    PeerMessage,
    Persist,
    ProbeListener,
    Send,
    SendNative,
    Synced,
)
from pccl.membership.messages import (
    StatusReply,
    StatusRequest,
    WaitFor,
    coordinator_codec,
    peer_codec,
)
from pccl.membership.service_driver import CoordinatorService
from pccl.transport import native_frames as nf
from pccl.transport.address import Address
from pccl.transport.framing import frame
from tests.integration.scripted_machine import (
    STATUS,
    STORY_TIMEOUT_S,
    ScriptedMachine,
    running,
    tell,
    world,
)

RECORD: Any = "a record"  # the driver does not look into it


def test_a_connection_is_announced_then_heard_then_mourned() -> None:
    async def story() -> None:
        machine = ScriptedMachine()
        async with running(machine) as run:
            channel = await run.dial()
            channel.send(STATUS)
            channel.send(peer_codec.encode(WaitFor(3)))
            await machine.until(lambda told: len(told) == 3)
            channel.close()
            await machine.until(lambda told: len(told) == 4)
        assert machine.told == [
            ConnUp(1, "127.0.0.1"),
            PeerMessage(1, StatusRequest()),
            PeerMessage(1, WaitFor(3)),
            ConnDown(1),
        ]

    tell(story())


def test_both_kinds_of_connections_share_the_port_and_get_their_own_kind_of_answer() -> None:
    def answer(event: Event) -> list[Effect]:
        match event:
            case PeerMessage(conn, StatusRequest()):
                return [SendNative(conn, nf.Pong(1, 1)), Send(conn, world(5))]
            case NativeFrame(conn, nf.NativeHello()):
                return [Send(conn, world(5)), SendNative(conn, nf.Welcome(9)), Close(conn)]
            case _:
                return []

    async def story() -> None:
        async with running(ScriptedMachine(answer)) as run:
            agent, native = await run.dial(), await run.dial_native()
            agent.send(STATUS)
            assert coordinator_codec.decode(await agent.receive() or b"") == world(5)
            assert nf.decode(await native.receive() or b"") == nf.Welcome(9)
            assert await native.receive() is None
            agent.close()

    tell(story())


def test_nothing_is_sent_after_a_persist_until_the_record_is_durable() -> None:
    durable = threading.Event()
    written: list[Any] = []

    def write_record(record: Any) -> None:
        assert durable.wait(STORY_TIMEOUT_S)
        written.append(record)

    def answer(event: Event) -> list[Effect]:
        match event:
            case PeerMessage(conn, StatusRequest()):
                return [Send(conn, world(1)), Persist(1, RECORD), Send(conn, world(2))]
            case PeerMessage(conn, WaitFor()):
                return [Send(conn, world(3))]
            case Synced():
                assert written == [RECORD]
                return []
            case _:
                return []

    async def story() -> None:
        machine = ScriptedMachine(answer)
        async with running(machine, write_record) as run:
            channel = await run.dial()
            channel.send(STATUS)
            assert coordinator_codec.decode(await channel.receive() or b"") == world(1)
            channel.send(peer_codec.encode(WaitFor(1)))
            await machine.until(lambda told: PeerMessage(1, WaitFor(1)) in told)
            early = asyncio.create_task(channel.receive())
            done, _ = await asyncio.wait([early], timeout=0.05)
            assert not done, "an answer left before the record was durable"
            durable.set()
            assert coordinator_codec.decode(await early or b"") == world(2)
            assert coordinator_codec.decode(await channel.receive() or b"") == world(3)
            channel.close()

    tell(story())


def test_records_that_come_during_a_write_share_the_next_one() -> None:
    """As many newcomers at once cost members two writes, not one each."""
    began, go_on = threading.Event(), threading.Event()
    written: list[Any] = []

    def write_record(record: Any) -> None:
        began.set()
        assert go_on.wait(STORY_TIMEOUT_S)
        written.append(record)

    def answer(event: Event) -> list[Effect]:
        match event:
            case PeerMessage(conn, WaitFor(number)):
                record: Any = number
                return [Persist(number, record), Send(conn, world(number))]
            case Synced(token):
                assert token in written
                return []
            case _:
                return []

    async def story() -> None:
        machine = ScriptedMachine(answer)
        async with running(machine, write_record) as run:
            channel = await run.dial()
            channel.send(STATUS)
            channel.send(peer_codec.encode(WaitFor(1)))
            await asyncio.to_thread(began.wait, STORY_TIMEOUT_S)
            for number in range(2, 101):
                channel.send(peer_codec.encode(WaitFor(number)))
            await machine.until(lambda told: PeerMessage(1, WaitFor(100)) in told)
            go_on.set()
            for number in range(1, 101):
                assert coordinator_codec.decode(await channel.receive() or b"") == world(number)
            channel.close()
        assert written == [1, 100]

    tell(story())


def test_a_journal_is_settled_when_no_record_follows_and_never_before_its_answer() -> None:
    done: list[str] = []
    settled = threading.Event()

    def settle() -> None:
        done.append("settled")
        settled.set()

    def answer(event: Event) -> list[Effect]:
        match event:
            case PeerMessage(conn, WaitFor(number)):
                return [Persist(number, RECORD), Send(conn, world(number))]
            case Synced(token):
                done.append(f"answered {token}")
                return []
            case _:
                return []

    async def story() -> None:
        machine = ScriptedMachine(answer)
        async with running(machine, lambda record: None, settle=settle) as run:
            channel = await run.dial()
            channel.send(STATUS)
            channel.send(peer_codec.encode(WaitFor(1)))
            await channel.receive()
            assert await asyncio.to_thread(settled.wait, STORY_TIMEOUT_S)
            channel.close()
        assert done == ["answered 1", "settled"]

    tell(story())


def test_a_journal_that_cannot_be_settled_stops_the_coordinator() -> None:
    def settle() -> None:
        raise OSError(5, "Input/output error")

    def answer(event: Event) -> list[Effect]:
        return [Persist(1, RECORD)] if isinstance(event, PeerMessage) else []

    async def story() -> None:
        async with running(ScriptedMachine(answer), settle=settle) as run:
            channel = await run.dial()
            channel.send(STATUS)
            assert await channel.receive() is None
            with pytest.raises(PcclError, match="Input/output error"):
                await run.task

    tell(story())


def test_a_coordinator_that_cannot_write_stops_and_says_nothing_more() -> None:
    def write_record(record: Any) -> None:
        raise OSError(28, "No space left on device")

    def answer(event: Event) -> list[Effect]:
        if isinstance(event, PeerMessage):
            return [Persist(1, RECORD), Send(event.conn, world(1))]
        return []

    async def story() -> None:
        async with running(ScriptedMachine(answer), write_record) as run:
            channel = await run.dial()
            channel.send(STATUS)
            assert await channel.receive() is None
            with pytest.raises(PcclError, match="No space left on device"):
                await run.task

    tell(story())


def test_a_pause_between_two_events_of_one_turn_is_told_before_the_second() -> None:
    clock = ManualClock()
    machine = ScriptedMachine()

    def answer(event: Event) -> list[Effect]:
        if event == ConnUp(1, "127.0.0.1"):
            clock.advance(60.0)  # the first message lies in the inbox already
        return []

    async def story() -> None:
        machine.answer = answer
        async with running(machine, clock=clock) as run:
            channel = await run.dial()
            channel.send(STATUS)
            await machine.until(lambda told: len(told) >= 3)
            channel.close()

    tell(story())
    assert machine.told[:3] == [
        ConnUp(1, "127.0.0.1"),
        Paused(60.0),
        PeerMessage(1, StatusRequest()),
    ]


@pytest.mark.parametrize(("late_s", "reported"), [(60.0, [Paused(60.0)]), (0.4, [])])
def test_a_coordinator_that_was_late_hears_everybody_before_it_judges_anybody(
    late_s: float, reported: list[Event]
) -> None:
    clock = ManualClock()
    machine = ScriptedMachine()
    late = socket.socket()

    def answer(event: Event) -> list[Effect]:
        if event == PeerMessage(1, StatusRequest()):
            # The process stands still; meanwhile another peer's message arrives, and a deadline
            # passes.
            late.sendall(frame(peer_codec.encode(WaitFor(7))))
            machine.deadline_s = clock() + late_s / 2
            clock.advance(late_s)
        return []

    async def story() -> None:
        machine.answer = answer
        async with running(machine, clock=clock) as run:
            late.connect((run.address.host, run.address.port))
            late.sendall(frame(STATUS))
            await machine.until(lambda told: "deadline" in told)

    with late:
        tell(story())
    assert machine.told == [
        ConnUp(1, "127.0.0.1"),
        PeerMessage(1, StatusRequest()),
        *reported,
        PeerMessage(1, WaitFor(7)),
        "deadline",
    ]


def test_a_flood_of_messages_does_not_stop_time() -> None:
    async def story() -> None:
        machine = ScriptedMachine()
        limits = ControlLimits(native_burst_max=10**9, native_rate_per_s=1e9)
        async with running(machine, limits=limits) as run:
            channel = await run.dial_native()
            beat = nf.encode(nf.Heartbeat(1, 1, 0, 0, 0))
            machine.deadline_s = system_clock()

            async def flood() -> None:
                while "deadline" not in machine.told:
                    channel.send(beat)
                    await asyncio.sleep(0)

            await flood()
            channel.close()

    tell(story())


def test_a_probe_reports_whether_somebody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as alive, socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))  # bound but not listening: the kernel refuses
        ports = {b"a": alive.getsockname()[1], b"d": dead.getsockname()[1]}

        def answer(event: Event) -> list[Effect]:
            if isinstance(event, PeerMessage):
                return [ProbeListener(k, 1, "127.0.0.1", port, 1.0) for k, port in ports.items()]
            return []

        async def story() -> None:
            machine = ScriptedMachine(answer)
            async with running(machine) as run:
                channel = await run.dial()
                channel.send(STATUS)
                await machine.until(lambda told: machine.count(Dialled) == 2)
                channel.close()
            assert Dialled(b"a", 1, True) in machine.told
            assert Dialled(b"d", 1, False) in machine.told

        tell(story())


def test_a_status_says_what_only_the_driver_knows() -> None:
    def answer(event: Event) -> list[Effect]:
        if isinstance(event, PeerMessage):
            return [Send(event.conn, StatusReply(b'{"epoch":3}'))]
        return []

    async def story() -> None:
        async with running(ScriptedMachine(answer)) as run:
            channel = await run.dial()
            channel.send(STATUS)
            reply = coordinator_codec.decode(await channel.receive() or b"")
            assert reply == StatusReply(
                b'{"epoch":3,"connections":{"open":1,"half_open":0,"accepted":1,"dropped":0,'
                b'"dropped_by_reason":{}},"secured":false}'
            )
            channel.close()

    tell(story())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_an_address_others_can_reach_needs_a_yes(host: str) -> None:
    async def story() -> None:
        service = CoordinatorService(ScriptedMachine(), lambda record: None)
        with pytest.raises(UsageError, match="--insecure"):
            await service.listen(Address(host, 0))

    tell(story())
