"""A holder of a certificate that does too much is held up; its victims would be all others."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from pccl.base.config import ControlLimits
from pccl.base.errors import RemoteError
from pccl.membership.messages import (
    Refused,
    StatusReply,
    StatusRequest,
    coordinator_codec,
    peer_codec,
)
from pccl.membership.service_security import Security
from pccl.transport.channel import Channel
from pccl.transport.handshake_pace import HandshakePace
from pccl.transport.identity import TlsMaterial
from tests.integration.peer_processes import PeerProcess
from tests.security.laboratory import Laboratory, eventually, laboratory, reopened
from tests.security.strangers import enrol, is_well, member

__all__ = ["laboratory"]
PROGRAM = Path(__file__).with_name("secured_peer.py")

FEW = ControlLimits(
    identity_connections_max=6, identity_opening_burst_max=10, identity_opening_rate_per_s=0.5
)
ASKED = peer_codec.encode(StatusRequest())


async def ask(address: str, material: TlsMaterial) -> object:
    """What a connection by this certificate hears when it asks for the status, and ends."""
    channel = await member(address, material)
    channel.send(ASKED)
    answer = await channel.receive(10)
    await channel.finish(1)
    return None if answer is None else coordinator_codec.decode(answer)


def test_connections_in_a_loop_come_to_their_end_and_all_others_go_on(
    laboratory: Laboratory,
) -> None:
    with laboratory.coordinator(limits=FEW):
        unruly = enrol(laboratory.address, laboratory.ticket()).material
        assert unruly is not None
        with laboratory.connect(laboratory.ticket(), min_world=1) as comm:
            answers = [asyncio.run(ask(laboratory.address, unruly)) for _ in range(14)]
            served = [a for a in answers if isinstance(a, StatusReply)]
            refused = [a for a in answers if isinstance(a, Refused)]
            assert 10 <= len(served) < 14 and len(served) + len(refused) == 14
            assert {answer.code for answer in refused} == {"crowded"}
            assert laboratory.audit("refused")[-1]["code"] == "limit"

            value = np.ones(8, np.float32)
            comm.all_reduce(value)
            assert (value == 1).all()
            is_well(laboratory)


def test_so_many_connections_of_one_certificate_are_open_at_once(laboratory: Laboratory) -> None:
    async def story(material: TlsMaterial) -> list[object]:
        channels: list[Channel] = []
        answers: list[object] = []
        for _ in range(FEW.identity_connections_max + 1):
            channels.append(await member(laboratory.address, material))
            channels[-1].send(ASKED)
            answers.append(coordinator_codec.decode(await channels[-1].receive(10) or b""))
        channels[0].send(ASKED)  # those that were there before are not touched
        answers.append(coordinator_codec.decode(await channels[0].receive(10) or b""))
        for channel in channels:
            await channel.finish(1)
        return answers

    with laboratory.coordinator(limits=FEW):
        material = enrol(laboratory.address, laboratory.ticket()).material
        assert material is not None
        *served, refused, last = asyncio.run(story(material))
        assert all(isinstance(answer, StatusReply) for answer in (*served, last))
        assert isinstance(refused, Refused) and refused.code == "crowded"


def test_connections_that_began_with_nonsense_are_counted_out_again(laboratory: Laboratory) -> None:
    async def told(material: TlsMaterial, said: bytes) -> object:
        channel = await member(laboratory.address, material)
        channel.send(said)
        answer = await channel.receive(10)
        await channel.finish(1)
        return coordinator_codec.decode(answer or b"")

    with laboratory.coordinator():
        material = enrol(laboratory.address, laboratory.ticket()).material
        assert material is not None
        for _ in range(ControlLimits().identity_connections_max + 1):
            answer = asyncio.run(told(material, b"\x91\x7f"))
            assert isinstance(answer, Refused) and answer.code == "message"
        assert isinstance(asyncio.run(told(material, ASKED)), StatusReply)


def test_messages_have_one_rate_over_all_connections_of_a_certificate(
    laboratory: Laboratory,
) -> None:
    limits = ControlLimits(message_burst_max=20, message_rate_per_s=0.01)

    async def asked(material: TlsMaterial, times: int) -> list[object]:
        channel = await member(laboratory.address, material)
        answers: list[object] = []
        for _ in range(times):
            channel.send(ASKED)
            body = await channel.receive(10)
            answers.append(body and coordinator_codec.decode(body))
        await channel.finish(1)
        return answers

    with laboratory.coordinator(limits=limits):
        material = enrol(laboratory.address, laboratory.ticket()).material
        assert material is not None
        first = asyncio.run(asked(material, 15))
        second = asyncio.run(asked(material, 6))
        assert all(isinstance(answer, StatusReply) for answer in first + second[:5])
        assert isinstance(second[5], Refused) and second[5].code == "limit"
        is_well(laboratory)


class Remote:
    """As much of a channel as a guard asks of one that it refuses or lets in."""

    def __init__(self, host: str) -> None:
        self.remote_host = host

    def send(self, body: bytes) -> None:
        assert isinstance(coordinator_codec.decode(body), Refused)

    def close(self, reason: str) -> None:
        assert reason


@pytest.mark.parametrize("where", ["10.0.0.7", "::ffff:10.0.0.7", "2001:db8::7", "fe80::7%eth0"])
def test_members_come_first_however_their_address_is_written(
    laboratory: Laboratory, where: str
) -> None:
    def first_of_two() -> int | None:
        pace = HandshakePace(rate_per_s=1, burst=9, now_s=0.0)
        pace.ask(1, "10.9.9.9")
        pace.ask(2, where)
        return pace.grant(0.0, security._is_preferred)

    security = Security(reopened(laboratory), limits=FEW)
    channel = cast(Channel, Remote(where))
    try:
        guard = security._guard(channel, None, ASKED, b"somebody")
        assert first_of_two() == 1
        guard.let_in(native=True)
        assert first_of_two() == 2
        for _ in range(FEW.identity_connections_max - 1):
            security._guard(channel, None, ASKED, b"somebody")
        assert first_of_two() == 2
        with pytest.raises(RemoteError):
            security._guard(channel, None, ASKED, b"somebody")
        assert first_of_two() == 1  # it misbehaves
        with guard:
            pass  # its connection, from begin to end
        assert not security._members
    finally:
        security.close()


def test_a_member_that_dies_without_a_word_is_in_the_audit_log(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is there to be told; the log says who it was and why it was given up."""
    with laboratory.coordinator(), laboratory.connect(laboratory.ticket(), min_world=1) as comm:
        monkeypatch.setenv("PCCL_TEST_PORTS", "0:1")  # nobody listens where it says it does
        monkeypatch.setenv("PCCL_TICKET", laboratory.ticket().text)
        victim = PeerProcess(laboratory.address, "loop", 0, 0, PROGRAM)
        monkeypatch.delenv("PCCL_TICKET")
        try:
            peer = victim.fact_with("peer")["peer"]
            victim.send(signal.SIGKILL)
            eventually(lambda: bool(laboratory.audit("lost")))
        finally:
            victim.discard()
        (lost,) = laboratory.audit("lost")
        assert lost["peer"].startswith(peer[:8]) and lost["reason"]
        value = np.ones(8, np.float32)
        comm.all_reduce(value)
        assert (value == 1).all()
