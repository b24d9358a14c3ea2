"""Those who come to a secured run's port: with a ticket, with a certificate, or with neither."""

from __future__ import annotations

import asyncio

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pccl.membership.agent_security import Credentials
from pccl.membership.messages import Hello, peer_codec
from pccl.transport.address import parse_address
from pccl.transport.channel import Channel
from pccl.transport.dial import ClientTls, dial
from pccl.transport.identity import TlsMaterial
from pccl.transport.join_ticket import JoinTicket
from pccl.transport.tls import client_context, enrolling_context
from tests.security.laboratory import Laboratory


def enrol(address: str, ticket: JoinTicket, key: Ed25519PrivateKey | None = None) -> Credentials:
    credentials = Credentials(ticket, key or Ed25519PrivateKey.generate())
    asyncio.run(credentials.enrol([parse_address(address)], 10.0))
    return credentials


def is_well(lab: Laboratory) -> None:
    """A peer with a good ticket gets its certificate."""
    assert enrol(lab.address, lab.ticket()).valid


async def stranger(address: str) -> Channel:
    import random

    tls = ClientTls(enrolling_context(), lambda found: None)
    channel, _ = await dial(
        [parse_address(address)], timeout_s=10, rng=random.Random(1), rounds_max=1, tls=tls
    )
    return channel


async def member(address: str, material: TlsMaterial) -> Channel:
    import random

    tls = ClientTls(client_context(material), lambda found: None)
    channel, _ = await dial(
        [parse_address(address)], timeout_s=10, rng=random.Random(1), rounds_max=1, tls=tls
    )
    return channel


def hello(peer_id: bytes) -> bytes:
    from pccl.membership.messages import PROTOCOL_VERSION

    said = Hello(
        protocol=PROTOCOL_VERSION,
        run_id=b"",
        peer_id=peer_id,
        incarnation=0,
        secret=bytes(16),
        generation=0,
        epoch=0,
        data_host="127.0.0.1",
        data_port=1,
        host_key=0,
        min_world=0,
        hostname="",
        pid=1,
    )
    return peer_codec.encode(said)
