"""Weights of a secured run: exact for who came by a ticket, and nothing for anybody else."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pccl.base.errors import ConnectError, DeadlineExceeded, RemoteError, UsageError
from pccl.membership.agent_security import Credentials
from pccl.transport.address import parse_address
from pccl.transport.authority import key_pem, pem
from pccl.transport.identity import Role, TlsMaterial
from pccl.transport.tls import client_context
from pccl.weights import Publisher, Receiver
from pccl.weights.channels import Channels, Way
from pccl.weights.frames import PROTOCOL, Fetch, Join
from pccl.weights.stream import Stream, StreamEnded, open_stream
from tests.integration.weight_states import empty_state, make_state, sha_of
from tests.security.laboratory import Laboratory, eventually, laboratory
from tests.security.strangers import enrol

__all__ = ["laboratory"]
STATE = make_state(0)


@contextmanager
def publisher(lab: Laboratory, fan_out: int = 2) -> Iterator[Publisher]:
    with lab.coordinator():
        ticket = lab.ticket(Role.TRAINER).text
        with Publisher(ticket=ticket, coordinator=lab.address, fan_out=fan_out) as made:
            made.publish(STATE)
            yield made


def receiver(lab: Laboratory, made: Publisher, role: Role = Role.RECEIVER) -> Receiver:
    return Receiver(made.address, ticket=lab.ticket(role).text, coordinator=lab.address)


def gets_all(one: Receiver) -> None:
    into = empty_state()
    one.pull(into, timeout_s=30)
    assert sha_of(into) == sha_of(STATE)


def credentials_of(lab: Laboratory, role: Role) -> Credentials:
    return enrol(lab.address, lab.ticket(role))


def way_of(lab: Laboratory, role: Role) -> tuple[Way, bytes]:
    credentials = credentials_of(lab, role)
    assert credentials.material is not None
    return Way(client_context(credentials.material)), credentials.peer_id


def test_receivers_with_tickets_hold_every_bit_also_from_each_other(laboratory: Laboratory) -> None:
    with publisher(laboratory, fan_out=1) as made, contextlib.ExitStack() as stack:
        receivers = []
        for role in (Role.RECEIVER, Role.RECEIVER, Role.TRAINER):
            receivers.append(stack.enter_context(receiver(laboratory, made, role)))
            gets_all(receivers[-1])
        assert any(one.sent_bytes for one in receivers), "nobody fetched from a receiver"
        assert made.receivers == 3 and made.corruption_reports == 0
    roles = {entry["role"] for entry in laboratory.audit("enrolled")}
    assert roles == {"trainer", "receiver"}


def test_a_renewal_that_fails_by_our_mistake_is_in_the_log(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def mistaken(self: Channels) -> None:
        raise ZeroDivisionError("nobody thought of that")

    with publisher(laboratory) as made:
        assert made.revision == 1 and "not renewed" not in caplog.text
    monkeypatch.setattr(Channels, "keep_fresh", mistaken)
    with publisher(laboratory) as made:
        eventually(lambda: "certificate is not renewed any more" in caplog.text)
        assert "nobody thought of that" in caplog.text
        monkeypatch.undo()
        with receiver(laboratory, made) as one:
            gets_all(one)  # what it has still serves


def test_who_has_no_certificate_of_the_run_is_told_nothing(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    other = Laboratory(tmp_path / "elsewhere")
    with other.coordinator():
        foreign, _ = way_of(other, Role.TRAINER)
    other.ca.close()
    ca, key = laboratory.ca.authority, Ed25519PrivateKey.generate()
    leaf = ca.issue_peer(key.public_key(), Role.RECEIVER, bytes(16), time.time() - 100, 50)
    expired = TlsMaterial(pem(leaf), key_pem(key), pem(ca.certificate_der))
    leaf = ca.issue_coordinator(key.public_key(), bytes(16), time.time(), 50)
    coordinator = TlsMaterial(pem(leaf), key_pem(key), pem(ca.certificate_der))
    assert foreign.context is not None
    foreign.context.verify_mode = ssl.CERT_NONE
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    contexts = {
        "plain": None,
        "another CA": foreign.context,
        "no certificate": nobody,
        "TLS 1.2": old,
        "expired": client_context(expired),
        "a coordinator": client_context(coordinator),
    }
    with publisher(laboratory) as made, receiver(laboratory, made) as one:
        gets_all(one)
        secret = one._fetcher._secret
        for at in (made.address, f"127.0.0.1:{one._fetcher._port}"):
            for who, context in contexts.items():
                for first in (Join(PROTOCOL, b"x" * 16, "", 0), Fetch(PROTOCOL, secret, 1, 0)):
                    assert asyncio.run(answers(at, Way(context), first)) == "nothing", (at, who)
        assert made.receivers == 1
        with receiver(laboratory, made) as another:
            gets_all(another)
        with Receiver(made.address, ticket="") as plain, pytest.raises(DeadlineExceeded):
            plain.pull(empty_state(), timeout_s=1)


async def answers(at: str, way: Way, first: Join | Fetch) -> str:
    """What comes back to who says this."""
    try:
        stream = await open_stream(parse_address(at), timeout_s=5, way=way)
    except (StreamEnded, DeadlineExceeded):
        return "nothing"
    try:
        await stream.send(first, timeout_s=5)
        return type(await stream.receive(7)).__name__
    except (StreamEnded, RemoteError):  # plain ears hear a TLS alert as no frame
        return "nothing"
    finally:
        stream.close()


def test_a_receiver_is_called_by_its_keys_name_alone(laboratory: Laboratory) -> None:
    with publisher(laboratory) as made:
        way, peer_id = way_of(laboratory, Role.RECEIVER)
        other = bytes(reversed(peer_id))
        assert asyncio.run(answers(made.address, way, Join(PROTOCOL, other, "", 0))) == "nothing"
        assert asyncio.run(answers(made.address, way, Join(PROTOCOL, peer_id, "", 0))) == "Joined"


def test_a_receiver_cannot_pose_as_the_publisher_nor_as_another_receiver(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with laboratory.coordinator():
        ticket = laboratory.ticket(Role.RECEIVER).text
        with pytest.raises(UsageError, match="publishes nothing"):
            Publisher(ticket=ticket, coordinator=laboratory.address)
        # One that does so all the same is not believed: nobody joins it.
        parsed = Channels.parse(None, ticket, laboratory.address, None, publishes=False)
        monkeypatch.setattr(Channels, "parse", lambda *_, **__: parsed)
        liar = Publisher(ticket=ticket)
        monkeypatch.undo()
        with liar:
            liar.publish(STATE)
            with receiver(laboratory, liar) as one:
                with pytest.raises(DeadlineExceeded, match="a receiver of the run, and no publish"):
                    one.pull(empty_state(), timeout_s=1.5)
                expected = one._channels.to_receiver(b"another receiver")
            assert liar.receivers == 0

            async def dial() -> Stream:
                return await open_stream(parse_address(liar.address), timeout_s=5, way=expected)

            with pytest.raises(RemoteError, match="another peer of the run"):
                asyncio.run(dial())


def test_a_ticket_that_is_refused_is_a_typed_error_at_once(laboratory: Laboratory) -> None:
    with publisher(laboratory) as made:
        ticket = laboratory.ticket(Role.RECEIVER)
        laboratory.ca.ledger.revoke(ticket.token_id.hex()[:10], int(time.time()), "lost")
        began_s = time.monotonic()
        with pytest.raises(ConnectError, match="revoked"):
            Receiver(made.address, ticket=ticket.text, coordinator=laboratory.address)
        assert time.monotonic() - began_s < 10


def test_certificates_are_renewed_and_who_is_revoked_is_out_with_its_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a publisher that hears nothing of denials; of one that does, test_revocation tells."""

    async def deaf(self: Channels) -> None: ...

    monkeypatch.setattr(Channels, "keep_informed", deaf)
    monkeypatch.delenv("PCCL_TICKET", raising=False)
    lab, life_s = Laboratory(tmp_path, life_s=6.0), 6.0
    with publisher(lab) as made, receiver(lab, made) as stays, receiver(lab, made) as goes:
        gets_all(stays)
        gets_all(goes)
        lab.ca.ledger.revoke(goes._channels.own_id.hex(), int(time.time()), "stolen")
        # Connections end with their certificates; one of the two comes back with a newer one.
        eventually(lambda: len(made._hub._receivers) == 1, 3 * life_s)
        time.sleep(1.5)
        assert list(made._hub._receivers) == [stays._channels.own_id]
        made.publish(make_state(1), 2)
        into = empty_state()
        stays.pull(into, timeout_s=20, at_least=2, on_mismatch="anchor")
        assert sha_of(into) == sha_of(make_state(1))
        with pytest.raises(DeadlineExceeded):
            goes.pull(empty_state(), timeout_s=1.5, at_least=2)
    lab.ca.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_a_listener_off_loopback_needs_a_ticket_or_an_explicit_word(
    laboratory: Laboratory, host: str
) -> None:
    with pytest.raises(UsageError, match="insecure=True"):
        Publisher(f"{host}:0", ticket="")
    with pytest.raises(UsageError, match="insecure=True"):
        Receiver("127.0.0.1:1", listen=f"{host}:0", ticket="")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(UsageError, match="insecure=True"):  # what it gives others is plain
        Receiver("127.0.0.1:1", listen=f"{host}:0", context=context)
    with pytest.raises(UsageError, match="pass one of them"):
        Publisher(context=context, ticket=laboratory.ticket().text)
    with laboratory.coordinator():
        ticket = laboratory.ticket(uses=2).text
        with (
            Publisher("0.0.0.0:0", ticket=ticket, coordinator=laboratory.address) as made,
            Receiver(
                f"127.0.0.1:{parse_address(made.address).port}",
                listen="0.0.0.0:0",
                ticket=ticket,
                coordinator=laboratory.address,
            ) as one,
        ):
            made.publish(STATE)
            gets_all(one)
