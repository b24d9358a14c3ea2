"""A join ticket: all that a process needs to enter a secured run, as one printable string.

    pccl1_ + base64url(MessagePack body + first 4 bytes of SHA-256 over the body), without padding

The checksum finds a ticket that was cut short in a terminal, nothing more: what keeps a forged one
out is the secret, which the run's ledger knows.

Invariant: parse(ticket.text) == ticket, and whatever text comes in, `parse_ticket` returns a ticket
whose every field is within its limits, or raises UsageError.  No repr or error shows the secret.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from typing import Final

from pccl.base.errors import RemoteError, UsageError
from pccl.base.ids import ID_BYTES
from pccl.transport.address import ADDRESSES_MAX, Address, parse_addresses
from pccl.transport.codec import Codec, message
from pccl.transport.identity import Role

PREFIX: Final = "pccl1_"
SECRET_BYTES: Final = 32
TOKEN_ID_BYTES: Final = 8
FINGERPRINT_BYTES: Final = 32
USES_MAX: Final = 1 << 20
TEXT_CHARACTERS_MAX: Final = 4096
_CHECK_BYTES: Final = 4
_EXPIRES_MAX: Final = 1 << 40  # seconds; later than any date a certificate can hold


@message(1)
@dataclass(frozen=True, slots=True)
class JoinTicket:
    """Who holds it may enrol in one run, `uses` times at most and until it expires."""

    run_id: bytes
    endpoints: tuple[str, ...]  # host:port of coordinators, in order of preference
    ca_fingerprint: bytes  # SHA-256 of the CA's certificate
    token_id: bytes
    secret: bytes = field(repr=False)
    expires: int  # seconds since 1970, UTC
    uses: int
    role: str  # trainer or receiver

    def __post_init__(self) -> None:
        _demand(len(self.run_id) == ID_BYTES, "its run id has a wrong length")
        _demand(len(self.ca_fingerprint) == FINGERPRINT_BYTES, "its fingerprint is too short")
        _demand(len(self.token_id) == TOKEN_ID_BYTES, "its token id has a wrong length")
        _demand(len(self.secret) == SECRET_BYTES, "its secret has a wrong length")
        _demand(len(self.endpoints) <= ADDRESSES_MAX, "it names too many endpoints")
        _demand(0 < self.expires < _EXPIRES_MAX, "its expiry is no date")
        _demand(0 < self.uses <= USES_MAX, "its number of uses is out of range")
        _demand(self.role in (Role.TRAINER, Role.RECEIVER), "its role is unknown")
        for endpoint in self.endpoints:
            _demand("," not in endpoint, "an endpoint of it is no address")
            try:
                parse_addresses(endpoint)
            except UsageError as error:
                raise ValueError("an endpoint of it is no address") from error

    @property
    def addresses(self) -> tuple[Address, ...]:
        return parse_addresses(",".join(self.endpoints)) if self.endpoints else ()

    @property
    def text(self) -> str:
        """The printable form; holds the secret."""
        body = _codec.encode(self)
        check = hashlib.sha256(body).digest()[:_CHECK_BYTES]
        return PREFIX + base64.urlsafe_b64encode(body + check).decode().rstrip("=")


_codec: Codec[JoinTicket] = Codec(JoinTicket)


def parse_ticket(text: str) -> JoinTicket:
    """Returns the ticket in `text`; white space around it does not matter.

    Raises:
        UsageError: it is no ticket, was cut short, or belongs to another version of pccl.
    """
    stripped = text.strip() if isinstance(text, str) else ""
    if not stripped.startswith(PREFIX):
        raise _error(f"it does not begin with {PREFIX}")
    if len(stripped) > TEXT_CHARACTERS_MAX:
        raise _error(f"it has {len(stripped)} characters")
    encoded = stripped[len(PREFIX) :]
    try:
        padded = encoded + "=" * (-len(encoded) % 4)
        raw = base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise _error("a part of it is missing, or something was added") from error
    body, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
    if hashlib.sha256(body).digest()[:_CHECK_BYTES] != check:
        raise _error("a part of it is missing or changed")
    try:
        ticket = _codec.decode(body)
    except RemoteError as error:
        raise _error("its content is not what this version of pccl reads") from error
    if ticket.text != stripped:  # unused bits of base64, or numbers written at length
        raise _error("a part of it is changed")
    return ticket


def _demand(holds: bool, text: str) -> None:
    if not holds:
        raise ValueError(text)


def _error(reason: str) -> UsageError:
    return UsageError(
        f"this is no join ticket: {reason}; copy all that `pccl ca ticket` printed (one line that "
        f"begins with {PREFIX})"
    )
