"""Holds one connection of a secured run to the name that its certificate says.

Invariant: whatever passes `check` was said by who may say it: a trainer as itself, a holder of a
ticket about the status only.  Everything refused has been told, and is in the audit log once.
"""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Final, Self

from pccl.base.errors import RemoteError
from pccl.membership.departures import LEFT
from pccl.membership.events import NativeFrame, PeerMessage
from pccl.membership.identity_limits import Identity
from pccl.membership.messages import Evicted, Hello, Refused, StatusRequest
from pccl.membership.service_audit import Audit
from pccl.membership.service_refusals import refuse_either
from pccl.transport import native_frames
from pccl.transport.channel import Channel
from pccl.transport.handshake_pace import address_group
from pccl.transport.identity import Name, Role
from pccl.transport.token_bucket import TokenBucket

TOLD_S: Final = 5.0  # who is denied has heard of it by then, or does not listen


def objection_to(
    said: object, name: Name | None, *, native_only: bool = False
) -> tuple[str, str] | None:
    """Returns the code and the text of a refusal if who is called so may not say this.

    Args:
        name: None for who may only ask for the status, or, `native_only`, for an engine without
            TLS, where a test allows them.
    """
    match said:
        case StatusRequest():
            return None
        case Hello(peer_id=peer_id) | native_frames.NativeHello(peer_id=peer_id):
            pass
        case _ if name is not None or native_only:
            return None  # it has said who it is before
        case _:
            return "identity", "with a ticket alone one may enrol, or ask for the status"
    if name is None:
        engine = native_only and not isinstance(said, Hello)
        return None if engine else ("identity", "a ticket alone makes no member; enrol first")
    if name.role is not Role.TRAINER:
        return "role", f"a {name.role.value}'s ticket makes no member of the run"
    if peer_id != name.peer_id:
        return "identity", "the certificate of this connection names another peer"
    return None


class Guard:
    """One connection's, from when it may speak until it ends: a context around the conversation."""

    def __init__(
        self,
        channel: Channel,
        name: Name | None,
        first: bytes,
        audit: Audit,
        members: Counter[str],
        identity: Identity,
        *,
        native_only: bool = False,
    ) -> None:
        """Takes over one connection of `identity`, counted by who made this.

        Args:
            first: what to read as its first body.
            members: connections of peers by `address_group`.
        """
        self.first = first
        self._channel = channel
        self._name = name
        self._audit = audit
        self._members = members
        self._native_only = native_only
        self._identity = identity
        self._host = channel.remote_host
        self._group = address_group(self._host)
        self._counted = False
        self._refused = False  # and written

    @property
    def peer_id(self) -> bytes:
        """The peer that the certificate names; b"" if there is none."""
        return b"" if self._name is None else self._name.peer_id

    def check(self, event: PeerMessage | NativeFrame, body: bytes) -> None:
        """Raises RemoteError, and tells the other end, if it may not say this."""
        said = event.msg if isinstance(event, PeerMessage) else event.frame
        objection = objection_to(said, self._name, native_only=self._native_only)
        if objection is not None:
            self._refuse(*objection)
            refuse_either(self._channel, body, *objection)

    def let_in(self, *, native: bool) -> None:
        """The machine took it in: new connections from its address come first from now on."""
        if not self._counted:
            self._counted = True
            self._members[self._group] += 1
            if not native:
                self._audit.admitted(self.peer_id, self._host, "")

    def turned_away(self, answer: Refused | Evicted) -> None:
        if isinstance(answer, Evicted) and answer.text == LEFT:
            self._audit.left(self.peer_id)
        elif isinstance(answer, Evicted):
            self._audit.evicted(self.peer_id, answer.text)
        else:
            self._refuse(answer.code, answer.text)

    def bucket(self, *, native: bool) -> TokenBucket:
        """What holds all connections of this identity to one rate of messages."""
        return self._identity.bucket(native=native)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """The connection has ended, or, by RemoteError, ends for what it sent."""
        if isinstance(error, RemoteError) and not self._refused:
            self._refuse("message", error.reason)
        self._identity.connections -= 1
        if self._counted:
            self._members[self._group] -= 1
            if self._members[self._group] <= 0:
                del self._members[self._group]

    def _refuse(self, code: str, text: str) -> None:
        self._refused = True
        self._audit.refused(code, self.peer_id, self._host, text)
