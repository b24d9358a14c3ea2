"""Rows of a ledger as they were read from its file, checked: a database that opens may be damaged.

Pure: values in, values out.

Invariant: what is returned has the types and sizes that who wrote the ledger gave them; a number
where bytes should be is never taken for a size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pccl.base.errors import RemoteError
from pccl.base.ids import ID_BYTES
from pccl.membership.enrolment import LIFE_S_MAX, Token
from pccl.transport.identity import Role
from pccl.transport.join_ticket import SECRET_BYTES, TOKEN_ID_BYTES

FORMAT: Final = 1
TEXT_CHARACTERS_MAX: Final = 1 << 16

Row = Sequence[object]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A ticket as `pccl ca list` shows it; without its secret."""

    token_id: bytes
    role: Role
    uses: int
    uses_max: int
    made: int
    expires: int
    revoked: int | None


@dataclass(frozen=True, slots=True)
class PeerRow:
    """A key that has enrolled."""

    peer_id: bytes
    token_id: bytes
    role: Role
    first: int
    last: int
    denied: str  # why; "" if it is not


def run_of(row: Row | None) -> tuple[bytes, float]:
    """Returns run id and life, in seconds, of `format, run_id, life_s`.  All of these functions
    raise RemoteError for what cannot have been written."""
    if row is None:
        raise RemoteError("the ledger is empty")
    found, run_id, life_s = _of(row, 3)
    if found != FORMAT:
        raise RemoteError(f"the ledger was written by another version of pccl ({_short(found)})")
    if not isinstance(life_s, int | float) or not 0 < life_s <= LIFE_S_MAX:
        raise RemoteError(f"certificates cannot live {_short(life_s)} s")
    return _bytes(run_id, ID_BYTES), float(life_s)


def token_of(token_id: bytes, row: Row) -> Token:
    """Of `secret, role`."""
    secret, role = _of(row, 2)
    return Token(token_id, _bytes(secret, SECRET_BYTES), _role(role))


def terms_of(row: Row) -> tuple[int, int, bool]:
    """Returns most uses, expiry, and whether it is revoked, of `uses_max, expires, revoked`."""
    uses_max, expires, revoked = _of(row, 3)
    return _number(uses_max), _number(expires), revoked is not None


def token_row_of(row: Row) -> TokenRow:
    """Of `token_id, role, uses, uses_max, made, expires, revoked`."""
    token_id, role, uses, uses_max, made, expires, revoked = _of(row, 7)
    return TokenRow(
        token_id_of(token_id),
        _role(role),
        _number(uses),
        _number(uses_max),
        _number(made),
        _number(expires),
        None if revoked is None else _number(revoked),
    )


def peer_row_of(row: Row) -> PeerRow:
    """Of `peer_id, token_id, role, first, last, reason`."""
    peer_id, token_id, role, first, last, reason = _of(row, 6)
    return PeerRow(
        peer_id_of(peer_id),
        token_id_of(token_id),
        _role(role),
        _number(first),
        _number(last),
        "" if reason is None else text_of(reason),
    )


def peer_id_of(value: object) -> bytes:
    return _bytes(value, ID_BYTES)


def token_id_of(value: object) -> bytes:
    return _bytes(value, TOKEN_ID_BYTES)


def text_of(value: object) -> str:
    if not isinstance(value, str) or len(value) > TEXT_CHARACTERS_MAX:
        raise RemoteError(f"the ledger has a {type(value).__name__} where a text should be")
    return value


def _of(row: Row, count: int) -> Row:
    if len(row) != count:
        raise RemoteError(f"the ledger has a row of {len(row)} values, not {count}")
    return row


def _bytes(value: object, count: int) -> bytes:
    if not isinstance(value, bytes) or len(value) != count:
        raise RemoteError(f"the ledger has a {type(value).__name__} where {count} bytes should be")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise RemoteError(f"the ledger has a {type(value).__name__} where a number should be")
    return value


def _role(value: object) -> Role:
    try:
        return Role(text_of(value))
    except ValueError as error:
        raise RemoteError(f"the ledger names the unknown role {_short(value)}") from error


def _short(value: object) -> str:
    return repr(value)[:40]
