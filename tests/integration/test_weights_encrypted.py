"""The way to the publisher through a caller's own TLS contexts."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import pccl
from pccl.weights import Publisher, Receiver
from tests.integration.weight_states import empty_state, make_state, sha_of


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Writes a self-signed certificate of 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trainer")])
    now = datetime.datetime.now(datetime.UTC)
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(host, critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "cert.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate, private


def test_weights_come_through_tls_and_to_nobody_who_does_not_speak_it(tmp_path: Path) -> None:
    certificate, private = make_certificate(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, private)
    client = ssl.create_default_context(cafile=str(certificate))
    state = make_state(0)
    with Publisher(context=server) as publisher:
        publisher.publish(state)
        for _ in range(2):
            target = empty_state()
            with Receiver(publisher.address, context=client) as receiver:
                receiver.pull(target, timeout_s=30)
            assert sha_of(target) == sha_of(state)
        strangers = (None, ssl.create_default_context())
        for context in strangers:
            with (
                Receiver(publisher.address, context=context) as receiver,
                pytest.raises(pccl.DeadlineExceeded),
            ):
                receiver.pull(empty_state(), timeout_s=2)
        assert publisher.receivers == 0
