"""The folder of a run's CA: its certificate, its key, and the ledger.

    DIR/ca.pem      the CA's certificate; no secret
    DIR/ca.key      its key; who has it can make himself a member or a coordinator of the run
    DIR/ledger.db   tickets with their secrets, enrolments, denials
    DIR/audit.log   who was let in, refused and put out, and why

Invariant: the folder and all secrets in it are made for their owner alone, and a key that others
can read is not used.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pccl.base.errors import RemoteError, UsageError
from pccl.base.ids import ID_BYTES
from pccl.base.private_files import make_private_file
from pccl.membership.enrolment import LIFE_S_MAX, Token
from pccl.membership.service_ledger import Ledger, LedgerError
from pccl.transport.authority import (
    LEAF_LIFE_S,
    SERIAL_BYTES,
    Authority,
    key_pem,
    make_ca,
    pem,
)
from pccl.transport.identity import (
    Role,
    ed25519_key,
    fingerprint,
    parse_certificate,
    unreadable,
)
from pccl.transport.join_ticket import SECRET_BYTES, TOKEN_ID_BYTES, JoinTicket

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

CERTIFICATE: Final = "ca.pem"
KEY: Final = "ca.key"
LEDGER: Final = "ledger.db"
AUDIT: Final = "audit.log"
LIFE_S_MIN: Final = 1.0
_READABLE: Final = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class CaFolder:
    """An opened folder; `close` lets the ledger go."""

    path: Path
    authority: Authority
    ledger: Ledger

    def close(self) -> None:
        self.ledger.close()

    def new_serial(self) -> bytes:
        return secrets.token_bytes(SERIAL_BYTES)

    def make_ticket(
        self, role: Role, *, uses: int, expires_in_s: float, endpoints: tuple[str, ...]
    ) -> JoinTicket:
        """Makes a ticket, durably known to the ledger when this returns.

        Raises:
            UsageError: one of the values is out of range.
            LedgerError: it cannot be written.
        """
        now = int(time.time())
        try:
            ticket = JoinTicket(
                run_id=self.authority.run_id,
                endpoints=endpoints or self.ledger.endpoints,
                ca_fingerprint=fingerprint(self.authority.certificate_der),
                token_id=secrets.token_bytes(TOKEN_ID_BYTES),
                secret=secrets.token_bytes(SECRET_BYTES),
                expires=now + max(1, int(expires_in_s)),
                uses=uses,
                role=role.value,
            )
        except ValueError as error:
            raise UsageError(f"such a ticket cannot be made: {error}") from error
        token = Token(ticket.token_id, ticket.secret, role)
        self.ledger.add_token(token, uses, now, ticket.expires)
        return ticket


def init_ca(
    path: Path, *, life_s: float = LEAF_LIFE_S, endpoints: tuple[str, ...] = ()
) -> CaFolder:
    """Makes the CA of a new run.

    Args:
        path: a folder that does not exist yet, or is empty.
        life_s: how long certificates of peers and coordinators are valid.
        endpoints: where coordinators of the run will listen; tickets carry it.

    Raises:
        UsageError: the folder is in use, or cannot be made.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not LIFE_S_MIN <= life_s <= LIFE_S_MAX:
        raise UsageError(f"certificates live {LIFE_S_MIN:g} s to {LIFE_S_MAX:g} s, not {life_s:g}")
    key = Ed25519PrivateKey.generate()
    run_id = secrets.token_bytes(ID_BYTES)
    certificate = make_ca(key, run_id, secrets.token_bytes(SERIAL_BYTES), time.time())
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise UsageError(
                f"{path} is not empty; `pccl ca init` makes a CA in a folder of its own"
            )
        path.chmod(0o700)
        _write_new(path / KEY, key_pem(key))
        _write_new(path / CERTIFICATE, pem(certificate))
        (path / CERTIFICATE).chmod(0o644)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    ledger = Ledger.create(path / LEDGER, run_id, life_s, ",".join(endpoints))
    return CaFolder(path, Authority(run_id, certificate, key), ledger)


def open_ca(path: Path) -> CaFolder:
    """Opens what `init_ca` has made.

    Raises:
        UsageError: it is no such folder, is damaged, or others can read its key.
    """
    advice = "name a folder that `pccl ca init` has made (--ca DIR)"
    try:
        mode = (path / KEY).stat().st_mode
        key_text, certificate_text = (path / KEY).read_bytes(), (path / CERTIFICATE).read_bytes()
    except OSError as error:
        raise UsageError(f"{path} is no CA: {error.strerror or error}; {advice}") from error
    if mode & _READABLE:
        raise UsageError(f"{path / KEY} can be read by others; chmod 600 {path / KEY}")
    try:
        key, certificate = parse_ca(key_text, certificate_text)
    except RemoteError as error:
        raise UsageError(f"{path} is damaged: {error.reason}; {advice}") from error
    try:
        ledger = Ledger(path / LEDGER)
    except LedgerError as error:
        raise UsageError(str(error)) from error
    return CaFolder(path, Authority(ledger.run_id, certificate, key), ledger)


def parse_ca(key_text: bytes, certificate_text: bytes) -> tuple[Ed25519PrivateKey, bytes]:
    """Returns a CA's key and certificate (DER), of what lies in its two files.

    Raises:
        RemoteError: they are not of our kind, or do not belong together.
    """
    from cryptography.exceptions import InternalError
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
    from cryptography.x509 import load_pem_x509_certificate

    refusals: tuple[type[BaseException], ...] = (*unreadable(), InternalError)
    try:
        key = load_pem_private_key(key_text, password=None)
        certificate = load_pem_x509_certificate(certificate_text).public_bytes(Encoding.DER)
    except refusals as error:
        told = str(error).partition(".")[0]  # the last of them talks of libraries, at length
        raise RemoteError(told) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise RemoteError("its key is not Ed25519")
    if ed25519_key(parse_certificate(certificate)) != key.public_key():
        raise RemoteError("its key and its certificate do not belong together")
    return key, certificate


def _write_new(file: Path, data: bytes) -> None:
    descriptor = make_private_file(file)
    with open(descriptor, "wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(descriptor)
