"""An engine counts those that come without the certificate they should have."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pccl.membership.service_ca import init_ca
from pccl.transport.authority import Authority, key_pem, pem
from pccl.transport.engine import Engine
from pccl.transport.identity import Role, TlsMaterial, peer_id_of_raw
from pccl.transport.tls import client_context
from tests.security.laboratory import eventually, native_has_tls

pytestmark = pytest.mark.skipif(not native_has_tls(), reason="the native core has no TLS here")


def material_of(signer: Authority, trusted: Authority) -> tuple[bytes, TlsMaterial]:
    key = Ed25519PrivateKey.generate()
    leaf = signer.issue_peer(key.public_key(), Role.TRAINER, bytes(16), time.time(), 600.0)
    peer_id = peer_id_of_raw(key.public_key().public_bytes_raw())
    return peer_id, TlsMaterial(pem(leaf), key_pem(key), pem(trusted.certificate_der))


def test_who_shows_a_certificate_of_another_ca_is_counted_as_unproven(tmp_path: Path) -> None:
    ours, theirs = init_ca(tmp_path / "ours"), init_ca(tmp_path / "theirs")
    peer_id, material = material_of(ours.authority, ours.authority)
    _, foreign = material_of(theirs.authority, ours.authority)
    engine = Engine(peer_id=peer_id, listen_host="127.0.0.1", tls=material)
    try:
        assert engine.stats()["connections_unproven"] == 0
        with (
            socket.create_connection(("127.0.0.1", engine.port), 10) as plain,
            contextlib.suppress(OSError),  # when it is told, depends on what is under way
            client_context(foreign).wrap_socket(plain) as tls,
        ):
            assert tls.recv(1) == b""
        eventually(lambda: engine.stats()["connections_unproven"] == 1)
        assert engine.stats()["connections_dropped"] == 1
    finally:
        engine.close()
        for ca in (ours, theirs):
            ca.close()
