"""Fuzz targets of who dials: whoever answers says anything.

    stream_dial   a stream to a member, straight or led there by a relay
    enrolling     a ticket's owner, and who claims to be the run's coordinator
    denials       who listens for whom the run denies
    tls_answers   a TLS handshake as its dialler hears it

What each of them must keep to itself is what the targets look for: a member's secret, a proof made
with a ticket's, a certificate of somebody else's.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pccl.base.clock import Deadline
from pccl.base.errors import ConnectError, RemoteError
from pccl.membership.agent_security import Credentials
from pccl.membership.enrolment import (
    DENIALS_MAX,
    ENROLMENT_VERSION,
    NONCE_BYTES,
    Denials,
    Enrolled,
    EnrolmentMessage,
    EnrolOffer,
    EnrolProof,
    EnrolRefused,
    enrolment_codec,
)
from pccl.membership.messages import MemberInfo
from pccl.state.relaying import led
from pccl.state.stream import Identity, Stream, StreamLost
from pccl.transport import native_frames as nf
from pccl.transport.authority import Authority, key_of_request, key_pem, make_ca, pem
from pccl.transport.framing import Framer, frame
from pccl.transport.identity import Role, TlsMaterial, fingerprint
from pccl.transport.join_ticket import JoinTicket
from pccl.transport.tls import Secured, client_context
from pccl.transport.tls_session import TlsSession
from tests.fuzz.doors import RUN_ID, SERIAL, authority
from tests.fuzz.drawing import Source

WAIT_S = 5.0
LIFE_S = 1e6  # longer than a campaign
ME = Identity(RUN_ID, b"m" * 16, 7, b"o" * 16)
MEMBER = MemberInfo(b"h" * 16, 3, b"s" * 16, "192.0.2.1", 5000, 0, 0)
RELAY = MemberInfo(b"r" * 16, 4, b"t" * 16, "192.0.2.2", 5000, 0, 0)
WELCOME = frame(nf.encode(nf.Welcome()))


# ---- streams


def stream_dial(data: bytes) -> None:
    """What a member answers, and, where one is in between, a relay before it."""
    source = Source(data)
    relayed = source.chance(2)
    says = b""
    while source and len(says) < 2000:
        says += _answer(source)
    near, far = socket.socketpair()
    with near, far:
        far.sendall(says)
        far.shutdown(socket.SHUT_WR)
        stream: Stream | None = None
        try:
            way = led(near, RELAY, MEMBER, ME, Deadline(WAIT_S)) if relayed else near
            stream = Stream.over(way, MEMBER, ME, WAIT_S)
            stream.receive(1 << 12)
        except (StreamLost, RemoteError):
            pass
        finally:
            if stream is not None:
                stream.close()
        _check_told(_all_of(far), says, relayed=relayed, welcome=stream is not None)


def _answer(source: Source) -> bytes:
    match source.below(6):
        case 0:
            return source.take(source.below(60))
        case 1:
            body = source.take(1 + source.below(60))
            return frame(body) if body else b""
        case 2:
            return frame(nf.encode(nf.RefusedFrame(nf.RefusalCode.SECRET, "no")))
        case _:
            return WELCOME


def _all_of(far: socket.socket) -> bytes:
    far.setblocking(False)
    parts = []
    with suppress(BlockingIOError, ConnectionResetError):
        while part := far.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def _check_told(told: bytes, says: bytes, *, relayed: bool, welcome: bool) -> None:
    framer = Framer()
    framer.feed(told)
    bodies = []
    while (body := framer.next_message()) is not None:
        bodies.append(nf.decode(body))
    answers = _welcomes(says)
    if relayed and bodies:
        assert isinstance(bodies[0], nf.NativeHello) and bodies[0].secret == RELAY.secret
        assert isinstance(bodies[1], nf.RelayFrame) and bodies[1].peer == MEMBER.peer_id
        assert answers or MEMBER.secret not in told, "told a member's secret to who leads nowhere"
        bodies = bodies[2:]
        answers -= 1
    for hello in bodies:
        assert isinstance(hello, nf.NativeHello) and hello.secret == MEMBER.secret
        assert hello.purpose == nf.Purpose.STREAM
    assert len(bodies) <= 1 and welcome <= (answers > 0), "took for welcome what was not"


def _welcomes(says: bytes) -> int:
    """How many it begins with, whatever generation they name."""
    framer, count = Framer(), 0
    with suppress(RemoteError):
        framer.feed(says)
        while (body := framer.next_message()) is not None:
            if not isinstance(nf.decode(body), nf.Welcome):
                break
            count += 1
    return count


def dial_seeds() -> list[bytes]:
    ways, answers = (b"\x00", b"\x01"), (b"\x05", b"\x05\x05", b"\x02", b"\x05\x02")
    return [way + said for way in ways for said in answers]


# ---- tickets


@cache
def _other() -> Authority:
    """Another run's."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(4, 36)))
    return Authority(b"x" * 16, make_ca(key, b"x" * 16, SERIAL, time.time()), key)


