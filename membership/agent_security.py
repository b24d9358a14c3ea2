"""A peer's side of a secured run: enrolment by a ticket, its certificate, and renewal.

    ticket -> enrol -> certificate -> (2/3 of its life) renew over TLS -> certificate -> ...

The key never leaves this process (or the file its owner has named).  A certificate that could not
be renewed in time, because no coordinator was there, is replaced by enrolling again with the
ticket: the same key uses up nothing.

Invariant: nothing made with the ticket's secret is sent to who has not proved to be a coordinator
of the ticket's run, and no connection falls back to one without TLS.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pccl.base.clock import Clock, Deadline, system_clock
from pccl.base.errors import ConnectError, PcclError, RemoteError
from pccl.base.log import get_logger
from pccl.membership.agent_denials import Denied
from pccl.membership.enrolment import (
    DENIALS_MAX,
    ENROLMENT_VERSION,
    REFUSED_FOR_NOW,
    Denials,
    Enrolled,
    EnrolmentMessage,
    EnrolmentRefused,
    EnrolOffer,
    EnrolRefused,
    EnrolRequest,
    Renew,
    StatusProof,
    Watch,
    WrongRun,
    check_offer,
    enrolment_codec,
    make_proof,
    status_mac,
    take_certificate,
)
from pccl.transport.address import Address
from pccl.transport.authority import key_pem, make_request, pem
from pccl.transport.channel import Channel
from pccl.transport.dial import Backoff, ClientTls, dial
from pccl.transport.identity import TlsMaterial, peer_id_of_raw
from pccl.transport.join_ticket import JoinTicket
from pccl.transport.tls import (
    Secured,
    check_coordinator,
    client_context,
    enrolling_context,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ANSWER_S: Final = 5.0
RENEW_AT: Final = 2 / 3  # of a certificate's life
RETRY_OF_LIFE: Final = 1 / 30  # a renewal that failed is tried again ten times before it is over
RETRY_S_MAX: Final = 60.0
TOUCH_S: Final = 10.0  # a coordinator says every two seconds that it is there
_log = get_logger("membership")


class Credentials:
    """One peer's key, ticket and certificate; of one event loop, but `material` of any thread."""

    def __init__(
        self, ticket: JoinTicket, key: Ed25519PrivateKey, *, clock: Clock = system_clock
    ) -> None:
        self.ticket = ticket
        self.material: TlsMaterial | None = None  # None until enrolled
        self._key = key
        self._public = key.public_key().public_bytes_raw()
        self._clock = clock
        self._dice = random.Random()
        self._ca_der = b""
        self._context: Any = None
        self._renew_at_s = self._expires_at_s = 0.0
        self.denials = Denied()

    @property
    def peer_id(self) -> bytes:
        return peer_id_of_raw(self._public)

    @property
    def valid(self) -> bool:
        return self.material is not None and self._clock() < self._expires_at_s

    def client_tls(self) -> ClientTls:
        """How to dial a coordinator of the run.  Only after `enrol`."""
        assert self._context is not None
        return ClientTls(self._context, lambda found: check_coordinator(found, self.ticket.run_id))

    async def enrol(
        self,
        addresses: Sequence[Address],
        timeout_s: float,
        on_failure: Callable[[str], None] = lambda reasons: None,
    ) -> None:
        """Returns once there is a valid certificate, at once if there is one.

        Args:
            on_failure: told the reasons whenever none of the addresses gave one.

        Raises:
            ConnectError: nobody gave one within `timeout_s`; at once if the ticket is refused, or
                all who answer serve another run.
        """
        deadline, backoff = Deadline(timeout_s, self._clock), Backoff(self._dice)
        while not self.valid:
            failures: list[str] = []
            wrong: list[WrongRun] = []
            for address in addresses:
                try:
                    return await self._enrol_at(address, deadline)
                except EnrolmentRefused as error:
                    if error.code != REFUSED_FOR_NOW:
                        raise
                    failures.append(f"{address}: {error}")
                except WrongRun as error:
                    wrong.append(error)
                    failures.append(f"{address}: {error}")
                except PcclError as error:
                    failures.append(f"{address}: {error}")
            if len(wrong) == len(addresses):
                raise wrong[0]
            on_failure("; ".join(failures))
            delay_s = backoff.next_delay_s()
            if delay_s >= deadline.remaining_s():
                raise ConnectError(
                    f"no coordinator enrolled this process within {timeout_s:g} s "
                    f"({'; '.join(failures)}); is a `pccl coordinator --ca` of the ticket's run "
                    "there?"
                )
            await asyncio.sleep(delay_s)

    async def keep_fresh(
        self, addresses: Sequence[Address], on_material: Callable[[TlsMaterial], None]
    ) -> None:
        """Runs until cancelled, or until the run has denied this peer: renews in time."""
        told = False
        while True:
            await asyncio.sleep(max(0.0, self._renew_at_s - self._clock()))
            life_s = max(0.1, self._expires_at_s - self._clock())
            retry_s = min(RETRY_S_MAX, max(0.1, life_s * RETRY_OF_LIFE))
            try:
                if self.valid:
                    await self._renew(addresses)
                else:
                    await self.enrol(addresses, ANSWER_S)
            except EnrolmentRefused as error:
                if error.code != REFUSED_FOR_NOW:
                    _log.error("the certificate is not renewed: %s", error)
                    return
                self._renew_at_s = self._clock() + retry_s
            except PcclError as error:
                if not told:
                    _log.warning("the certificate could not be renewed yet: %s", error)
                told = True
                self._renew_at_s = self._clock() + retry_s
            else:
                told = False
                assert self.material is not None
                on_material(self.material)

    async def keep_informed(self, addresses: Sequence[Address]) -> None:
        """Runs until cancelled, or until this peer is denied itself: hears whom the run denies."""
        backoff = Backoff(self._dice)
        while True:
            try:
                await self._hear_denials(addresses, backoff)
            except EnrolmentRefused as error:
                if error.code != REFUSED_FOR_NOW:
                    return
                await asyncio.sleep(RETRY_S_MAX * self._dice.uniform(0.5, 1.0))
            except PcclError as error:
                _log.debug("nobody tells of denials now: %s", error)
            await asyncio.sleep(backoff.next_delay_s())

    # ------------------------------------------------------------------ one connection each

    async def _hear_denials(self, addresses: Sequence[Address], backoff: Backoff) -> None:
        channel, _ = await dial(
            addresses, timeout_s=ANSWER_S, rng=self._dice, rounds_max=1, tls=self.client_tls()
        )
        try:
            await self.listen(channel, backoff.reset)
        finally:
            channel.abort()

    async def listen(self, channel: Channel, heard: Callable[[], None]) -> NoReturn:
        """Takes note of what a coordinator tells, and calls `heard` each time.

        Raises:
            EnrolmentRefused, RemoteError, DeadlineExceeded: why nothing more comes here.
        """
        _say(channel, Watch(ENROLMENT_VERSION))
        while True:
            match await _answer(channel, TOUCH_S):
                case Denials(peers):
                    self.denials.add(peers)
                    self.denials.heard |= len(peers) < DENIALS_MAX
                    heard()
                case EnrolRefused(code, text):
                    raise EnrolmentRefused(code, text)
                case other:
                    raise RemoteError(f"{type(other).__name__} instead of denials")

    async def _enrol_at(self, address: Address, deadline: Deadline) -> None:
        channel = await _open(address, deadline.remaining_s(), self._dice)
        try:
            await self.enrol_over(channel)
        finally:
            channel.abort()

    async def enrol_over(self, channel: Channel) -> None:
        """Enrols with whoever is at the other end, if that is a coordinator of the ticket's run.

        Raises:
            WrongRun, EnrolmentRefused, RemoteError, DeadlineExceeded: nothing has changed.
        """
        offer, leaf = await ask_offer(channel, self.ticket)
        request = make_request(self._key)
        _say(channel, make_proof(self.ticket, offer, leaf, request))
        answer = await _answer(channel)
        ca = offer.ca_certificate
        self._take(take_certificate(answer, self._public, ca, time.time()), ca)

    async def _renew(self, addresses: Sequence[Address]) -> None:
        channel, _ = await dial(
            addresses, timeout_s=ANSWER_S, rng=self._dice, rounds_max=1, tls=self.client_tls()
        )
        try:
            _say(channel, Renew(make_request(self._key)))
            answer = await _answer(channel)
            taken = take_certificate(answer, self._public, self._ca_der, time.time())
            self._take(taken, self._ca_der)
        finally:
            channel.abort()

    def _take(self, enrolled: Enrolled, ca_der: bytes) -> None:
        material = TlsMaterial(pem(enrolled.certificate), key_pem(self._key), pem(ca_der))
        self._context = client_context(material)
        self._ca_der = ca_der
        now_s = self._clock()  # counted from here: nobody's calendar has to be right to the second
        self._renew_at_s = now_s + enrolled.life_s * RENEW_AT
        self._expires_at_s = now_s + enrolled.life_s
        self.material = material


