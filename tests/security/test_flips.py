"""Every bit of every message of an enrolment, turned: nobody gets a certificate by it that he would
not have got, nobody gives his ticket's proof to anybody else, and no certificate is believed.

TLS keeps such bits from coming at all (test_tampering.py, and the native tests); here the messages
are looked at as if it did not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pccl.base.config import ControlLimits
from pccl.base.errors import PcclError, RemoteError
from pccl.membership.agent_security import ask_offer
from pccl.membership.enrolment import (
    ENROLMENT_VERSION,
    Enrolled,
    EnrolmentMessage,
    EnrolOffer,
    EnrolProof,
    EnrolRefused,
    EnrolRequest,
    Renew,
    StatusProof,
    Token,
    WrongRun,
    check_offer,
    enrolment_codec,
    is_proved,
    make_proof,
    status_mac,
    take_certificate,
)
from pccl.transport.authority import key_of_request, make_request
from pccl.transport.channel import Channel
from pccl.transport.identity import Role, TlsMaterial
from pccl.transport.join_ticket import JoinTicket
from tests.security.laboratory import Laboratory, laboratory
from tests.security.strangers import enrol, is_well, member, stranger

__all__ = ["laboratory"]


@dataclass
class Scene:
    """What both ends hold in the middle of an enrolment."""

    ticket: JoinTicket
    token: Token
    key: Ed25519PrivateKey
    offer: EnrolOffer
    leaf: bytes  # the coordinator's
    now_s: float

    @property
    def public(self) -> bytes:
        return self.key.public_key().public_bytes_raw()


@pytest.fixture
def scene(laboratory: Laboratory) -> Scene:
    now_s = time.time()
    ticket, ca = laboratory.ticket(), laboratory.ca.authority
    own = Ed25519PrivateKey.generate()
    return Scene(
        ticket,
        Token(ticket.token_id, ticket.secret, Role.TRAINER),
        Ed25519PrivateKey.generate(),
        EnrolOffer(ENROLMENT_VERSION, ca.certificate_der, bytes(range(32))),
        ca.issue_coordinator(own.public_key(), laboratory.ca.new_serial(), now_s, 3600),
        now_s,
    )


def turned(message: EnrolmentMessage) -> Iterator[tuple[int, EnrolmentMessage]]:
    """What a message becomes by each turned bit, as far as it becomes a message at all."""
    body = enrolment_codec.encode(message)
    for bit in range(8 * len(body)):
        changed = bytearray(body)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            yield bit, enrolment_codec.decode(bytes(changed))
        except RemoteError:
            continue


def test_by_a_turned_offer_nobody_proves_anything(scene: Scene) -> None:
    passed = 0
    for bit, message in turned(scene.offer):
        if not isinstance(message, EnrolOffer):
            continue  # not what was asked for: `ask_offer` ends there
        try:
            check_offer(message, scene.ticket, scene.leaf, scene.now_s)
        except WrongRun:
            continue
        passed += 1
        proof = make_proof(scene.ticket, message, scene.leaf, make_request(scene.key))
        good = is_proved(proof, scene.token, scene.leaf, scene.offer.nonce)
        assert good == (message.nonce == scene.offer.nonce), bit
        assert message.ca_certificate == scene.offer.ca_certificate, bit
    assert passed >= 8 * 32, "the bits of the nonce come that far"


def test_another_coordinators_certificate_with_a_turned_bit_proves_nothing(scene: Scene) -> None:
    for bit in range(8 * len(scene.leaf)):
        leaf = bytearray(scene.leaf)
        leaf[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WrongRun):
            check_offer(scene.offer, scene.ticket, bytes(leaf), scene.now_s)


def test_no_turned_proof_is_one(scene: Scene) -> None:
    enrolling = make_proof(scene.ticket, scene.offer, scene.leaf, make_request(scene.key))
    asking = StatusProof(status_mac(scene.ticket.secret, scene.leaf, scene.offer.nonce))
    for whole in (enrolling, asking):
        assert is_proved(whole, scene.token, scene.leaf, scene.offer.nonce)
        tried = 0
        for bit, message in turned(whole):
            if isinstance(message, EnrolProof | StatusProof):
                tried += 1
                assert not is_proved(message, scene.token, scene.leaf, scene.offer.nonce), bit
        assert tried >= 8 * 32
    # Nor is a proof of the one kind one of the other.
    assert not is_proved(StatusProof(enrolling.mac), scene.token, scene.leaf, scene.offer.nonce)


def test_no_turned_request_asks_for_another_key(scene: Scene) -> None:
    request = make_request(scene.key)
    for bit in range(8 * len(request)):
        changed = bytearray(request)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RemoteError):
            key_of_request(bytes(changed))
    assert key_of_request(request).public_bytes_raw() == scene.public


def test_no_turned_certificate_is_taken(laboratory: Laboratory, scene: Scene) -> None:
    ca = laboratory.ca.authority
    leaf = ca.issue_peer(
        scene.key.public_key(), Role.TRAINER, laboratory.ca.new_serial(), scene.now_s, 3600
    )
    whole, taken = Enrolled(leaf, 3600.0), 0
    for bit, message in turned(whole):
        try:
            answer = take_certificate(message, scene.public, ca.certificate_der, scene.now_s)
        except PcclError:
            continue
        taken += 1
        assert answer.certificate == leaf, bit  # only when to renew it was turned
    assert 0 < taken <= 8 * 8
    refused = EnrolRefused("ticket", "no such ticket")
    for _, message in turned(refused):
        with pytest.raises(PcclError):
            take_certificate(message, scene.public, ca.certificate_der, scene.now_s)


# ---------------------------------------------------------------------- at a coordinator

Turn = Callable[[bytes], bytes]


def turn_at(at: int) -> Turn:
    return lambda body: body[:at] + bytes([body[at] ^ 1 << at % 8]) + body[at + 1 :]


async def answer_to(channel: Channel, body: bytes) -> EnrolmentMessage | None:
    try:
        channel.send(body)
        answer = await channel.receive(10)
        return None if answer is None else enrolment_codec.decode(answer)
    except PcclError:
        return None
    finally:
        channel.abort()


async def asks(lab: Laboratory, ticket: JoinTicket, turn: Turn) -> EnrolmentMessage | None:
    body = enrolment_codec.encode(EnrolRequest(ENROLMENT_VERSION, ticket.token_id))
    channel = await stranger(lab.address)
    answer = await answer_to(channel, turn(body))
    if not isinstance(answer, EnrolOffer):
        return answer
    return replace(answer, nonce=bytes(32))  # an offer tells nothing: it is made for anybody


async def asks_for_status(lab: Laboratory, ticket: JoinTicket, turn: Turn) -> object:
    channel = await stranger(lab.address)
    offer, leaf = await ask_offer(channel, ticket)
    said = enrolment_codec.encode(StatusProof(status_mac(ticket.secret, leaf, offer.nonce)))
    return await answer_to(channel, turn(said))


async def renews(lab: Laboratory, material: TlsMaterial, body: bytes) -> object:
    return await answer_to(await member(lab.address, material), body)


def in_sixteens(work: list[Callable[[], Awaitable[object]]]) -> list[object]:
    async def story() -> list[object]:
        answers: list[object] = []
        for at in range(0, len(work), 16):
            answers += await asyncio.gather(*(one() for one in work[at : at + 16]))
        return answers

    return asyncio.run(story())


def test_a_coordinator_gives_no_certificate_for_anything_turned(laboratory: Laboratory) -> None:
    many = ControlLimits(identity_opening_burst_max=100_000)  # all of one ticket's, and one peer's
    with laboratory.coordinator(limits=many):
        ticket = laboratory.ticket(uses=4)
        length = len(enrolment_codec.encode(EnrolRequest(ENROLMENT_VERSION, ticket.token_id)))
        asked = in_sixteens(
            [partial(asks, laboratory, ticket, turn_at(at)) for at in range(length)]
        )
        assert not [one for one in asked if isinstance(one, Enrolled)]

        length = len(enrolment_codec.encode(StatusProof(bytes(32))))
        told = in_sixteens(
            [partial(asks_for_status, laboratory, ticket, turn_at(at)) for at in range(length)]
        )
        assert all(one is None or isinstance(one, EnrolRefused) for one in told)

        credentials = enrol(laboratory.address, ticket)
        assert credentials.material is not None
        body = enrolment_codec.encode(Renew(make_request(credentials._key)))
        renewed = in_sixteens(
            [
                partial(renews, laboratory, credentials.material, turn_at(at)(body))
                for at in range(len(body))
            ]
        )
        assert not [one for one in renewed if isinstance(one, Enrolled)]
        right = in_sixteens([partial(renews, laboratory, credentials.material, body)])
        assert isinstance(right[0], Enrolled)
        assert laboratory.ca.ledger.tokens()[0].uses == 1
        is_well(laboratory)
