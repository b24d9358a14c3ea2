"""The run's certificate authority: its own certificate, and peers' and coordinators' leaves.

Keys, serial numbers and the date come in as arguments.  Everything is Ed25519; a leaf hangs
directly below the CA, and the CA signs nothing else than leaves.

Invariant: a leaf names the hash of the key that its request was signed with, and no other peer.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from pccl.base.errors import RemoteError
from pccl.transport.identity import (
    CERTIFICATE_BYTES_MAX,
    Name,
    Role,
    ed25519_key,
    name_in,
    parse_certificate,
    peer_id_of_raw,
    require_all_bits,
    unreadable,
)

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

CA_LIFE_S: Final = 10 * 365 * 86_400.0
LEAF_LIFE_S: Final = 86_400.0
CLOCK_SKEW_S: Final = 300.0  # a machine whose clock is this late must not take a new leaf for none
SERIAL_BYTES: Final = 16  # the first bit is cleared: a serial number is positive
REQUEST_BYTES_MAX: Final = 1024  # one for an Ed25519 key has some 150


def make_ca(key: Ed25519PrivateKey, run_id: bytes, serial: bytes, now_s: float) -> bytes:
    """Returns the self-signed certificate (DER) of the authority of one run."""
    from cryptography import x509

    name = x509.Name([_common_name(f"pccl run {run_id.hex()}")])
    authority = x509.BasicConstraints(ca=True, path_length=0)
    builder = _builder(key.public_key(), name, name, serial, now_s, CA_LIFE_S)
    return _sign(
        builder.add_extension(authority, critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False),
        key,
    )


@dataclass(frozen=True, slots=True)
class Authority:
    """What is needed to issue leaves: the CA's certificate and key, and the run they are for."""

    run_id: bytes
    certificate_der: bytes
    key: Ed25519PrivateKey

    def issue_peer(
        self, key: Ed25519PublicKey, role: Role, serial: bytes, now_s: float, life_s: float
    ) -> bytes:
        """Returns a leaf (DER) for a peer's key, valid from `CLOCK_SKEW_S` ago for `life_s`."""
        name = Name(self.run_id, peer_id_of_raw(key.public_bytes_raw()), role)
        return self._issue(key, name, name.peer_id.hex(), serial, now_s, life_s)

    def issue_coordinator(
        self, key: Ed25519PublicKey, serial: bytes, now_s: float, life_s: float
    ) -> bytes:
        """The same for a coordinator."""
        name = Name(self.run_id, b"", Role.COORDINATOR)
        return self._issue(key, name, "coordinator", serial, now_s, life_s)

    def _issue(
        self,
        key: Ed25519PublicKey,
        name: Name,
        common_name: str,
        serial: bytes,
        now_s: float,
        life_s: float,
    ) -> bytes:
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID

        subject = x509.Name(
            [
                x509.NameAttribute(x509.NameOID.ORGANIZATIONAL_UNIT_NAME, name.role.value),
                _common_name(common_name),
            ]
        )
        issuer = parse_certificate(self.certificate_der).subject
        usages = x509.ExtendedKeyUsage(
            [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        )
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name.uri)])
        by = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = _builder(key, subject, issuer, serial, now_s, life_s)
        for extension, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(signs_certificates=False), True),
            (usages, False),
            (names, False),
            (by, False),
        ):
            builder = builder.add_extension(extension, critical=critical)
        leaf = _sign(builder, self.key)
        assert len(leaf) <= CERTIFICATE_BYTES_MAX and name_in(leaf) == name
        return leaf


def check_leaf(leaf_der: bytes, ca_der: bytes, now_s: float) -> Name:
    """Returns whom a leaf names, if this CA has signed it and it is valid now.

    Raises:
        RemoteError: says what is wrong with it.
    """
    from cryptography import x509

    leaf, authority = parse_certificate(leaf_der), parse_certificate(ca_der)
    ed25519_key(authority)
    try:
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        leaf.verify_directly_issued_by(authority)
        authority.verify_directly_issued_by(authority)
    except unreadable() as error:
        raise RemoteError("a certificate that this run's CA has not signed") from error
    if not constraints.ca:
        raise RemoteError("what is shown as the run's CA is none")
    now = datetime.fromtimestamp(now_s, UTC)
    for certificate in (leaf, authority):
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise RemoteError(
                f"a certificate that is valid from {certificate.not_valid_before_utc:%F %T} to "
                f"{certificate.not_valid_after_utc:%F %T} UTC, and it is {now:%F %T} here"
            )
    return name_in(leaf_der)


def make_request(key: Ed25519PrivateKey) -> bytes:
    """Returns a certificate signing request (DER): the key, and proof that its owner asks."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, None)
    return request.public_bytes(Encoding.DER)


def key_of_request(request_der: bytes) -> Ed25519PublicKey:
    """Returns the key of a request, whose owner has signed it.  Raises RemoteError."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if len(request_der) > REQUEST_BYTES_MAX:
        raise RemoteError(f"a certificate request of {len(request_der)} bytes")
    try:
        request = x509.load_der_x509_csr(request_der)
        require_all_bits(request_der, request.signature)
        key = request.public_key()
        signed = isinstance(key, Ed25519PublicKey) and request.is_signature_valid
    except unreadable() as error:
        raise RemoteError(f"no certificate request: {error}") from error
    if not signed or not isinstance(key, Ed25519PublicKey):
        raise RemoteError("a certificate request that its key has not signed")
    return key


def life_of(certificate_der: bytes) -> tuple[float, float]:
    """Returns from when to when a certificate is valid, in seconds since 1970."""
    certificate = parse_certificate(certificate_der)
    return (
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
    )


def pem(certificate_der: bytes) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return parse_certificate(certificate_der).public_bytes(Encoding.PEM)


def key_pem(key: Ed25519PrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _common_name(text: str) -> x509.NameAttribute[str]:
    from cryptography import x509

    return x509.NameAttribute(x509.NameOID.COMMON_NAME, text)


def _builder(
    key: Ed25519PublicKey,
    subject: x509.Name,
    issuer: x509.Name,
    serial: bytes,
    now_s: float,
    life_s: float,
) -> x509.CertificateBuilder:
    from cryptography import x509

    assert len(serial) == SERIAL_BYTES and life_s > 0
    now = datetime.fromtimestamp(int(now_s), UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number((int.from_bytes(serial, "big") >> 1) or 1)
        .not_valid_before(now - timedelta(seconds=CLOCK_SKEW_S))
        .not_valid_after(now + timedelta(seconds=life_s))
    )


def _sign(builder: x509.CertificateBuilder, key: Ed25519PrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return builder.sign(key, None).public_bytes(Encoding.DER)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