@cache
def _key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(5, 37)))


@cache
def _leaves() -> tuple[bytes, ...]:
    """What may be shown by who answers; the first is the run's coordinator's."""
    now_s, key = time.time(), _key().public_key()
    return (
        authority().issue_coordinator(key, SERIAL, now_s, LIFE_S),
        authority().issue_peer(key, Role.TRAINER, SERIAL, now_s, LIFE_S),
        _other().issue_coordinator(key, SERIAL, now_s, LIFE_S),
        authority().issue_coordinator(key, SERIAL, now_s - 9000, 600.0),
        b"",
    )


@cache
def _ticket() -> JoinTicket:
    pinned = fingerprint(authority().certificate_der)
    return JoinTicket(RUN_ID, (), pinned, b"t" * 8, bytes(range(32)), 1 << 31, 1, "trainer")


class _Channel:
    """Who answers; told what is said to it."""

    def __init__(self, leaf: bytes, says: Callable[[list[EnrolmentMessage]], bytes | None]) -> None:
        self.secured = Secured(leaf, b"")
        self.told: list[EnrolmentMessage] = []
        self._says = says

    def send(self, body: bytes) -> bool:
        self.told.append(enrolment_codec.decode(body))
        return True

    async def receive(self, timeout_s: float | None = None) -> bytes | None:
        return self._says(self.told)

    def abort(self, reason: str = "") -> None: ...


def enrolling(data: bytes) -> None:
    """A ticket's owner asks for a certificate of whoever answers."""
    source = Source(data)
    leaf = source.pick(_leaves()) if source.chance(2) else _leaves()[0]
    offered: list[EnrolOffer] = []

    def says(told: list[EnrolmentMessage]) -> bytes | None:
        answer = _enrolment(source, told)
        if isinstance(answer, EnrolOffer) and not offered:
            offered.append(answer)
        return answer if isinstance(answer, bytes | None) else enrolment_codec.encode(answer)

    channel, credentials = _Channel(leaf, says), Credentials(_ticket(), _key())
    with suppress(RemoteError, ConnectError):
        _run(credentials.enrol_over(cast("Any", channel)))
    right = leaf == _leaves()[0]
    proofs = [told for told in channel.told if isinstance(told, EnrolProof)]
    assert right or not proofs, "a proof was made for who is no coordinator of the run"
    assert len(proofs) <= 1 and (proofs or credentials.material is None)
    if credentials.material is not None:
        shown = credentials.material.certificate_pem
        assert shown in _own_certificates(), "took another's certificate"
        assert credentials.material.ca_pem == pem(authority().certificate_der)


@cache
def _own_certificates() -> frozenset[bytes]:
    return frozenset({pem(_given(authority(), _key()))})


@cache
def _given(by: Authority, key: Ed25519PrivateKey) -> bytes:
    return by.issue_peer(key.public_key(), Role.TRAINER, SERIAL, time.time(), LIFE_S)


def _enrolment(source: Source, told: list[EnrolmentMessage]) -> EnrolmentMessage | bytes | None:
    match source.below(10):
        case 0:
            return None
        case 1:
            return source.take(1 + source.below(200))
        case 2:
            return EnrolRefused(source.pick(("later", "revoked", "used")), "no")
        case 3:
            return _offer(_other(), source.take(NONCE_BYTES))
        case 4:
            return Enrolled(_given(_other(), _key()), 3600.0)
        case 5:
            return Enrolled(_given(authority(), _stranger()), 3600.0)
        case 6 | 7 if told and isinstance(told[-1], EnrolProof):
            key_of_request(told[-1].request)
            damaged = bytearray(_given(authority(), _key()))
            if source.chance(4):
                damaged[source.below(256) % len(damaged)] ^= 1 << source.below(8)
            return Enrolled(bytes(damaged), 3600.0)
        case _:
            return _offer(authority(), b"")


