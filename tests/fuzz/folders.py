"""Fuzz targets of a CA's folder: its two files, rows of its ledger, and the folder as a whole.

What is decoded by our own code is decoded from memory, and so as often as any other decoder's
input.  The folder goes through SQLite and the file system, which costs a hundred times as much: it
is about how they are put together.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pccl.base.errors import RemoteError, UsageError
from pccl.membership import ledger_rows as rows
from pccl.membership.enrolment import LIFE_S_MAX
from pccl.membership.service_ca import CERTIFICATE, KEY, LEDGER, init_ca, open_ca, parse_ca
from pccl.membership.service_ledger import LedgerError
from pccl.transport.authority import key_pem, make_ca, pem
from pccl.transport.identity import Role
from tests.fuzz.drawing import Source

MEMORY = Path("/dev/shm")  # a file system without a disk, where there is one
KEYS: tuple[bytes, ...] = (bytes(range(32)), bytes(range(1, 33)))
VALUES: tuple[Any, ...] = (
    *(None, 0, 1, -1, 2, 7, 2**31, 2**62, 0.5, 3600.0, -1.0, float("nan"), float("inf"), 1e300),
    *("", "trainer", "receiver", "coordinator", "no reason given", "x" * 70_000, "\x00", "ä"),
    *(b"", b"8 bytes.", bytes(16), bytes(32), bytes(33), b"trainer"),
)


@cache
def _files() -> tuple[tuple[bytes, bytes], ...]:
    """The key and the certificate of two CAs."""
    made = []
    for seed in KEYS:
        key = Ed25519PrivateKey.from_private_bytes(seed)
        made.append((key_pem(key), pem(make_ca(key, b"r" * 16, bytes(range(16)), 1.7e9))))
    return tuple(made)


def _damaged(content: bytes, source: Source) -> bytes:
    changed = bytearray(content)
    while source and changed:
        at = int.from_bytes(source.take(2), "big") % len(changed)
        changed[at] ^= source.byte() or 1
        if source.chance(8):
            del changed[at:]
    return bytes(changed)


def ca_files(data: bytes) -> None:
    """A CA's key and certificate, of which one is another's, was damaged, or is anything."""
    source = Source(data)
    how = source.below(8)
    (key_text, certificate_text), (other_key, other_certificate) = _files()
    match how:
        case 0:
            key_text = source.rest()
        case 1:
            certificate_text = source.rest()
        case 2:
            key_text = _damaged(key_text, source)
        case 3 | 4:
            certificate_text = _damaged(certificate_text, source)
        case 5:
            key_text = _damaged(other_key, source)
        case 6:
            certificate_text = _damaged(other_certificate, source)
        case _:
            key_text, certificate_text = other_key, other_certificate
    try:
        key, certificate = parse_ca(key_text, certificate_text)
    except RemoteError as error:
        assert error.reason
        return
    assert key.private_bytes_raw() in KEYS or how in (0, 2, 5)
    assert len(certificate) <= len(certificate_text)


def ca_file_seeds() -> list[bytes]:
    (key_text, certificate_text), _ = _files()
    changed = [bytes((how, 0, at, 9, 4)) for how in range(2, 8) for at in (0, 30, 60, 100)]
    return [b"", b"\x00" + key_text, b"\x01" + certificate_text, *changed]


READERS: tuple[tuple[int, Callable[[rows.Row], Any]], ...] = (
    (3, rows.run_of),
    (2, lambda row: rows.token_of(bytes(8), row)),
    (3, rows.terms_of),
    (7, rows.token_row_of),
    (6, rows.peer_row_of),
    (1, lambda row: rows.text_of(row[0])),
)


def ledger_rows(data: bytes) -> None:
    """Values of any type, as a damaged database has them, in rows of about the right length."""
    source = Source(data)
    while source:
        count, read = source.pick(READERS)
        if source.chance(16) and count > 1:
            count += source.below(3) - 1
        row = [_value(source) for _ in range(count)]
        try:
            found = read(row)
        except RemoteError as error:
            assert len(str(error)) < 300
            continue
        match found:
            case rows.TokenRow() | rows.PeerRow():
                assert len(found.token_id) == 8 and isinstance(found.role, Role)
            case (bytes() as run_id, float() as life_s):
                assert len(run_id) == 16 and 0 < life_s <= LIFE_S_MAX


def _value(source: Source) -> Any:
    match source.below(16):
        case 0:
            return source.take(source.below(40))
        case 1:
            return int.from_bytes(source.take(8), "big", signed=True)
        case 2:
            return source.take(source.below(20)).decode("latin-1")
        case _:
            return source.pick(VALUES)


def row_seeds() -> list[bytes]:
    """Good rows of each kind."""
    good: tuple[tuple[int, tuple[Any, ...]], ...] = (
        (0, (1, bytes(16), 3600.0)),
        (1, (bytes(32), "trainer")),
        (2, (7, 2**31, None)),
        (3, (b"8 bytes.", "receiver", 1, 7, 2**31, 2**31, None)),
        (4, (bytes(16), b"8 bytes.", "trainer", 1, 7, "no reason given")),
        (5, ("x" * 70_000,)),
    )
    return [
        bytes((kind, 0)) + b"".join(bytes((3, VALUES.index(value))) for value in row)
        for kind, row in good
    ]


@cache
def _folder() -> tuple[Path, dict[str, bytes]]:
    """A CA that is as it should be, and its three files."""
    path = Path(tempfile.mkdtemp(prefix="pccl-fuzz-", dir=MEMORY if MEMORY.is_dir() else None))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    init_ca(path / "ca", endpoints=("10.0.0.1:1",)).close()
    files = {name: (path / "ca" / name).read_bytes() for name in (KEY, CERTIFICATE, LEDGER)}
    return path / "ca", files


def ca_folder(data: bytes) -> None:
    """A CA one of whose files was damaged: it opens and is listed, or says so."""
    folder, files = _folder()
    source = Source(data)
    name = (KEY, CERTIFICATE, LEDGER, LEDGER)[source.below(4)]
    content = _damaged(files[name], source) if source.chance(2) else source.rest()
    (folder / name).write_bytes(content)
    try:
        opened = open_ca(folder)
        try:
            opened.ledger.tokens()
            opened.ledger.peers()
            opened.ledger.denied()
        finally:
            opened.close()
    except (UsageError, LedgerError) as error:
        assert str(error)
    finally:
        (folder / name).write_bytes(files[name])


def ca_seeds() -> list[bytes]:
    return [b"", *(bytes((n, 1, at, 9, 4, 0)) for n in range(4) for at in range(3))]
