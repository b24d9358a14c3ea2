"""Certificates and requests of strangers that cryptography reads in ways of its own."""

from __future__ import annotations

from base64 import b64decode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pccl.base.errors import RemoteError
from pccl.transport.authority import key_of_request, make_ca
from pccl.transport.identity import name_in

# Found by a fuzzer: a signing request of version 44.
REQUEST = b64decode(
    "MH8wMwIBLDAAMCowBQYDK2VwAyEAA6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbigADAFBgMrZXADQQD+T6LD"
    "/tC3dgs1QpDKx4kUxYQE7xZe9aBnQUcZw2xzeoWgFx/pD/xHAMYHE4CCTNhwz2GdgvzsSlQWl8KwMroI"
)


def test_a_request_of_a_version_that_nobody_knows_is_the_senders_fault() -> None:
    with pytest.raises(RemoteError, match="version"):
        key_of_request(REQUEST)


def test_a_certificate_of_a_version_that_nobody_knows_is_the_senders_fault() -> None:
    ca = make_ca(Ed25519PrivateKey.generate(), bytes(16), bytes(range(16)), 1.7e9)
    version = bytes.fromhex("a003020102")  # [0] INTEGER 2, which is X.509 v3
    assert ca.count(version) == 1
    with pytest.raises(RemoteError):
        name_in(ca.replace(version, bytes.fromhex("a00302012c")))
