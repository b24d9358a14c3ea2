"""Strangers, misfits and slow readers at a coordinator's port: dropped, counted, harmless."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket

import pytest

from pccl.base.config import ControlLimits
from pccl.membership import precedence
from pccl.membership.events import (
    ConnDown,
    ConnUp,
    Effect,
    Event,
    NativeFrame,
    PeerMessage,
    Send,
    SendNative,
)
from pccl.membership.messages import (
    Installed,
    Leaving,
    Refused,
    StatusReply,
    StatusRequest,
    coordinator_codec,
    peer_codec,
)
from pccl.membership.precedence import HELD_MAX_S
from pccl.transport import native_frames as nf
from pccl.transport.channel import Channel
from pccl.transport.framing import frame
from tests.integration.scripted_machine import (
    HELLO,
    STATUS,
    ScriptedMachine,
    running,
    tell,
)


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "protocol"),
        ((4097).to_bytes(4, "little") + bytes(4097), "protocol"),
        ((0).to_bytes(4, "little"), "protocol"),
        (frame(b"\x91\x63"), "protocol"),
        (frame(b"garbage"), "protocol"),
        (frame(peer_codec.encode(Leaving("I was never here"))), "protocol"),
        (frame(nf.encode(nf.Heartbeat(1, 1, 0, 0, 0))), "protocol"),
        (frame(nf.encode(nf.NativeHello(1, bytes(16), bytes(16), 1, bytes(16)))), "protocol"),
        (frame(nf.encode(HELLO)) + frame(STATUS), "protocol"),
        (frame(STATUS) + frame(nf.encode(HELLO)), "protocol"),
        (b"", "silent"),
        (b"\x05\x00", "silent"),
    ],
)
def test_a_connection_that_misbehaves_is_dropped_and_counted_and_nobody_else_notices(
    first: bytes, reason: str
) -> None:
    async def story() -> None:
        machine = ScriptedMachine()
        limits = ControlLimits(first_frame_timeout_s=0.2)
        async with running(machine, limits=limits) as run:
            good = await run.dial_native()
            await machine.until(lambda told: NativeFrame(1, HELLO) in told)
            reader, writer = await asyncio.open_connection(run.address.host, run.address.port)
            writer.write(first)
            try:
                while await reader.read(4096):
                    pass
            except ConnectionResetError:
                pass
            writer.close()
            assert run.service.drops == {reason: 1}
            assert machine.dropped == 1
            beat = nf.Heartbeat(1, 1, 0, 0, 0)
            good.send(nf.encode(beat))
            await machine.until(lambda told: NativeFrame(1, beat) in told)
            good.close()

    tell(story())


def test_a_hello_of_another_version_is_told_so() -> None:
    async def story() -> None:
        async with running(ScriptedMachine()) as run:
            channel = await run.dial()
            body = bytearray(nf.encode(HELLO))
            body[2] = 200
            channel.send(bytes(body))
            answer = nf.decode(await channel.receive() or b"")
            assert isinstance(answer, nf.RefusedFrame)
            assert answer.code == nf.RefusalCode.PROTOCOL
            assert f"version 200, ours is {nf.VERSION}" in answer.text
            assert await channel.receive() is None

    tell(story())


@pytest.mark.parametrize(
    ("opening", "body", "words"),
    [
        (b"", b"\x91\x63", "unknown tag '99'"),
        (b"", peer_codec.encode(Leaving("never here")), "begins with Leaving instead of Hello"),
        (STATUS, b"\x91\x63", "unknown tag '99'"),
        (STATUS, nf.encode(HELLO), "bad control message"),
    ],
)
def test_a_message_that_is_not_understood_is_answered_before_the_end(
    opening: bytes, body: bytes, words: str
) -> None:
    async def story() -> None:
        async with running(ScriptedMachine()) as run:
            channel = await run.dial()
            for said in (opening, body):
                if said:
                    channel.send(said)
            refused = coordinator_codec.decode(await channel.receive() or b"")
            assert isinstance(refused, Refused)
            assert refused.code == "message" and words in refused.text
            assert "use the same version of pccl" in refused.text
            assert await channel.receive() is None

    tell(story())


@pytest.mark.parametrize(
    ("opening", "body", "words"),
    [
        (b"", nf.encode(nf.Heartbeat(1, 1, 0, 0, 0)), "begins with Heartbeat"),
        (b"", bytes((nf.MAGIC, 99, nf.VERSION)), "type 99 is unknown"),
        (nf.encode(HELLO), bytes((nf.MAGIC, 99, nf.VERSION)), "type 99 is unknown"),
        (nf.encode(HELLO), STATUS, "use the same version of pccl"),
    ],
)
def test_a_native_frame_that_is_not_understood_is_answered_before_the_end(
    opening: bytes, body: bytes, words: str
) -> None:
    async def story() -> None:
        async with running(ScriptedMachine()) as run:
            channel = await run.dial()
            for said in (opening, body):
                if said:
                    channel.send(said)
            refused = nf.decode(await channel.receive() or b"")
            assert isinstance(refused, nf.RefusedFrame)
            assert refused.code == nf.RefusalCode.PROTOCOL and words in refused.text
            assert await channel.receive() is None

    tell(story())


def test_who_speaks_at_once_gets_the_place_of_who_has_been_silent_for_longest() -> None:
    async def story() -> None:
        machine = ScriptedMachine()
        limits = ControlLimits(half_open_max=4, first_frame_timeout_s=30.0)
        async with running(machine, limits=limits) as run:
            where = (run.address.host, run.address.port)
            silent = [socket.create_connection(where) for _ in range(4)]
            while run.service.half_open < 4:
                await asyncio.sleep(0.01)
            speaker = socket.create_connection(where)
            speaker.sendall(frame(nf.encode(HELLO)))  # before the loop runs again
            await machine.until(lambda told: NativeFrame(1, HELLO) in told)
            assert run.service.drops == {"half_open": 1}
            for one in (*silent, speaker):
                one.close()

    tell(story())


def test_without_a_descriptor_left_connections_are_closed_and_members_are_heard() -> None:
    async def story() -> None:
        machine = ScriptedMachine()
        async with running(machine) as run:
            good = await run.dial_native()
            await machine.until(lambda told: NativeFrame(1, HELLO) in told)
            where = (run.address.host, run.address.port)
            waiting = socket.socket()  # while there is a descriptor
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (waiting.fileno() + 1, hard))
            taken = []
            try:
                with contextlib.suppress(OSError):
                    while True:
                        taken.append(os.open(os.devnull, os.O_RDONLY))
                waiting.connect(where)
                beat = nf.Heartbeat(1, 1, 0, 0, 0)
                good.send(nf.encode(beat))
                await machine.until(lambda told: NativeFrame(1, beat) in told)
                while not run.service.drops:
                    await asyncio.sleep(0.01)
                assert run.service.drops == {"descriptors": 1}
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for descriptor in taken:
                    os.close(descriptor)
                waiting.close()
            again = await run.dial_native()
            await machine.until(lambda told: NativeFrame(2, HELLO) in told)
            good.close()
            again.close()

    tell(story())


def test_strangers_who_say_nothing_cannot_take_all_the_places() -> None:
    async def story() -> None:
        machine = ScriptedMachine()
        limits = ControlLimits(half_open_max=2, first_frame_timeout_s=10.0)
        async with running(machine, limits=limits) as run:
            silent = [await run.dial() for _ in range(3)]
            assert await silent[2].receive() is None
            assert run.service.drops == {"half_open": 1}
            silent[0].close()
            silent[1].send(STATUS)
            await machine.until(lambda told: PeerMessage(1, StatusRequest()) in told)
            again = await run.dial_native()
            await machine.until(lambda told: NativeFrame(2, HELLO) in told)
            for channel in (silent[1], again):
                channel.close()

    tell(story())


def test_strangers_wait_for_a_recovery_for_a_moment_and_members_do_not() -> None:
    async def story() -> None:
        machine = ScriptedMachine(welcome)
        async with running(machine) as run:
            clock = asyncio.get_running_loop().time
            member = await run.dial_native()
            await machine.until(lambda told: NativeFrame(1, HELLO) in told)
            machine.urgent = True
            began_s = clock()
            await beat(machine, member, 1)
            stranger = await run.dial_native()
            await beat(machine, member, 2)
            await machine.until(lambda told: NativeFrame(2, HELLO) in told)
            assert clock() - began_s >= HELD_MAX_S
            member.close()
            stranger.close()

    tell(story())


def test_strangers_come_in_as_soon_as_a_recovery_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precedence, "HELD_MAX_S", 3600.0)

    async def story() -> None:
        machine = ScriptedMachine(welcome)
        async with running(machine) as run:
            member = await run.dial_native()
            await machine.until(lambda told: NativeFrame(1, HELLO) in told)
            machine.urgent = True
            await beat(machine, member, 1)
            stranger = await run.dial_native()
            await beat(machine, member, 2)
            assert machine.count(ConnUp) == 1
            machine.urgent = False
            await beat(machine, member, 3)
            await machine.until(lambda told: NativeFrame(2, HELLO) in told)
            member.close()
            stranger.close()

    tell(story())


def welcome(event: Event) -> list[Effect]:
    if isinstance(event, NativeFrame) and event.frame == HELLO:
        return [SendNative(event.conn, nf.Welcome(1))]
    return []


async def beat(machine: ScriptedMachine, member: Channel, number: int) -> None:
    frame = nf.Heartbeat(1, 1, 0, 0, number)
    member.send(nf.encode(frame))
    await machine.until(lambda told: NativeFrame(1, frame) in told)


def test_messages_above_the_rate_cost_the_connection_but_heartbeats_only_time() -> None:
    async def story() -> None:
        machine = ScriptedMachine()
        limits = ControlLimits(
            message_burst_max=10,
            message_rate_per_s=0.1,
            native_burst_max=10,
            native_rate_per_s=2000.0,
        )
        async with running(machine, limits=limits) as run:
            talker, native = await run.dial(), await run.dial_native()
            talker.send(STATUS)
            for _ in range(20):
                talker.send(peer_codec.encode(Installed(1)))
            for number in range(100):
                native.send(nf.encode(nf.Heartbeat(1, 1, 0, 0, number)))
            refused = coordinator_codec.decode(await talker.receive() or b"")
            assert isinstance(refused, Refused) and refused.code == "limit"
            assert await talker.receive() is None
            await machine.until(lambda told: machine.count(NativeFrame) == 101)
            assert machine.count(PeerMessage) == 10
            assert run.service.drops == {"protocol": 1}
            native.close()

    tell(story())


def test_a_peer_that_does_not_read_is_cut_off() -> None:
    def answer(event: Event) -> list[Effect]:
        if isinstance(event, PeerMessage):
            reply = StatusReply(b'{"x":"' + b"y" * 100_000 + b'"}')
            return [Send(event.conn, reply) for _ in range(200)]
        return []

    async def story() -> None:
        machine = ScriptedMachine(answer)
        async with running(machine) as run:
            with socket.create_connection((run.address.host, run.address.port)) as stuck:
                stuck.sendall(frame(STATUS))
                await machine.until(lambda told: ConnDown(1) in told)

    tell(story())
