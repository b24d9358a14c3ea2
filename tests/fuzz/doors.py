"""Fuzz targets of a secured run's door: the TLS handshake as a listener hears it, and enrolments.

The machines are the shipped ones.  What stands around them is in memory: no socket, no ledger on a
disk, and a loop that never has to wait.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pccl.base.errors import RemoteError
from pccl.membership.enrolment import (
    Enrolled,
    EnrolOffer,
    EnrolProof,
    EnrolRequest,
    StatusProof,
    Token,
    enrolment_codec,
    proof_mac,
    status_mac,
)
from pccl.membership.service_enrolment import Enrolling
from pccl.transport.authority import Authority, check_leaf, key_pem, make_ca, make_request, pem
from pccl.transport.identity import Role, TlsMaterial
from pccl.transport.tls import Secured, client_context, server_context
from pccl.transport.tls_session import HANDSHAKE_BYTES_MAX, TlsSession
from tests.fuzz.drawing import Source

RUN_ID, SERIAL, NOW_S = b"r" * 16, bytes(range(16)), time.time()
TOKEN = Token(b"t" * 8, bytes(range(32)), Role.TRAINER)
LEAF = b"the server's certificate"


@cache
def authority() -> Authority:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    return Authority(RUN_ID, make_ca(key, RUN_ID, SERIAL, NOW_S), key)


@cache
def context() -> ssl.SSLContext:
    key, ca = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))), authority()
    leaf = ca.issue_coordinator(key.public_key(), SERIAL, NOW_S, 3600.0)
    return server_context(
        TlsMaterial(pem(leaf), key_pem(key), pem(ca.certificate_der)), strangers=True
    )


def handshake(data: bytes) -> None:
    """Any bytes, in pieces of any size, where a TLS handshake is expected."""
    source = Source(data)
    session = TlsSession(context(), server_side=True)
    fed = 0
    with suppress(ssl.SSLError):
        while source:
            piece = source.take(1 + source.below(256))
            fed += len(piece)
            assert session.feed(piece) == b"", "nobody was heard before the handshake ended"
            session.take()
    assert not session.ready, "a handshake needs answers to what the listener has said"
    assert fed <= HANDSHAKE_BYTES_MAX + 256


def handshake_seeds() -> list[bytes]:
    key, ca = Ed25519PrivateKey.from_private_bytes(bytes(range(2, 34))), authority()
    leaf = ca.issue_peer(key.public_key(), Role.TRAINER, SERIAL, NOW_S, 3600.0)
    material = TlsMaterial(pem(leaf), key_pem(key), pem(ca.certificate_der))
    dialler = TlsSession(client_context(material), server_side=False)
    dialler.start()
    hello = dialler.take()
    pieces = [hello[at : at + 200] for at in range(0, len(hello), 200)]
    whole = b"".join(bytes((len(piece) - 1,)) + piece for piece in pieces)
    return [whole, b"\x04\x16\x03\x01\xff\xff", b"\x10GET / HTTP/1.1\r\n\r\n", b"\x06\x15\x03\x03"]


@dataclass
class _Ledger:
    """One ticket's."""

    life_s: float = 3600.0
    enrolled: list[bytes] = field(default_factory=list)

    def token(self, token_id: bytes) -> Token | None:
        return TOKEN if token_id == TOKEN.token_id else None

    def check_token(self, token_id: bytes, now: int) -> None:
        assert token_id == TOKEN.token_id, "a ticket that nobody knows was looked at"

    def enrol(self, token_id: bytes, peer_id: bytes, now: int) -> bool:
        self.enrolled.append(peer_id)
        return True


class _Ca:
    def __init__(self) -> None:
        self.authority = authority()
        self.ledger = _Ledger()

    def new_serial(self) -> bytes:
        return SERIAL


class _Channel:
    """What one stranger says, and what it is told."""

    secured = Secured(b"", LEAF)
    remote_host = "192.0.2.1"

    def __init__(self, says: Any) -> None:
        self._says = says
        self.told: list[Any] = []

    def send(self, body: bytes) -> bool:
        self.told.append(enrolment_codec.decode(body))
        return True

    async def receive(self, timeout_s: float | None = None) -> bytes | None:
        said: bytes | None = self._says(self.told[-1])
        return said

    def close(self, reason: str) -> None: ...


class _Audit:
    def refused(self, *_: Any) -> None: ...
    def enrolled(self, *_: Any, new: bool) -> None: ...


def enrolment(data: bytes) -> None:
    """A stranger that enrols: any request, and then any proof, by one who has the ticket or not."""
    source = Source(data)
    knows = False

    def proof(offer: EnrolOffer) -> bytes | None:
        nonlocal knows
        knows, kind = source.chance(2), source.below(4)
        secret = TOKEN.secret if knows else source.take(32).ljust(32, b"\0")
        knows = secret == TOKEN.secret
        request = make_request(_key()) if source.chance(3) else source.rest()[:1000] or b"\0"
        match kind:
            case 0:
                return None
            case 1:
                return request
            case 2:
                return enrolment_codec.encode(
                    StatusProof(status_mac(secret, LEAF, offer.nonce)),
                )
            case _:
                mac = proof_mac(secret, LEAF, offer.nonce, request)
                return enrolment_codec.encode(EnrolProof(request, mac))

    whole = source.chance(2)
    token_id = TOKEN.token_id if source.chance(2) else source.take(8).ljust(8, b"\0")
    first = enrolment_codec.encode(EnrolRequest(1, token_id)) if not whole else source.take(40)
    channel, ca = _Channel(proof), _Ca()
    enrolling = Enrolling(cast("Any", ca), cast("Any", _Audit()))
    allowed = False
    with suppress(RemoteError):
        allowed = _done(enrolling.serve(cast("Any", channel), first))
    given = [told for told in channel.told if isinstance(told, Enrolled)]
    assert knows or not (given or allowed or ca.ledger.enrolled), "let in without the secret"
    assert len(given) <= 1 and (ca.ledger.enrolled or not given)
    for told in given:
        check_leaf(told.certificate, authority().certificate_der, time.time())


@cache
def _key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(3, 35)))


def _done(work: Coroutine[Any, Any, bool]) -> bool:
    return _loop().run_until_complete(work)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def enrolment_seeds() -> list[bytes]:
    """Who knows and who does not, with a good request and a bad one, for each kind of proof."""
    starts = [b"\x00\x01", b"\x01" + enrolment_codec.encode(EnrolRequest(1, TOKEN.token_id))]
    return [
        start + bytes((knows, kind)) + bytes(32 * (1 - knows)) + bytes((good,)) + b"rest"
        for start in starts
        for knows in (0, 1)
        for kind in range(4)
        for good in (0, 2)
    ]
