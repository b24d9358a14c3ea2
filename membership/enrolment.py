"""How a stranger with a ticket becomes a peer with a certificate.  Pure; bytes: docs/PROTOCOL.md.

    peer -> EnrolRequest(token) . . . . . . . over TLS whose server certificate it cannot judge yet
    coordinator -> EnrolOffer(CA certificate, nonce)
         the peer checks: CA against the ticket's fingerprint, CA signed the server's certificate
    peer -> EnrolProof(signing request, MAC)
         the coordinator checks the MAC, counts the use durably, and signs
    coordinator -> Enrolled(certificate), or EnrolRefused

The MAC is HMAC-SHA-256 under the ticket's secret over the server's certificate, the nonce and the
request: so it is worth nothing on another connection, in another run, or to who stands in between.

Invariant: nothing made with the secret is sent before the other end has proved to be the ticket's
run; nothing is signed that a valid, uncounted use of a ticket did not ask for.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from pccl.base.errors import ConnectError, RemoteError
from pccl.membership.message_parts import TEXT_CHARACTERS_MAX, check_id, check_text, demand
from pccl.transport.authority import REQUEST_BYTES_MAX, check_leaf
from pccl.transport.codec import Codec, message
from pccl.transport.identity import CERTIFICATE_BYTES_MAX, Role, fingerprint
from pccl.transport.join_ticket import TOKEN_ID_BYTES, JoinTicket

ENROLMENT_VERSION: Final = 1
NONCE_BYTES: Final = 32
MAC_BYTES: Final = 32
DENIALS_MAX: Final = 4096  # of one message
LIFE_S_MAX: Final = 366 * 86_400.0
_TAGS: Final = range(64, 80)
_LABEL: Final = b"pccl enrolment 1"
_STATUS_LABEL: Final = b"pccl status 1"

REFUSED_FOR_NOW: Final = "later"  # a code, after which to ask again
REFUSED_TICKET: Final = (
    "no such ticket in this run, or its secret is another one; ask who runs `pccl ca` for a new one"
)


@message(64)
@dataclass(frozen=True, slots=True)
class EnrolRequest:
    """Asks to be heard with the ticket of this token."""

    version: int
    token_id: bytes

    def __post_init__(self) -> None:
        demand(len(self.token_id) == TOKEN_ID_BYTES, "a token id of a wrong length")


@message(65)
@dataclass(frozen=True, slots=True)
class EnrolOffer:
    """Shows the run's CA, and what the proof must be about."""

    version: int
    ca_certificate: bytes
    nonce: bytes

    def __post_init__(self) -> None:
        demand(0 < len(self.ca_certificate) <= CERTIFICATE_BYTES_MAX, "no certificate")
        demand(len(self.nonce) == NONCE_BYTES, "a nonce of a wrong length")


@message(66)
@dataclass(frozen=True, slots=True)
class EnrolProof:
    """Proves to hold the ticket, and asks to sign `request`."""

    request: bytes
    mac: bytes

    def __post_init__(self) -> None:
        demand(0 < len(self.request) <= REQUEST_BYTES_MAX, "no certificate request")
        demand(len(self.mac) == MAC_BYTES, "a MAC of a wrong length")


@message(67)
@dataclass(frozen=True, slots=True)
class Enrolled:
    """The certificate; the peer renews it when two thirds of `life_s` are over."""

    certificate: bytes
    life_s: float

    def __post_init__(self) -> None:
        demand(0 < len(self.certificate) <= CERTIFICATE_BYTES_MAX, "no certificate")
        demand(0 < self.life_s <= LIFE_S_MAX, "a certificate's life is no duration")


@message(68)
@dataclass(frozen=True, slots=True)
class EnrolRefused:
    """No certificate; the connection closes.  Codes: version, ticket, expired, used, revoked, key,
    later."""

    code: str
    text: str

    def __post_init__(self) -> None:
        check_text(self.code, "code", 32)
        check_text(self.text, "text", TEXT_CHARACTERS_MAX)


@message(69)
@dataclass(frozen=True, slots=True)
class Renew:
    """Asks for a new certificate of the same key; over a connection that the old one has opened."""

    request: bytes

    def __post_init__(self) -> None:
        demand(0 < len(self.request) <= REQUEST_BYTES_MAX, "no certificate request")


@message(70)
@dataclass(frozen=True, slots=True)
class StatusProof:
    """Proves to hold the ticket, and asks for the status; counts as no use."""

    mac: bytes

    def __post_init__(self) -> None:
        demand(len(self.mac) == MAC_BYTES, "a MAC of a wrong length")


@message(71)
@dataclass(frozen=True, slots=True)
class Watch:
    """Wants to hear of denials from now on; over a connection that a certificate has opened."""

    version: int

    def __post_init__(self) -> None:
        demand(self.version == ENROLMENT_VERSION, f"version {self.version}")


