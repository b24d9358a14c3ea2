"""A coordinator's side of a secured run: what its port shows, who may speak there, who is put out.

Everything on the port is TLS 1.3.  Who shows a certificate of the run's CA may speak as the peer
that it names and as no other; who shows none may enrol by a ticket, or ask for the status by one.
The coordinator's own certificate is made here, in memory, and made again before it expires.

Denials are read from the ledger as soon as another program has written to it, and told to the
machine, which puts the peer out like one that has died: by one flush.

Invariant: `enter` returns only connections that may speak; all others have been told why and are
closed.  No name is believed that the connection's certificate does not say.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, NoReturn

from pccl.base.clock import Clock, system_clock
from pccl.base.config import ControlLimits
from pccl.base.errors import PcclError, RemoteError
from pccl.base.log import get_logger
from pccl.membership.enrolment import EnrolRequest, Watch, enrolment_codec, is_enrolment
from pccl.membership.identity_limits import Identity, IdentityLimits, Unruly
from pccl.membership.messages import Refused, StatusRequest, coordinator_codec, peer_codec
from pccl.membership.service_audit import Audit
from pccl.membership.service_ca import AUDIT, CaFolder
from pccl.membership.service_denials import Watchers
from pccl.membership.service_enrolment import Enrolling
from pccl.membership.service_guard import Guard
from pccl.membership.service_refusals import refuse, refuse_either, refuse_native
from pccl.transport import engine_tls, native_frames
from pccl.transport.authority import key_pem, pem
from pccl.transport.channel import Channel
from pccl.transport.framing import HEAD_BYTES, frame
from pccl.transport.handshake_pace import address_group
from pccl.transport.identity import Name, Role, TlsMaterial
from pccl.transport.native_core import load_native
from pccl.transport.tls import ServerIdentity, server_context
from pccl.transport.tls_door import TlsDoor

WATCH_S: Final = 0.2  # a denial is heeded that late, and a flush
RENEWED_AT: Final = 2 / 3  # of a certificate's life
RETRY_S: Final = 5.0  # of reading a ledger that could not be read
PLAIN_TEXT: Final = (
    "this run is secured: everything on this port is TLS; pass a join ticket to pccl.connect"
    "(ticket=...) or in PCCL_TICKET; whoever runs `pccl ca ticket` gives you one"
)
TOO_MANY: Final = (
    "too many connections of this peer, or of this ticket; close some, or come more slowly"
)
REVOKED: Final = "the key of this peer, or the ticket it came by, was revoked"
_log = get_logger("membership")


class Security:
    """One coordinator's, over an opened CA folder, which it closes."""

    def __init__(
        self,
        ca: CaFolder,
        *,
        plain_engines: bool = False,
        limits: ControlLimits | None = None,
        clock: Clock = system_clock,
    ) -> None:
        """`plain_engines`: native connections may go without TLS.  For tests alone."""
        self._ca = ca
        self._clock = clock
        self._plain_engines = plain_engines
        self._denied: frozenset[bytes] = ca.ledger.denied()
        self._version = ca.ledger.version()
        self._members: Counter[str] = Counter()  # connections of peers, by `address_group`
        self._limits = IdentityLimits(limits or ControlLimits())
        self._unruly = Unruly()  # by `address_group`
        self._identity = self._new_identity()
        self._renew_at_s = clock() + self.life_s * RENEWED_AT
        self.libraries = _libraries()
        self.audit = Audit(ca.path / AUDIT, clock=clock)
        self._enrolling = Enrolling(ca, self.audit)
        self._watchers = Watchers(self.audit, clock=clock)
        self.door = TlsDoor(
            lambda: self._identity,
            to_plain=frame(coordinator_codec.encode(Refused("secured", PLAIN_TEXT))),
            prefer=self._is_preferred,
            plain_allowed=lambda said: plain_engines and _is_engine(said),
        )

    @property
    def run_id(self) -> bytes:
        return self._ca.authority.run_id

    @property
    def life_s(self) -> float:
        return self._ca.ledger.life_s

    def close(self) -> None:
        self.audit.close()
        self._ca.close()

    async def listening(self, endpoint: str) -> None:
        """Notes where the coordinator listens, for tickets, if nobody has said it yet."""
        with contextlib.suppress(PcclError):
            if not self._ca.ledger.endpoints:
                await asyncio.to_thread(self._ca.ledger.set_endpoints, (endpoint,))

    # ------------------------------------------------------------------ who may speak

    def refused(self, host: str, code: str, reason: str) -> None:
        """Somebody did not come through the door, before it could say who it is."""
        self.audit.refused(code, b"", host, reason)

    async def enter(self, channel: Channel, first: bytes) -> Guard | None:
        """Returns what guards a new connection; None if it wanted nothing more.

        Raises:
            RemoteError: it may not, and has been told if that is more than what it sent.
        """
        try:
            return await self._enter_as(channel, first)
        except RemoteError as error:
            if not channel.closed:  # else it was told, and the log before
                self.audit.refused("message", b"", channel.remote_host, error.reason)
            raise

    async def _enter_as(self, channel: Channel, first: bytes) -> Guard | None:
        if channel.secured is None:
            assert self._plain_engines
            if not native_frames.is_native(first):
                raise RemoteError("a plain connection that is no engine's")
            return self._guard(channel, None, first, b"plain engines", native_only=True)
        name = channel.secured.name()
        if name is None:
            if not is_enrolment(first):
                self._refuse(channel, first, "identity", PLAIN_TEXT, b"")
            if not await self._enrolling.serve(channel, first):
                return None
            asked = peer_codec.encode(StatusRequest())
            ticket = enrolment_codec.decode(first)
            assert isinstance(ticket, EnrolRequest)  # as it was served
            return self._guard(channel, None, asked, ticket.token_id, asks=True)
        if name.run_id != self.run_id or name.role is Role.COORDINATOR:
            self._refuse(channel, first, "identity", "a certificate of another run", b"")
        if name.peer_id in self._denied:
            if is_enrolment(first):
                self._enrolling.refuse(channel, "revoked", REVOKED, name.peer_id)
            self._refuse(channel, first, "revoked", REVOKED, name.peer_id)
        if is_enrolment(first):
            entered = self._enter(channel, first, name.peer_id)
            try:
                if isinstance(enrolment_codec.decode(first), Watch):
                    await self._watchers.serve(channel, name.peer_id, self._denied)
                else:
                    await self._enrolling.renew(channel, first, name)
            finally:
                entered.connections -= 1
            return None
        return self._guard(channel, name, first, name.peer_id)

    def _guard(
        self,
        channel: Channel,
        name: Name | None,
        first: bytes,
        identity: bytes,
        *,
        asks: bool = False,
        native_only: bool = False,
    ) -> Guard:
        entered = self._enter(channel, first, identity, asks=asks)
        return Guard(
            channel, name, first, self.audit, self._members, entered, native_only=native_only
        )

    def _enter(
        self, channel: Channel, first: bytes, identity: bytes, *, asks: bool = False
    ) -> Identity:
        """Counts one more connection of an identity.  Raises RemoteError, and tells it, if there
        are too many."""
        now_s, group = self._clock(), address_group(channel.remote_host)
        counted_as = identity + group.encode() if asks else identity
        entered = self._limits.enter(counted_as, now_s, asks=asks)
        if entered is None:
            self._unruly.note(group, now_s)
            self.audit.refused("limit", identity, channel.remote_host, TOO_MANY)
            if native_frames.is_native(first):
                refuse_native(channel, native_frames.RefusalCode.LIMIT, TOO_MANY)
            refuse(channel, "crowded", TOO_MANY)  # so that an honest one tries again
        return entered

    def _is_preferred(self, group: str) -> bool:
        """Says whether handshakes from there come first: members are there, and none misbehaves."""
        return self._members[group] > 0 and not self._unruly.has(group, self._clock())

    def _refuse(self, channel: Channel, body: bytes, code: str, text: str, peer: bytes) -> NoReturn:
        self.audit.refused(code, peer, channel.remote_host, text)
        refuse_either(channel, body, code, text)

    # ------------------------------------------------------------------ in the background

    async def watch(self, on_denied: Callable[[frozenset[bytes]], None]) -> None:
        """Runs until cancelled: heeds denials, and renews the coordinator's certificate.

        `on_denied` is told all that are denied whenever somebody was added.
        """
        if self._denied:
            on_denied(self._denied)
        while True:
            await asyncio.sleep(WATCH_S)
            self.audit.sum_up()
            if self._clock() >= self._renew_at_s:
                self._identity = self._new_identity()
                self._renew_at_s = self._clock() + self.life_s * RENEWED_AT
            try:
                denied = await asyncio.to_thread(self._read_denied)
            except PcclError as error:
                _log.error("%s; denials are not heeded until it can be read again", error)
                await asyncio.sleep(RETRY_S)
                continue
            if denied is not None and denied - self._denied:
                new, self._denied = denied - self._denied, denied
                for peer_id in new:
                    self.audit.evicted(peer_id, REVOKED)  # also one that hangs up first
                self._watchers.tell(new)
                on_denied(denied)

    def _read_denied(self) -> frozenset[bytes] | None:
        version = self._ca.ledger.version()
        if version == self._version:
            return None
        denied = self._ca.ledger.denied()
        self._version = version
        return denied

    def _new_identity(self) -> ServerIdentity:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        key, authority = Ed25519PrivateKey.generate(), self._ca.authority
        leaf = authority.issue_coordinator(
            key.public_key(), self._ca.new_serial(), time.time(), self.life_s
        )
        material = TlsMaterial(pem(leaf), key_pem(key), pem(authority.certificate_der))
        return ServerIdentity(server_context(material, strangers=True), leaf)


def _libraries() -> dict[str, object]:
    """What this machine's connections are secured by: Python's, and the native core's."""
    native = engine_tls.library(load_native())
    return {
        "control": ssl.OPENSSL_VERSION,
        "native": None if native is None else native.version,
        "wide_aes": native is not None and native.wide_aes,
    }


def _is_engine(said: bytes) -> bool:
    return native_frames.is_native(said[HEAD_BYTES:])