async def open_for_status(
    addresses: Sequence[Address], ticket: JoinTicket, *, timeout_s: float, rng: random.Random
) -> tuple[Channel, Address]:
    """Returns a connection on which the status will be told, by a ticket, and no use is counted.

    Raises:
        ConnectError: nobody answered, or the ticket was refused.
        RemoteError, DeadlineExceeded: who answered did not do so as a coordinator does.
    """
    tls = ClientTls(enrolling_context(), _anybody)
    channel, address = await dial(addresses, timeout_s=timeout_s, rng=rng, rounds_max=2, tls=tls)
    try:
        offer, leaf = await ask_offer(channel, ticket)
    except BaseException:
        channel.abort()
        raise
    _say(channel, StatusProof(status_mac(ticket.secret, leaf, offer.nonce)))
    return channel, address


async def ask_offer(channel: Channel, ticket: JoinTicket) -> tuple[EnrolOffer, bytes]:
    """Begins to speak with a coordinator, and returns what it shows once that is the ticket's run.

    Raises:
        WrongRun, EnrolmentRefused, RemoteError, DeadlineExceeded.
    """
    assert channel.secured is not None
    _say(channel, EnrolRequest(ENROLMENT_VERSION, ticket.token_id))
    offer = await _answer(channel)
    match offer:
        case EnrolOffer():
            check_offer(offer, ticket, channel.secured.theirs, time.time())
            return offer, channel.secured.theirs
        case EnrolRefused(code, text):
            raise EnrolmentRefused(code, text)
        case _:
            raise RemoteError(f"{type(offer).__name__} instead of an offer")


async def _open(address: Address, timeout_s: float, rng: random.Random) -> Channel:
    tls = ClientTls(enrolling_context(), _anybody)
    channel, _ = await dial(
        [address], timeout_s=max(0.01, timeout_s), rng=rng, rounds_max=1, tls=tls
    )
    return channel


def _anybody(found: Secured) -> None:
    """Whom a certificate is of, `check_offer` says later."""


async def _answer(channel: Channel, timeout_s: float = ANSWER_S) -> EnrolmentMessage:
    body = await channel.receive(timeout_s)
    if body is None:
        raise RemoteError("it closed the connection instead of an answer")
    return enrolment_codec.decode(body)


def _say(channel: Channel, message: EnrolmentMessage) -> None:
    channel.send(enrolment_codec.encode(message))