@message(72)
@dataclass(frozen=True, slots=True)
class Denials:
    """These peers are denied, besides those named before; none: the coordinator is still there.
    At first one that is not full ends those that were denied before."""

    peers: tuple[bytes, ...]

    def __post_init__(self) -> None:
        demand(len(self.peers) <= DENIALS_MAX, f"{len(self.peers)} denials")
        for peer in self.peers:
            check_id(peer, "peers")


EnrolmentMessage = (
    EnrolRequest
    | EnrolOffer
    | EnrolProof
    | Enrolled
    | EnrolRefused
    | Renew
    | StatusProof
    | Watch
    | Denials
)
enrolment_codec: Codec[EnrolmentMessage] = Codec(
    EnrolRequest,
    EnrolOffer,
    EnrolProof,
    Enrolled,
    EnrolRefused,
    Renew,
    StatusProof,
    Watch,
    Denials,
)


def is_enrolment(body: bytes) -> bool:
    """Says whether a body begins like a message of this protocol rather than an agent's."""
    return len(body) >= 2 and 0x91 <= body[0] <= 0x9F and body[1] in _TAGS


@dataclass(frozen=True, slots=True)
class Token:
    """What the ledger knows of a ticket."""

    token_id: bytes
    secret: bytes
    role: Role


def proof_mac(secret: bytes, server_leaf: bytes, nonce: bytes, request: bytes) -> bytes:
    return _mac(secret, _LABEL, server_leaf, nonce, request)


def status_mac(secret: bytes, server_leaf: bytes, nonce: bytes) -> bytes:
    return _mac(secret, _STATUS_LABEL, server_leaf, nonce, b"")


def _mac(secret: bytes, label: bytes, server_leaf: bytes, nonce: bytes, request: bytes) -> bytes:
    assert len(nonce) == NONCE_BYTES  # with the hash of fixed length: no two inputs look alike
    said = label + hashlib.sha256(server_leaf).digest() + nonce + request
    return hmac.digest(secret, said, "sha256")


# ---------------------------------------------------------------------- the coordinator's end


def is_proved(
    said: EnrolProof | StatusProof, token: Token | None, server_leaf: bytes, nonce: bytes
) -> bool:
    """Says whether a proof was made with the token's secret, for this connection.

    One that nobody knows takes as long as one whose secret is wrong, and is told the same."""
    secret = bytes(32) if token is None else token.secret
    match said:
        case EnrolProof(request, _):
            right = proof_mac(secret, server_leaf, nonce, request)
        case StatusProof():
            right = status_mac(secret, server_leaf, nonce)
    return hmac.compare_digest(right, said.mac) and token is not None


# ---------------------------------------------------------------------- the peer's end


class WrongRun(ConnectError):
    """Who answers is not a coordinator of the run that the ticket is for."""


class EnrolmentRefused(ConnectError):
    """The coordinator does not let this ticket in; says why and what to do."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"the coordinator does not accept this ticket: {text}")
        self.code = code


def check_offer(offer: EnrolOffer, ticket: JoinTicket, server_leaf: bytes, now_s: float) -> None:
    """Raises WrongRun unless the other end of the connection is a coordinator of the ticket's run.

    Args:
        server_leaf: the certificate whose key the TLS handshake has proved.
    """
    if not hmac.compare_digest(fingerprint(offer.ca_certificate), ticket.ca_fingerprint):
        raise WrongRun(
            "who answers has another CA than the ticket's: it serves another run, or somebody "
            "stands between; check the address, or ask for a ticket of this run"
        )
    try:
        name = check_leaf(server_leaf, offer.ca_certificate, now_s)
    except RemoteError as error:
        raise WrongRun(f"who answers shows {error.reason}") from error
    if name.role is not Role.COORDINATOR or name.run_id != ticket.run_id:
        raise WrongRun("who answers is no coordinator of the ticket's run")


def make_proof(
    ticket: JoinTicket, offer: EnrolOffer, server_leaf: bytes, request: bytes
) -> EnrolProof:
    """Call only after `check_offer`."""
    return EnrolProof(request, proof_mac(ticket.secret, server_leaf, offer.nonce, request))


def take_certificate(answer: EnrolmentMessage, key: bytes, ca: bytes, now_s: float) -> Enrolled:
    """Returns the answer if it is a certificate of this CA for the raw public `key`.

    Raises:
        EnrolmentRefused: it says no.
        RemoteError: it is something else, or a certificate of something else.
    """
    from pccl.transport.identity import peer_id_of_raw

    match answer:
        case Enrolled():
            if check_leaf(answer.certificate, ca, now_s).peer_id != peer_id_of_raw(key):
                raise RemoteError("a certificate for another key")
            return answer
        case EnrolRefused(code, text):
            raise EnrolmentRefused(code, text)
        case _:
            raise RemoteError(f"{type(answer).__name__} instead of a certificate")
