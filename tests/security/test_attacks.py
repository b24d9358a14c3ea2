"""What gets nobody in: other CAs, tickets and certificates that are over, old protocols.

Every story ends with the run as it was: a peer with a good ticket still comes in.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pccl.base.errors import ConnectError, RemoteError
from pccl.membership.agent_security import Credentials
from pccl.membership.enrolment import (
    EnrolmentRefused,
    EnrolOffer,
    WrongRun,
    enrolment_codec,
)
from pccl.membership.messages import Refused, coordinator_codec
from pccl.membership.service_ca import init_ca
from pccl.transport.address import Address, parse_address
from pccl.transport.authority import key_pem, pem
from pccl.transport.channel import Channel
from pccl.transport.dial import dial
from pccl.transport.identity import Role, TlsMaterial
from tests.security.laboratory import Laboratory, eventually, laboratory
from tests.security.strangers import enrol, hello, is_well, member

__all__ = ["laboratory"]


# ---------------------------------------------------------------------- tickets


def test_a_ticket_of_another_run_is_refused_at_once(laboratory: Laboratory, tmp_path: Path) -> None:
    other = init_ca(tmp_path / "other")
    foreign = other.make_ticket(Role.TRAINER, uses=1, expires_in_s=60, endpoints=())
    other.close()
    with laboratory.coordinator():
        began_s = time.monotonic()
        with pytest.raises(ConnectError, match="another CA"):
            laboratory.connect(foreign, timeout_s=30)
        assert time.monotonic() - began_s < 15
        is_well(laboratory)


def test_an_expired_ticket_is_refused(laboratory: Laboratory) -> None:
    with laboratory.coordinator():
        ticket = laboratory.ticket(expires_in_s=1)
        eventually(lambda: time.time() > ticket.expires)
        with pytest.raises(ConnectError, match="has expired"):
            laboratory.connect(ticket)
        assert laboratory.audit("refused")[-1]["code"] == "expired"
        is_well(laboratory)


def test_a_ticket_lets_as_many_keys_in_as_it_says_and_each_as_often_as_it_asks(
    laboratory: Laboratory,
) -> None:
    key = Ed25519PrivateKey.generate()
    with laboratory.coordinator():
        ticket = laboratory.ticket(uses=2)
        enrol(laboratory.address, ticket, key)
        enrol(laboratory.address, ticket, key)  # an answer that was lost
        enrol(laboratory.address, ticket)
        with pytest.raises(EnrolmentRefused, match="as often as it may"):
            enrol(laboratory.address, ticket)
    with laboratory.coordinator():  # a restart forgets nothing
        with pytest.raises(EnrolmentRefused, match="as often as it may"):
            enrol(laboratory.address, ticket)
        assert enrol(laboratory.address, ticket, key).valid


def test_a_revoked_ticket_is_refused(laboratory: Laboratory) -> None:
    with laboratory.coordinator():
        ticket = laboratory.ticket()
        laboratory.ca.ledger.revoke(ticket.token_id.hex()[:10], int(time.time()), "lost")
        with pytest.raises(EnrolmentRefused, match="revoked"):
            enrol(laboratory.address, ticket)


def test_a_receivers_ticket_makes_no_member(laboratory: Laboratory) -> None:
    with laboratory.coordinator(), pytest.raises(ConnectError, match="makes no member"):
        laboratory.connect(laboratory.ticket(Role.RECEIVER))


def test_a_ticket_with_another_secret_and_an_unknown_one_are_told_the_same(
    laboratory: Laboratory,
) -> None:
    from dataclasses import replace

    with laboratory.coordinator():
        ticket = laboratory.ticket()
        texts = set()
        for wrong in (replace(ticket, secret=bytes(32)), replace(ticket, token_id=bytes(8))):
            with pytest.raises(EnrolmentRefused) as caught:
                enrol(laboratory.address, wrong)
            texts.add(str(caught.value))
        assert len(texts) == 1
        is_well(laboratory)


# ---------------------------------------------------------------------- certificates


async def answer_to(address: str, material: TlsMaterial) -> bytes | None:
    """Returns what the coordinator says to a HELLO that comes with this certificate."""
    channel = await member(address, material)
    channel.send(hello(bytes(16)))
    answer = await channel.receive(10)
    await channel.finish(1)
    return answer


def test_a_certificate_of_another_ca_is_not_believed(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    other = init_ca(tmp_path / "other")
    key = Ed25519PrivateKey.generate()
    leaf = other.authority.issue_peer(key.public_key(), Role.TRAINER, bytes(16), time.time(), 60)
    ours = pem(laboratory.ca.authority.certificate_der)
    forged = TlsMaterial(pem(leaf), key_pem(key), ours)
    other.close()

    with laboratory.coordinator():
        assert asyncio.run(answer_to(laboratory.address, forged)) is None
        is_well(laboratory)


def test_an_expired_certificate_is_not_believed(laboratory: Laboratory) -> None:
    key, ca = Ed25519PrivateKey.generate(), laboratory.ca.authority
    leaf = ca.issue_peer(key.public_key(), Role.TRAINER, bytes(16), time.time() - 100, 50)
    old = TlsMaterial(pem(leaf), key_pem(key), pem(ca.certificate_der))

    with laboratory.coordinator():
        assert asyncio.run(answer_to(laboratory.address, old)) is None


def test_a_member_cannot_speak_as_another(laboratory: Laboratory) -> None:
    async def story(material: TlsMaterial) -> object:
        channel = await member(laboratory.address, material)
        channel.send(hello(bytes(range(16))))
        answer = coordinator_codec.decode(await channel.receive(10) or b"")
        await channel.finish(1)
        return answer

    with laboratory.coordinator():
        material = enrol(laboratory.address, laboratory.ticket()).material
        assert material is not None
        answer = asyncio.run(story(material))
    assert isinstance(answer, Refused) and answer.code == "identity"


def test_a_member_cannot_pose_as_the_coordinator(laboratory: Laboratory) -> None:
    """A listener with a peer's certificate is no coordinator to who dials it, by either way."""
    with laboratory.coordinator():
        thief = enrol(laboratory.address, laboratory.ticket())
        victim = enrol(laboratory.address, laboratory.ticket())
        ticket = laboratory.ticket()
    assert thief.material is not None
    from pccl.transport.tls import ServerIdentity, server_context
    from pccl.transport.tls_session import TlsSession, handshake

    context = server_context(thief.material, strangers=True)
    identity = ServerIdentity(context, b"")

    async def pose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = TlsSession(identity.context, server_side=True)
        try:
            said = await handshake(reader, writer, session, dials=False)
            channel = Channel(reader, writer, tls=session, said=said)
            await channel.receive(5)
            ca = laboratory.ca.authority.certificate_der
            channel.send(enrolment_codec.encode(EnrolOffer(1, ca, bytes(32))))
            assert await channel.receive(5) is None, "the proof was sent to a thief"
        except (OSError, RemoteError, AssertionError) as error:
            failures.append(error)
        finally:
            writer.close()

    failures: list[BaseException] = []

    async def story() -> None:
        server = await asyncio.start_server(pose, "127.0.0.1", 0)
        async with server:
            here = Address("127.0.0.1", server.sockets[0].getsockname()[1])
            with pytest.raises(WrongRun):
                await Credentials(ticket, Ed25519PrivateKey.generate()).enrol([here], 5)
            import random

            with pytest.raises(ConnectError, match="is no coordinator"):
                await dial(
                    [here], timeout_s=5, rng=random.Random(1), rounds_max=1, tls=victim.client_tls()
                )
            await asyncio.sleep(0.05)

    asyncio.run(story())
    assert not [f for f in failures if isinstance(f, AssertionError)]


# ---------------------------------------------------------------------- downgrade


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_only_tls_1_3_is_spoken(laboratory: Laboratory, version: ssl.TLSVersion) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = context.minimum_version = version
    with laboratory.coordinator():
        where = parse_address(laboratory.address)
        with socket.create_connection((where.host, where.port), 10) as plain:
            if version is ssl.TLSVersion.TLSv1_2:
                with pytest.raises(ssl.SSLError):
                    context.wrap_socket(plain)
            else:
                with context.wrap_socket(plain) as tls:
                    assert tls.version() == "TLSv1.3"
                    assert tls.session is not None and not tls.session.has_ticket


def test_a_ticket_never_falls_back_to_a_plain_coordinator(laboratory: Laboratory) -> None:
    from pccl.membership.service import CoordinatorThread

    ticket = laboratory.ticket()
    with CoordinatorThread() as plain, pytest.raises(ConnectError, match=r"no TLS|closed|reset"):
        laboratory.connect(ticket, address=plain.address, timeout_s=1.5)
