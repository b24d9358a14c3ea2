"""Who a peer is: an Ed25519 key, whose hash is its id; and what a run's certificates say of it.

A certificate binds a public key to a name, which is one URI: `pccl://run/RUN/peer/PEER` or
`pccl://run/RUN/coordinator`, ids as 32 hex digits; a peer's role is its organizational unit.

Invariant: `name_in` returns a name only if the certificate says exactly one, in this form, and a
peer's is the hash of the key it certifies; so who holds the key cannot be named otherwise, not even
by a mistake of who signed.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from pccl.base.errors import RemoteError
from pccl.base.ids import ID_BYTES

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.x509 import Certificate

CERTIFICATE_BYTES_MAX: Final = 2048  # an Ed25519 certificate of ours has some 500
_URI: Final = re.compile(r"pccl://run/([0-9a-f]{32})/(?:peer/([0-9a-f]{32})|(coordinator))")


class Role(StrEnum):
    """What a certificate lets its owner do."""

    TRAINER = "trainer"  # a member: votes, contributes, serves state
    RECEIVER = "receiver"  # fetches published weights, and is never a member
    COORDINATOR = "coordinator"


@dataclass(frozen=True, slots=True)
class Name:
    """What a certificate says of its owner; `peer_id` is empty for a coordinator."""

    run_id: bytes
    peer_id: bytes
    role: Role

    @property
    def uri(self) -> str:
        whose = "coordinator" if self.role is Role.COORDINATOR else f"peer/{self.peer_id.hex()}"
        return f"pccl://run/{self.run_id.hex()}/{whose}"


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What the native core needs to prove who this process is, and to check others; PEM each."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    ca_pem: bytes


def peer_id_of_raw(public_key: bytes) -> bytes:
    """Returns the first 16 bytes of SHA-256 over a raw Ed25519 public key."""
    return hashlib.sha256(public_key).digest()[:ID_BYTES]


def fingerprint(certificate_der: bytes) -> bytes:
    """Returns the SHA-256 of a whole certificate: what a ticket pins the run's CA by."""
    return hashlib.sha256(certificate_der).digest()


def name_in(certificate_der: bytes) -> Name:
    """Returns who a certificate names; whether to believe it is for who checks its signature.

    Raises:
        RemoteError: it is no certificate of ours: another key, none or several names, a peer id
            that is not the key's hash, or an unknown role.
    """
    from cryptography import x509

    certificate = parse_certificate(certificate_der)
    key = ed25519_key(certificate)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        units = certificate.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATIONAL_UNIT_NAME)
    except unreadable() as error:
        raise RemoteError(f"a certificate without a name of ours: {error}") from error
    found = _URI.fullmatch(uris[0]) if len(uris) == 1 and len(list(names)) == 1 else None
    if found is None:
        raise RemoteError("a certificate with other names than ours")
    run_id, peer_hex, _ = found.groups()
    if peer_hex is None:
        return Name(bytes.fromhex(run_id), b"", Role.COORDINATOR)
    peer_id = bytes.fromhex(peer_hex)
    if peer_id != peer_id_of_raw(key.public_bytes_raw()):
        raise RemoteError("a certificate whose peer id is not the hash of its key")
    role = units[0].value if len(units) == 1 else ""
    if role not in (Role.TRAINER, Role.RECEIVER):
        raise RemoteError(f"a certificate with the unknown role {str(role)[:40]!r}")
    return Name(bytes.fromhex(run_id), peer_id, Role(role))


def unreadable() -> tuple[type[Exception], ...]:
    """Returns what `cryptography` raises about bytes that it cannot make sense of: it has no common
    base for that, and parses much only when it is looked at."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    return (
        ValueError,
        TypeError,
        InvalidSignature,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
        Warning,  # where they are errors: an odd serial number
    )


def require_all_bits(signed_der: bytes, signature: bytes) -> None:
    """Raises ValueError unless the signature at the end is encoded as the one whole number of bytes
    that it is: else a bit turned there might be overlooked, being called unused."""
    if signed_der[-len(signature) - 1 :] != b"\0" + signature:
        raise ValueError("the signature is not encoded as it was made")


def parse_certificate(certificate_der: bytes) -> Certificate:
    """Raises RemoteError if the bytes are no X.509 certificate, or a huge one."""
    from cryptography import x509

    if len(certificate_der) > CERTIFICATE_BYTES_MAX:
        raise RemoteError(f"a certificate of {len(certificate_der)} bytes")
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        require_all_bits(certificate_der, certificate.signature)
        return certificate
    except unreadable() as error:
        raise RemoteError(f"no certificate: {error}") from error


def ed25519_key(certificate: Certificate) -> Ed25519PublicKey:
    """Returns the key that a certificate is about.  Raises RemoteError for any other kind."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = certificate.public_key()
    except unreadable() as error:
        raise RemoteError(f"a certificate with an unreadable key: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise RemoteError("a certificate whose key is not Ed25519")
    return key
