"""Who is not let in to torch's own store: the connection ends, and what was made for it, too."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pccl.base.errors import PcclError
from pccl.membership.agent_denials import Denied
from pccl.pytorch import store_tunnel
from pccl.transport.authority import key_pem, pem
from pccl.transport.identity import Name, Role, TlsMaterial, name_in
from pccl.transport.tls import client_context
from tests.security.laboratory import Laboratory, eventually, laboratory

__all__ = ["laboratory"]


def material(lab: Laboratory, role: Role) -> TlsMaterial:
    ca, key = lab.ca.authority, Ed25519PrivateKey.generate()
    leaf = ca.issue_peer(key.public_key(), role, lab.ca.new_serial(), time.time(), 60)
    return TlsMaterial(pem(leaf), key_pem(key), pem(ca.certificate_der))


def is_ended(port: int, context: ssl.SSLContext | None) -> bool:
    """Whether a connection comes to its end although this end says nothing more."""
    plain = socket.create_connection(("127.0.0.1", port), 10)
    plain.settimeout(20)
    if context is None:
        plain.sendall(b"\x16")  # as TLS begins
    try:
        with plain if context is None else context.wrap_socket(plain) as end:
            return end.recv(10) == b""
    except (ConnectionResetError, ssl.SSLError):
        return True


def without_a_certificate() -> TlsMaterial:
    raise PcclError("there is no certificate now")


def test_the_connection_of_a_role_that_is_not_let_in_is_ended_by_its_owner(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="pccl")
    opened: list[asyncio.StreamWriter] = []
    really_open = store_tunnel._open

    async def noted(*arguments: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await really_open(*arguments)
        opened.append(writer)
        return reader, writer

    monkeypatch.setattr(store_tunnel, "_open", noted)
    own = material(laboratory, Role.TRAINER)
    tunnel = store_tunnel.serve("127.0.0.1", 9, laboratory.ca.authority.run_id, lambda: own)
    assert is_ended(tunnel.port, client_context(material(laboratory, Role.RECEIVER)))
    eventually(lambda: "wants torch's store" in caplog.text)
    assert len(opened) == 1
    eventually(opened[0].transport.is_closing, 5)


def test_trouble_with_a_certificate_ends_a_connection_and_not_more(
    laboratory: Laboratory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="pccl")
    run_id = laboratory.ca.authority.run_id
    far = Name(run_id, bytes(16), Role.TRAINER)
    for tunnel in (
        store_tunnel.serve("127.0.0.1", 9, run_id, without_a_certificate),
        store_tunnel.towards("127.0.0.1", 9, far, without_a_certificate),
    ):
        caplog.clear()
        for _ in range(2):
            assert is_ended(tunnel.port, None)
        eventually(lambda: caplog.text.count("there is no certificate now") == 2)
        assert "never retrieved" not in caplog.text


def test_who_is_revoked_is_cut_off_from_the_store_and_does_not_come_again(
    laboratory: Laboratory,
) -> None:
    denials, own = Denied(), material(laboratory, Role.TRAINER)
    goes, stays = (material(laboratory, Role.TRAINER) for _ in range(2))
    run_id = laboratory.ca.authority.run_id
    with socket.create_server(("127.0.0.1", 0)) as store, contextlib.ExitStack() as stack:
        port = store.getsockname()[1]
        tunnel = store_tunnel.serve("127.0.0.1", port, run_id, lambda: own, denials)

        def connected(by: TlsMaterial) -> tuple[ssl.SSLSocket, socket.socket]:
            plain = socket.create_connection(("127.0.0.1", tunnel.port), 10)
            near = stack.enter_context(client_context(by).wrap_socket(plain))
            near.settimeout(20)
            near.sendall(b"set")
            far = stack.enter_context(store.accept()[0])
            assert far.recv(3) == b"set"
            return near, far

        leaves, _ = connected(goes)
        near, far = connected(stays)
        denials.add([name_in(ssl.PEM_cert_to_DER_cert(goes.certificate_pem.decode())).peer_id])
        with contextlib.suppress(ConnectionResetError, ssl.SSLError):
            assert leaves.recv(1) == b""
        assert is_ended(tunnel.port, client_context(goes))
        far.sendall(b"value")
        assert near.recv(5) == b"value", "the others go on"
