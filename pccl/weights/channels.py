"""How the connections of a publisher or a receiver are secured: not at all, by TLS contexts of the
caller's, or by a join ticket.

By a ticket both ends enrol with the run's coordinator, as peers do, and from then on every
connection is TLS 1.3 with certificates at both ends: publisher and receiver, receiver and receiver.
The publisher is a trainer; who fetches is a trainer or a receiver; which of the receivers it is
that gives or fetches, its key says.

Invariant: with a ticket, nothing is sent to or believed of who has not proved to be of this run, or
of whom the coordinator has said that it was revoked; no connection that the publisher serves
outlives the certificate that it was opened with.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from pccl.arguments import addresses_of, find_ticket
from pccl.base.errors import RemoteError, UsageError
from pccl.identity import load_or_make_key
from pccl.membership.agent_security import Credentials
from pccl.transport.identity import Name, Role, name_in, parse_certificate
from pccl.transport.tls import client_context, server_context

if TYPE_CHECKING:
    from pccl.membership.agent_denials import Denied
    from pccl.transport.address import Address
    from pccl.transport.identity import TlsMaterial
    from pccl.weights.stream import Stream

ENROL_S: Final = 30.0
WHO_FETCHES: Final = (Role.TRAINER, Role.RECEIVER)


@dataclass(frozen=True, slots=True)
class Proved:
    """Who is at the other end, and until when its certificate says so (seconds since 1970)."""

    peer_id: bytes
    until_s: float

    @property
    def over(self) -> bool:
        return time.time() >= self.until_s


Check = Callable[[bytes], None]
"""Is given the other end's certificate, DER; raises RemoteError if it is not whom it should be."""


@dataclass(frozen=True, slots=True)
class Way:
    """How to dial somebody."""

    context: ssl.SSLContext | None = None
    check: Check | None = None
    denials: Denied | None = None

    @contextlib.contextmanager
    def bound(self, stream: Stream) -> Iterator[None]:
        """Within it a connection that was dialled so ends when who is there is denied."""
        if self.denials is None:
            yield
            return
        with self.denials.ends(name_in(stream.certificate).peer_id, stream.close):
            yield


PLAIN: Final = Way()


class Channels:
    """One publisher's or receiver's; belongs to one event loop."""

    def __init__(
        self,
        context: ssl.SSLContext | None = None,
        credentials: Credentials | None = None,
        addresses: tuple[Address, ...] = (),
    ) -> None:
        """`context` secures what lies between the publisher and its receivers, and only that."""
        self._context = context
        self._credentials = credentials
        self._addresses = addresses
        self._made_of: TlsMaterial | None = None
        self._client: ssl.SSLContext | None = None
        self._server: ssl.SSLContext | None = None

    @classmethod
    def parse(
        cls,
        context: ssl.SSLContext | None,
        ticket: str | None,
        coordinator: str | None,
        identity: str | os.PathLike[str] | None,
        *,
        publishes: bool,
    ) -> Self:
        """Returns what a program's arguments ask for; see `Publisher`.

        Raises:
            UsageError: both a context and a ticket, or a ticket that does not do.
        """
        if context is not None:
            if ticket:
                raise UsageError("a context and a ticket both encrypt: pass one of them")
            return cls(context)
        joining = find_ticket(ticket)
        if joining is None:
            return cls()
        if publishes and joining.role != Role.TRAINER:
            raise UsageError(
                f"a ticket for a {joining.role} publishes nothing: receivers would not believe "
                "its owner; make one by `pccl ca ticket --role trainer`"
            )
        addresses = addresses_of(coordinator, joining)
        return cls(None, Credentials(joining, load_or_make_key(identity)), addresses)

    @property
    def encrypted(self) -> bool:
        """Whether the publisher's own listener encrypts."""
        return self._context is not None or self._credentials is not None

    @property
    def ticketed(self) -> bool:
        return self._credentials is not None

    @property
    def own_id(self) -> bytes:
        """What this end is called; "" if it may choose."""
        return b"" if self._credentials is None else self._credentials.peer_id

    async def begin(self, timeout_s: float) -> None:
        """Enrols, if there is a ticket.

        Raises:
            ConnectError: nobody gave a certificate in time, or the ticket is refused.
        """
        if self._credentials is not None:
            await self._credentials.enrol(self._addresses, timeout_s)

    async def keep_fresh(self) -> None:
        """Renews the certificate in time; until cancelled, or until the run denies it."""
        if self._credentials is not None:
            await self._credentials.keep_fresh(self._addresses, lambda material: None)

    async def keep_informed(self) -> None:
        """Hears whom the run denies, from its coordinator; until cancelled."""
        if self._credentials is not None:
            await self._credentials.keep_informed(self._addresses)

    # ---- listening

    def listening(self) -> ssl.SSLContext | None:
        """What a listener for receivers shows now."""
        return self._context if self._credentials is None else self._contexts()[1]

    def who(self, certificate_der: bytes) -> Proved | None:
        """Returns who has dialled; None where nothing proves it.

        Raises:
            RemoteError: it is nobody who may fetch in this run.
        """
        if self._credentials is None:
            return None
        name = self._of_run(certificate_der)
        if name.role not in WHO_FETCHES:
            raise RemoteError(f"a {name.role} fetches no weights")
        expires = parse_certificate(certificate_der).not_valid_after_utc
        return Proved(name.peer_id, expires.timestamp())

    @contextlib.contextmanager
    def admitted(self, stream: Stream) -> Iterator[Proved | None]:
        """As `who`; within it the connection ends when who has dialled is denied."""
        proved = self.who(stream.certificate)
        if proved is None or self._credentials is None:
            yield proved
            return
        with self._credentials.denials.ends(proved.peer_id, stream.close):
            yield proved

    # ---- dialling

    def to_publisher(self) -> Way:
        if self._credentials is None:
            return Way(self._context)
        return Way(self._contexts()[0], self._check_publisher, self._credentials.denials)

    def to_receiver(self, peer_id: bytes) -> Way:
        if self._credentials is None:
            return PLAIN

        def check(certificate_der: bytes) -> None:
            if self._of_run(certificate_der).peer_id != peer_id:
                raise RemoteError("who answers there is another peer of the run")

        return Way(self._contexts()[0], check, self._credentials.denials)

    def _check_publisher(self, certificate_der: bytes) -> None:
        if (role := self._of_run(certificate_der).role) is not Role.TRAINER:
            raise RemoteError(f"who answers is a {role} of the run, and no publisher")

    def _of_run(self, certificate_der: bytes) -> Name:
        assert self._credentials is not None
        name = name_in(certificate_der)
        if name.run_id != self._credentials.ticket.run_id:
            raise RemoteError("who is there belongs to another run")
        if name.peer_id in self._credentials.denials:
            raise RemoteError("who is there was revoked")
        return name

    def _contexts(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        assert self._credentials is not None
        material = self._credentials.material
        if material is None:
            raise RemoteError("this process has no certificate yet")
        if self._client is None or self._server is None or material is not self._made_of:
            self._client = client_context(material)
            self._server = server_context(material, strangers=False)
            self._made_of = material
        return self._client, self._server
