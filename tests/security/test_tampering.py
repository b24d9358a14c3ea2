"""Words that are changed, cut or said again on their way enrol nobody; who is revoked is out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import pccl
from pccl.base.errors import ConnectError
from pccl.membership.agent_security import Credentials, ask_offer
from pccl.membership.enrolment import (
    Enrolled,
    EnrolProof,
    EnrolRefused,
    enrolment_codec,
    make_proof,
)
from pccl.transport.address import Address, parse_address
from pccl.transport.authority import make_request
from pccl.transport.join_ticket import JoinTicket
from tests.security.laboratory import Laboratory, laboratory
from tests.security.strangers import enrol, is_well, stranger

__all__ = ["laboratory"]


# ---------------------------------------------------------------------- tampering and replay

Tamper = Callable[[bytes], bytes]


async def _with_proof(
    lab: Laboratory, ticket: JoinTicket, change: Callable[[bytes], bytes]
) -> object:
    """Enrols with a proof that was changed; returns the answer, None if there was none."""
    channel = await stranger(lab.address)
    try:
        offer, leaf = await ask_offer(channel, ticket)
        proof = make_proof(ticket, offer, leaf, make_request(Ed25519PrivateKey.generate()))
        body = change(enrolment_codec.encode(proof))
        if body:
            channel.send(body)
        answer = await channel.receive(10) if body else None
        return None if answer is None else enrolment_codec.decode(answer)
    finally:
        channel.abort()


def _run_many(work: list[Callable[[], Awaitable[object]]]) -> list[object]:
    async def story() -> list[object]:
        answers: list[object] = []
        for at in range(0, len(work), 16):
            answers += await asyncio.gather(*(one() for one in work[at : at + 16]))
        return answers

    return asyncio.run(story())


def test_a_proof_with_any_bit_flipped_or_cut_anywhere_enrols_nobody(
    laboratory: Laboratory,
) -> None:
    with laboratory.coordinator():
        ticket = laboratory.ticket()
        length = len(
            enrolment_codec.encode(
                EnrolProof(make_request(Ed25519PrivateKey.generate()), bytes(32))
            )
        )

        def flip(at: int) -> Tamper:
            return lambda body: body[:at] + bytes([body[at] ^ (1 << at % 8)]) + body[at + 1 :]

        def cut(at: int) -> Tamper:
            return lambda body: body[:at]

        changes = [flip(at) for at in range(length)] + [cut(at) for at in range(length)]
        answers = _run_many(
            [partial(_with_proof, laboratory, ticket, change) for change in changes]
        )
        assert len(answers) == 2 * length
        assert not [answer for answer in answers if isinstance(answer, Enrolled)]
        assert laboratory.ca.ledger.tokens()[0].uses == 0
        assert enrol(laboratory.address, ticket).valid, "the ticket is as it was"


def test_a_proof_is_worth_nothing_on_another_connection(laboratory: Laboratory) -> None:
    async def story(ticket: JoinTicket) -> object:
        first, second = await stranger(laboratory.address), await stranger(laboratory.address)
        offer, leaf = await ask_offer(first, ticket)
        proof = make_proof(ticket, offer, leaf, make_request(Ed25519PrivateKey.generate()))
        await ask_offer(second, ticket)
        second.send(enrolment_codec.encode(proof))
        answer = enrolment_codec.decode(await second.receive(10) or b"")
        await first.finish(1)
        await second.finish(1)
        return answer

    with laboratory.coordinator():
        answer = asyncio.run(story(laboratory.ticket()))
    assert isinstance(answer, EnrolRefused) and answer.code == "ticket"


def test_a_bit_flipped_on_the_wire_ends_the_connection_and_is_never_read(
    laboratory: Laboratory,
) -> None:
    """A middleman changes one byte of each thing that a peer says once TLS is up."""
    flipped = 0

    async def middle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal flipped
        where = parse_address(laboratory.address)
        up_reader, up_writer = await asyncio.open_connection(where.host, where.port)

        async def back() -> None:
            while data := await up_reader.read(65536):
                writer.write(data)
            writer.close()

        task = asyncio.create_task(back())
        number = 0
        try:
            while data := await reader.read(65536):
                number += 1
                if number > 1:
                    flipped += 1
                    data = data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]
                up_writer.write(data)
        finally:  # also when the story ends in the middle of it
            task.cancel()
            up_writer.transport.abort()
            writer.transport.abort()

    async def story(ticket: JoinTicket) -> None:
        server = await asyncio.start_server(middle, "127.0.0.1", 0)
        async with server:
            here = Address("127.0.0.1", server.sockets[0].getsockname()[1])
            with pytest.raises(ConnectError):
                await Credentials(ticket, Ed25519PrivateKey.generate()).enrol([here], 2)

    with laboratory.coordinator():
        ticket = laboratory.ticket()
        asyncio.run(story(ticket))
        assert flipped and laboratory.ca.ledger.tokens()[0].uses == 0
        is_well(laboratory)


# ---------------------------------------------------------------------- revocation


def test_a_revoked_member_is_out_and_stays_out(laboratory: Laboratory, tmp_path: Path) -> None:
    identity = tmp_path / "peer.key"
    with laboratory.coordinator():
        ticket = laboratory.ticket(uses=2)
        stays = laboratory.connect(ticket, min_world=1)
        goes = laboratory.connect(ticket, identity=identity)
        ids = stays.peer_id, goes.peer_id
        began_s = time.monotonic()
        laboratory.ca.ledger.revoke(bytes(goes.peer_id).hex(), int(time.time()), "stolen")
        with pytest.raises(pccl.PcclError):
            while time.monotonic() < began_s + 20:
                goes.session.check()
                time.sleep(0.01)
        assert time.monotonic() - began_s < 10
        goes.close()
        with pytest.raises(ConnectError, match="revoked"):
            laboratory.connect(ticket, identity=identity)
        import numpy as np

        value = np.ones(4, np.float32)
        stays.all_reduce(value)
        assert (value == 1).all() and ids[0] != ids[1]
        assert bytes(ids[1]).hex() in {entry["peer"] for entry in laboratory.audit("evicted")}
        stays.close()
