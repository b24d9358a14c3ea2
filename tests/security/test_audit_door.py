"""Refusals at a secured run's door are in its audit log: from where, and what was wrong."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pccl.membership.enrolment import Watch, enrolment_codec
from pccl.membership.refusal_pace import BYTES_BURST, BYTES_PER_S
from pccl.membership.service_ca import init_ca
from pccl.transport.address import parse_address
from pccl.transport.authority import Authority, key_pem, pem
from pccl.transport.framing import frame
from pccl.transport.identity import Role, TlsMaterial
from tests.security.laboratory import Laboratory, eventually, laboratory
from tests.security.strangers import enrol, hello, is_well, member, stranger

__all__ = ["laboratory"]

CROWD = 2000


def material(authority: Authority, ours: Authority, *, age_s: float = 0.0) -> TlsMaterial:
    """A certificate for a minute by one CA, and the other CA, as what its owner believes."""
    key = Ed25519PrivateKey.generate()
    made_s = time.time() - age_s
    leaf = authority.issue_peer(key.public_key(), Role.TRAINER, bytes(16), made_s, 60)
    return TlsMaterial(pem(leaf), key_pem(key), pem(ours.certificate_der))


async def say(address: str, shown: TlsMaterial | None, body: bytes) -> None:
    """Comes with a certificate, or none, says one thing and waits to be let down."""
    channel = await (stranger(address) if shown is None else member(address, shown))
    channel.send(body)
    while await channel.receive(10) is not None:
        pass
    await channel.finish(1)


def refusals(lab: Laboratory, code: str) -> list[dict[str, object]]:
    return [entry for entry in lab.audit("refused") if entry["code"] == code]


def is_told(lab: Laboratory, code: str, reason: str) -> None:
    eventually(lambda: bool(refusals(lab, code)))
    (entry,) = refusals(lab, code)
    assert reason in str(entry["reason"]) and entry["from"] == "127.0.0.1"


def test_a_certificate_of_another_ca_is_in_the_log(laboratory: Laboratory, tmp_path: Path) -> None:
    other = init_ca(tmp_path / "other")
    forged = material(other.authority, laboratory.ca.authority)
    other.close()
    with laboratory.coordinator():
        asyncio.run(say(laboratory.address, forged, hello(bytes(16))))
        is_told(laboratory, "ca", "certificate")
        is_well(laboratory)


@pytest.mark.parametrize(("age_s", "code"), [(100_000.0, "expired"), (-9000.0, "certificate")])
def test_a_certificate_that_is_over_or_not_yet_valid_is_in_the_log(
    laboratory: Laboratory, age_s: float, code: str
) -> None:
    ours = laboratory.ca.authority
    with laboratory.coordinator():
        asyncio.run(say(laboratory.address, material(ours, ours, age_s=age_s), hello(bytes(16))))
        is_told(laboratory, code, "certificate")
        is_well(laboratory)


def test_who_has_no_certificate_and_wants_to_be_a_member_is_in_the_log(
    laboratory: Laboratory,
) -> None:
    with laboratory.coordinator():
        asyncio.run(say(laboratory.address, None, hello(bytes(16))))
        is_told(laboratory, "identity", "secured")


def test_a_revoked_certificate_is_in_the_log_with_its_name(laboratory: Laboratory) -> None:
    with laboratory.coordinator():
        thief = enrol(laboratory.address, laboratory.ticket())
        assert thief.material is not None
        laboratory.ca.ledger.revoke(thief.peer_id.hex()[:10], int(time.time()), "stolen")
        eventually(lambda: bool(laboratory.audit("evicted")))
        asyncio.run(say(laboratory.address, thief.material, hello(thief.peer_id)))
        is_told(laboratory, "revoked", "revoked")
        assert refusals(laboratory, "revoked")[0]["peer"] == thief.peer_id.hex()
        asyncio.run(say(laboratory.address, thief.material, enrolment_codec.encode(Watch(1))))
        eventually(lambda: len(refusals(laboratory, "revoked")) == 2)


def test_plaintext_old_tls_and_nonsense_are_in_the_log_and_no_secret_is(
    laboratory: Laboratory,
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = context.minimum_version = ssl.TLSVersion.TLSv1_2
    with laboratory.coordinator():
        where, ticket = parse_address(laboratory.address), laboratory.ticket()
        with socket.create_connection((where.host, where.port), 10) as plain:
            plain.sendall(frame(ticket.text.encode()))  # somebody who took it for a password
            assert plain.recv(1 << 12)
        old = socket.create_connection((where.host, where.port), 10)
        with old, pytest.raises(ssl.SSLError):
            context.wrap_socket(old)
        asyncio.run(say(laboratory.address, None, b"\x92" + ticket.text.encode()))
        is_told(laboratory, "plaintext", "does not speak TLS")
        is_told(laboratory, "handshake", "handshake failed")
        eventually(lambda: len(laboratory.audit("refused")) == 3)
        text = (laboratory.folder / "audit.log").read_text()
        assert ticket.text not in text and ticket.secret.hex() not in text
        assert str(ticket.secret) not in text and ticket.text[6:40] not in text
        is_well(laboratory)


def test_a_member_that_breaks_the_protocol_is_in_the_log_once(laboratory: Laboratory) -> None:
    with laboratory.coordinator():
        peer = enrol(laboratory.address, laboratory.ticket())
        assert peer.material is not None
        asyncio.run(say(laboratory.address, peer.material, b"\x91\xcd\x7f\xff"))
        eventually(lambda: bool(laboratory.audit("refused")))
        (entry,) = laboratory.audit("refused")
        assert entry["peer"] == peer.peer_id.hex() and entry["code"] == "message"


def test_a_crowd_of_bad_material_fills_no_disk_and_hides_nobody(
    laboratory: Laboratory,
) -> None:
    """Every one of them is a line or is counted, and who comes from elsewhere has a line."""
    began_s = time.monotonic()
    with laboratory.coordinator():
        where = parse_address(laboratory.address)

        def come(source: str, count: int, said: bytes) -> None:
            for _ in range(count):
                with socket.create_connection((where.host, where.port), 30, (source, 0)) as sock:
                    sock.sendall(said)
                    try:
                        while sock.recv(1 << 12):
                            pass
                    except ConnectionResetError:
                        pass  # it has been turned away all the same

        crowd = [
            threading.Thread(target=come, args=(f"127.0.1.{n}", CROWD // 4, b"GET / HTTP/1.1\r\n"))
            for n in range(4)
        ]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
        come("127.0.2.1", 1, b"SSH-2.0-x\r\n")
        is_well(laboratory)
    took_s = time.monotonic() - began_s
    entries = laboratory.audit("refused")
    singles = [entry for entry in entries if entry["code"] == "plaintext"]
    floods = [entry for entry in entries if entry["code"] == "flood"]
    counted = sum(e.get("left_out", 0) for e in singles) + sum(e["count"] for e in floods)
    assert len(singles) + counted == CROWD + 1, json.dumps(entries[-3:])
    assert [e["from"] for e in singles].count("127.0.2.1") == 1
    size = (laboratory.folder / "audit.log").stat().st_size
    assert size <= BYTES_BURST + took_s * BYTES_PER_S + 2000 < 1 << 17
    assert laboratory.audit("admitted") == [] and len(laboratory.audit("enrolled")) == 1