def _offer(by: Authority, nonce: bytes) -> EnrolOffer:
    return EnrolOffer(ENROLMENT_VERSION, by.certificate_der, nonce.ljust(NONCE_BYTES, b"n"))


@cache
def _stranger() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(6, 38)))


def enrolling_seeds() -> list[bytes]:
    """Each leaf, behind it each answer to a request and to a proof."""
    leaves = [b"\x00", *(bytes((1, number)) for number in range(5))]
    pairs = [(8, 6), (3, 6), (8, 4), (8, 5), (8, 2), (1, 3)]
    return [leaf + bytes((a, b)) for leaf in leaves for a, b in pairs]


# ---- denials


def denials(data: bytes) -> None:
    """Who listens believes what is well-formed, until something is not."""
    source = Source(data)
    told: set[bytes] = set()
    counts: list[int] = []

    def says(_: list[EnrolmentMessage]) -> bytes | None:
        if not source:
            return None
        match source.below(6):
            case 0:
                body = source.take(1 + source.below(80))
            case 1:
                body = enrolment_codec.encode(EnrolRefused("later", "no"))
            case _:
                # Of a thousand names one message is enough: its names take a millisecond each way.
                whole = source.chance(64) and DENIALS_MAX not in counts
                count = DENIALS_MAX if whole else source.below(4)
                body = _denying(source.byte(), count)
        with suppress(RemoteError):
            message = enrolment_codec.decode(body)
            if isinstance(message, Denials):
                told.update(message.peers)
                counts.append(len(message.peers))
        return body

    credentials = Credentials(_ticket(), _key())
    heard: list[None] = []
    ended: list[bytes] = []
    watched = (1).to_bytes(16, "big")
    with credentials.denials.ends(watched, lambda: ended.append(watched)):
        with suppress(RemoteError, ConnectError):
            _run(credentials.listen(cast("Any", _Channel(b"", says)), lambda: heard.append(None)))
        assert len(ended) == (watched in told), "who was denied goes on, or goes twice"
    assert all(peer in credentials.denials for peer in told) and len(heard) == len(counts)
    assert credentials.denials.heard == any(count < DENIALS_MAX for count in counts)


@lru_cache(1024)  # the largest ones take a millisecond, and are what is said most often
def _denying(first: int, count: int) -> bytes:
    peers = tuple((first + i).to_bytes(16, "big") for i in range(count))
    return enrolment_codec.encode(Denials(peers))


def denial_seeds() -> list[bytes]:
    some = bytes((5, 3, 0, 1))
    return [some, some * 3, bytes((5, 0, 15, 1)), some + b"\x01", some + b"\x00\x03abc"]


# ---- TLS


@cache
def _context() -> ssl.SSLContext:
    ca, key = authority(), _key()
    leaf = _given(ca, key)
    return client_context(TlsMaterial(pem(leaf), key_pem(key), pem(ca.certificate_der)))


def tls_answers(data: bytes) -> None:
    """Any bytes, in pieces of any size, where a listener's half of a handshake is expected."""
    source = Source(data)
    session = TlsSession(_context(), server_side=False)
    session.start()
    assert session.take()[:1] == b"\x16"
    with suppress(ssl.SSLError):
        while source:
            piece = source.take(1 + source.below(256))
            assert session.feed(piece) == b"", "somebody was heard before the handshake ended"
            session.take()
    assert not session.ready, "who has no key cannot end a handshake"


def tls_seeds() -> list[bytes]:
    """A server's hello for another client, alerts, other protocols."""
    hello = bytes.fromhex("160303007a020000760303") + bytes(range(32)) + b"\x20" + bytes(32)
    hello += bytes.fromhex("130100002e002b0002030400330024001d0020") + bytes(range(32))
    pieces = [hello[at : at + 200] for at in range(0, len(hello), 200)]
    whole = b"".join(bytes((len(piece) - 1,)) + piece for piece in pieces)
    return [whole, b"\x06\x15\x03\x03\x00\x02\x02\x28", b"\x10HTTP/1.1 400 Bad\r\n"]


def _run(work: Coroutine[Any, Any, object]) -> None:
    _loop().run_until_complete(work)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()
