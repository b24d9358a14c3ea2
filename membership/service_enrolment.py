"""Answers who enrols by a ticket, and who renews a certificate.  The shell around `enrolment`.

Invariant: a use is in the ledger before the certificate leaves; every wait on a stranger ends after
ANSWER_S, and a connection is heard for one enrolment only.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Final, NoReturn

from pccl.base.errors import DeadlineExceeded, RemoteError
from pccl.base.log import get_logger
from pccl.membership.enrolment import (
    ENROLMENT_VERSION,
    NONCE_BYTES,
    REFUSED_TICKET,
    Enrolled,
    EnrolmentMessage,
    EnrolOffer,
    EnrolProof,
    EnrolRefused,
    EnrolRequest,
    Renew,
    StatusProof,
    Token,
    enrolment_codec,
    is_proved,
)
from pccl.membership.service_audit import Audit
from pccl.membership.service_ca import CaFolder
from pccl.membership.service_ledger import LedgerError, Refusal
from pccl.transport.authority import key_of_request
from pccl.transport.channel import Channel
from pccl.transport.identity import Name, Role, peer_id_of_raw

ANSWER_S: Final = 5.0
_LATER: Final = "the coordinator cannot write its ledger now; try again"
_log = get_logger("membership")


class Enrolling:
    """Serves enrolments over one CA folder; belongs to one event loop."""

    def __init__(self, ca: CaFolder, audit: Audit) -> None:
        self._ca = ca
        self._audit = audit

    async def serve(self, channel: Channel, first: bytes) -> bool:
        """Serves one connection that shows no certificate; returns whether it may go on and ask for
        the status.

        Raises:
            RemoteError: it broke the protocol, or was refused and told why.
        """
        assert channel.secured is not None
        request = enrolment_codec.decode(first)
        if not isinstance(request, EnrolRequest):
            raise RemoteError(f"an enrolment that begins with {type(request).__name__}")
        if request.version != ENROLMENT_VERSION:
            text = f"this coordinator enrols by version {ENROLMENT_VERSION}, not {request.version}"
            self.refuse(channel, "version", f"{text}; use the same version of pccl")
        token = await self._token(channel, request.token_id)
        nonce = secrets.token_bytes(NONCE_BYTES)
        ca_certificate = self._ca.authority.certificate_der
        _say(channel, EnrolOffer(ENROLMENT_VERSION, ca_certificate, nonce))
        try:
            body = await channel.receive(ANSWER_S)
        except DeadlineExceeded as error:
            raise RemoteError("it asked to enrol and proved nothing") from error
        if body is None:
            return False
        proof = enrolment_codec.decode(body)
        if not isinstance(proof, EnrolProof | StatusProof):
            raise RemoteError(f"{type(proof).__name__} instead of a proof")
        if not is_proved(proof, token, channel.secured.own, nonce):
            self.refuse(channel, "ticket", REFUSED_TICKET)
        assert token is not None
        if isinstance(proof, StatusProof):
            return await self._may_ask(channel, token)
        await self._enrol(channel, token, proof)
        return False

    async def renew(self, channel: Channel, first: bytes, name: Name) -> None:
        """Answers a peer that holds a valid certificate and wants the next.  Raises alike."""
        said = enrolment_codec.decode(first)
        if not isinstance(said, Renew):
            raise RemoteError(f"{type(said).__name__} from a peer that has enrolled")
        key = key_of_request(said.request)
        if peer_id_of_raw(key.public_bytes_raw()) != name.peer_id:
            self.refuse(channel, "key", "a certificate is renewed for the same key only")
        try:
            await asyncio.to_thread(self._ca.ledger.renew, name.peer_id, int(time.time()))
        except Refusal as refusal:
            self.refuse(channel, refusal.code, refusal.text, name.peer_id)
        except LedgerError as error:
            self._fail(channel, error)
        self._answer(channel, said.request, name.role)
        self._audit.renewed(name.peer_id, channel.remote_host)

    async def _token(self, channel: Channel, token_id: bytes) -> Token | None:
        try:
            return await asyncio.to_thread(self._ca.ledger.token, token_id)
        except LedgerError as error:
            self._fail(channel, error)

    async def _may_ask(self, channel: Channel, token: Token) -> bool:
        try:
            await asyncio.to_thread(self._ca.ledger.check_token, token.token_id, int(time.time()))
        except Refusal as refusal:
            self.refuse(channel, refusal.code, refusal.text)
        except LedgerError as error:
            self._fail(channel, error)
        return True

    async def _enrol(self, channel: Channel, token: Token, proof: EnrolProof) -> None:
        key = key_of_request(proof.request)
        peer_id = peer_id_of_raw(key.public_bytes_raw())
        try:
            new = await asyncio.to_thread(
                self._ca.ledger.enrol, token.token_id, peer_id, int(time.time())
            )
        except Refusal as refusal:
            self.refuse(channel, refusal.code, refusal.text, peer_id)
        except LedgerError as error:
            self._fail(channel, error)
        else:
            host = channel.remote_host
            self._audit.enrolled(peer_id, host, token.token_id, token.role.value, new=new)
            self._answer(channel, proof.request, token.role)

    def _answer(self, channel: Channel, request: bytes, role: Role) -> None:
        life_s = self._ca.ledger.life_s
        leaf = self._ca.authority.issue_peer(
            key_of_request(request), role, self._ca.new_serial(), time.time(), life_s
        )
        _say(channel, Enrolled(leaf, life_s))
        channel.close("enrolled")

    def refuse(self, channel: Channel, code: str, text: str, peer_id: bytes = b"") -> NoReturn:
        self._audit.refused(code, peer_id, channel.remote_host, text)
        _say(channel, EnrolRefused(code, text))
        channel.close(text)
        raise RemoteError(f"refused an enrolment: {text}")

    def _fail(self, channel: Channel, error: LedgerError) -> NoReturn:
        _log.error("%s", error)
        self.refuse(channel, "later", _LATER)


def _say(channel: Channel, message: EnrolmentMessage) -> None:
    channel.send(enrolment_codec.encode(message))
