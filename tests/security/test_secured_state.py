"""State streams of a secured run: a newcomer with a ticket gets the state while members go on; who
is no trainer of the run gets nothing, whatever it knows."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pccl
from pccl.membership.messages import MemberInfo
from pccl.state import messages as sm
from pccl.state.donor import HALF_OPEN_MAX
from pccl.state.stream import Identity, Stream, StreamLost, identity_of, stream_tls_of
from pccl.state.stream_tls import HANDSHAKE_S, PREFACE, StreamTls
from pccl.transport import native_frames as nf
from pccl.transport.framing import frame
from pccl.transport.identity import Role
from pccl.transport.tls import client_context
from tests.integration.peer_processes import Run
from tests.security.laboratory import Laboratory, laboratory, native_has_tls
from tests.security.strangers import enrol

__all__ = ["laboratory"]
PROGRAM = Path(__file__).parents[1] / "integration" / "state_peer.py"
STALL_S = 3.0
pytestmark = pytest.mark.skipif(not native_has_tls(), reason="the native core has no TLS here")


@contextmanager
def secured_run(lab: Laboratory, monkeypatch: pytest.MonkeyPatch, uses: int) -> Iterator[Run]:
    """As Run, secured; its peers have a ticket."""
    run = Run(PROGRAM)
    with lab.coordinator() as thread:
        monkeypatch.setenv("PCCL_TICKET", lab.ticket(uses=uses).text)
        run.coordinator = thread
        try:
            yield run
        finally:
            for peer in run.peers:
                peer.discard()


def test_a_newcomer_with_a_ticket_comes_in_with_the_members_state_while_they_go_on(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PCCL_TEST_STEPS", "1000")
    monkeypatch.setenv("PCCL_TEST_JOINED", "3")
    with secured_run(laboratory, monkeypatch, uses=3) as run:
        peers = run.start("trains", 2)
        peers[0].until("revision", 3)
        newcomer = run.start_newcomer("dawdler")
        fetched = newcomer.fact_with("fetched")["fetched"]
        peers[0].until("revision", fetched + 2)
        newcomer.say("go on")
        rest = [peer.rest() for peer in (*peers, newcomer)]
        assert len({facts[-1]["end"] for facts in rest}) == 1
        joined = next(fact for fact in rest[2] if "revision" in fact)
        assert joined["contributors"] == 3
        assert joined["revision"] > fetched + 2, "the members went on meanwhile"
        of_members = {f["revision"]: f["now"] for f in rest[1] if "revision" in f}
        assert of_members[joined["revision"]] == joined["now"]


class Member:
    """A member of a secured run, in this process, that has a state to give."""

    def __init__(self, comm: pccl.Communicator) -> None:
        self.identity: Identity = identity_of(comm.session, stream_tls_of(comm.session))
        seat = comm.session.agent.seat
        assert seat is not None
        self.info = MemberInfo(
            peer_id=bytes(comm.peer_id),
            incarnation=self.identity.incarnation,
            secret=self.identity.secret,
            host="127.0.0.1",
            port=seat.data_port,
            host_key=0,
            first_step=0,
        )

    @property
    def where(self) -> tuple[str, int]:
        return self.info.host, self.info.port

    def gives(self, identity: Identity) -> bool:
        """Says whether who dials as `identity` is told what this member holds."""
        stream = Stream.dial(self.info, identity, STALL_S)
        try:
            stream.send(sm.question_codec.encode(sm.Describe(sm.PROTOCOL, sm.CURRENT)))
            return isinstance(sm.answer_codec.decode(stream.receive()), sm.Described)
        finally:
            stream.close()


@contextmanager
def member(lab: Laboratory) -> Iterator[Member]:
    with lab.coordinator():
        state = pccl.SharedState({"weights": np.arange(1000, dtype=np.float32)})
        with lab.connect(lab.ticket(), state=state) as comm:
            comm.all_reduce(np.ones(3, np.float32))
            yield Member(comm)


def trainer(lab: Laboratory, here: Member, role: Role = Role.TRAINER) -> Identity:
    """Somebody who has enrolled, and knows the secret that diallers of `here` must know."""
    credentials = enrol(lab.address, lab.ticket(role))
    material = credentials.material
    assert material is not None
    return Identity(
        here.identity.run_id, credentials.peer_id, 9, b"s" * 16, StreamTls(lambda: material)
    )


def test_a_trainer_of_the_run_is_given_the_state_and_a_receiver_is_not(
    laboratory: Laboratory,
) -> None:
    with member(laboratory) as here:
        assert here.gives(trainer(laboratory, here))
        with pytest.raises(StreamLost):
            here.gives(trainer(laboratory, here, Role.RECEIVER))


def test_who_has_a_certificate_of_another_ca_or_none_is_given_nothing(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    elsewhere = Laboratory(tmp_path / "elsewhere")
    with member(laboratory) as here, elsewhere.coordinator():
        foreign = enrol(elsewhere.address, elsewhere.ticket()).material
        assert foreign is not None
        own = trainer(laboratory, here)
        with pytest.raises(StreamLost):  # the dialler itself will not speak with this member
            here.gives(Identity(own.run_id, own.peer_id, 9, b"", StreamTls(lambda: foreign)))
        hello = frame(
            nf.encode(
                nf.NativeHello(
                    purpose=nf.Purpose.STREAM,
                    run_id=own.run_id,
                    peer_id=own.peer_id,
                    incarnation=9,
                    secret=here.info.secret,
                )
            )
        )
        careless = client_context(foreign)
        careless.verify_mode = ssl.CERT_NONE
        nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
        for context in (careless, nobody):
            assert _said(here, PREFACE, hello, context) == b""
        assert _said(here, PREFACE, hello) == b"", "without TLS"
        assert nf.Purpose.STREAM not in _said(here, b"", hello)[:1], "without the preface"
        assert here.gives(own)
    elsewhere.ca.close()


def _said(
    here: Member, preface: bytes, hello: bytes, context: ssl.SSLContext | None = None
) -> bytes:
    """Returns what a member says, within TLS if there is any, to who says this."""
    with socket.create_connection(here.where, STALL_S) as sock:
        sock.settimeout(HANDSHAKE_S + STALL_S)
        sock.sendall(preface)
        said = b""
        with contextlib.suppress(OSError):
            if context is None:
                sock.sendall(hello)
                while data := sock.recv(4096):
                    said += b"" if data[:1] == b"\x15" else data  # a TLS alert tells nothing
                return said
            with context.wrap_socket(sock) as secured:
                secured.sendall(hello)
                while data := secured.recv(4096):
                    said += data
        return said


def test_who_says_to_be_another_or_does_not_know_the_secret_is_refused_by_name(
    laboratory: Laboratory,
) -> None:
    with member(laboratory) as here:
        own = trainer(laboratory, here)
        other = Identity(own.run_id, b"o" * 16, 9, b"", own.tls)
        with pytest.raises(StreamLost, match="certificate is another peer's"):
            here.gives(other)
        here.info = replace(here.info, secret=b"x" * 16)
        with pytest.raises(StreamLost, match="wrong secret"):
            here.gives(own)


def test_who_dials_one_member_and_reaches_another_says_nothing_of_itself(
    laboratory: Laboratory,
) -> None:
    with member(laboratory) as here:
        here.info = replace(here.info, peer_id=b"m" * 16)
        with pytest.raises(StreamLost, match="was not expected"):
            here.gives(trainer(laboratory, here))


def test_strangers_that_dawdle_at_the_handshake_keep_no_member_out(laboratory: Laboratory) -> None:
    with member(laboratory) as here:
        own = trainer(laboratory, here)
        dawdlers = [socket.create_connection(here.where, STALL_S) for _ in range(HALF_OPEN_MAX + 8)]
        try:
            for one in dawdlers:
                one.sendall(PREFACE)
            began_s = time.monotonic()
            assert here.gives(own)
            dawdlers[0].settimeout(HANDSHAKE_S / 2)
            assert dawdlers[0].recv(1) == b"", "the eldest of too many goes before its time"
            assert time.monotonic() - began_s < HANDSHAKE_S
            dawdlers[-1].settimeout(HANDSHAKE_S + STALL_S)
            assert dawdlers[-1].recv(1) == b"", "its time is over, and it is told nothing"
        finally:
            for one in dawdlers:
                one.close()


def test_a_crowd_at_the_handshake_from_one_address_ends_nobody_of_another(
    laboratory: Laboratory,
) -> None:
    def stranger(host: str) -> socket.socket:
        one = socket.create_connection(here.where, STALL_S, (host, 0))
        one.sendall(PREFACE)
        return one

    with member(laboratory) as here, contextlib.ExitStack() as stack:
        slow = stack.enter_context(stranger("127.0.0.3"))  # a member, over a long way
        time.sleep(0.2)
        crowd = [stack.enter_context(stranger("127.0.0.66")) for _ in range(2 * HALF_OPEN_MAX)]
        crowd[0].settimeout(HANDSHAKE_S / 2)
        assert crowd[0].recv(1) == b"", "of a crowd the eldest goes before its time"
        slow.settimeout(0.2)
        with pytest.raises(TimeoutError):
            slow.recv(1)
