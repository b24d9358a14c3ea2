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

# Likewise: a certificate whose subject has a bit string for a country or the like.
CERTIFICATE = b64decode(
    "MIIB7jCCAaCgAwIBAgIPAIEBggKDA4QEhQWGBocHMAUGAytlcDA0MTIwMAYDVQQDDClwY2NsIHJ1biAwMDAxMDIwMz"
    "A0MDUwNjA3MDgwOTBhMGIwYzBkMGUwZjAeFw0yMzExMTQyMjA4MjBaFw0yMzExMTQyMzEzMjBaMD0xEDAOBgNVBAsM"
    "B3RyYWluZXIxKTAnBgNVBAMDIDU2NDc1YWE3NTQ2MzQ3NGMwMjg1ZGY1ZGJmMmJjYWI3MCowBQYDK2VwAyEAA6EHv/"
    "POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbijgb8wgbwwDAYDVR0TAQH/BAIwADAOBgNVHQ8BAf8EBAMCB4AwHQYD"
    "VR0lBBYwFAYIKwYBBQUHAwIGCCsGAQUFBwMBMFwGA1UdEQRVMFOGUXBjY2w6Ly9ydW4vMDAwMTAyMDMwNDA1MDYwNz"
    "A4MDkwYTBiMGMwZDBlMGYvcGVlci81NjQ3NWFhNzU0NjM0NzRjMDI4NWRmNWRiZjJiY2FiNzAfBgNVHSMEGDAWgBT9"
    "gabbZNb69/cCwHlxqCwlwdw8kDAFBgMrZXADQQD0iP7wvB+HDw7GslrSiykdJKkrqobMC/VqkWi+jOU3yiJFlV+zpv"
    "I+92k2RMgzIW1Vn5iFxgcDfFPwHtGiPVYP"
)


def test_a_certificate_with_a_subject_that_cannot_be_read_is_the_senders_fault() -> None:
    with pytest.raises(RemoteError):
        name_in(CERTIFICATE)


def test_a_request_of_a_version_that_nobody_knows_is_the_senders_fault() -> None:
    with pytest.raises(RemoteError, match="version"):
        key_of_request(REQUEST)


def test_a_certificate_of_a_version_that_nobody_knows_is_the_senders_fault() -> None:
    ca = make_ca(Ed25519PrivateKey.generate(), bytes(16), bytes(range(16)), 1.7e9)
    version = bytes.fromhex("a003020102")  # [0] INTEGER 2, which is X.509 v3
    assert ca.count(version) == 1
    with pytest.raises(RemoteError):
        name_in(ca.replace(version, bytes.fromhex("a00302012c")))
