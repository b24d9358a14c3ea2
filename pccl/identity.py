"""Who a peer is: an Ed25519 key, whose hash is the peer id.

The key is made at connect and forgotten with the process, or kept in a file if a path is given.
Invariant: a key file is only ever created with access for its owner alone, and never overwritten.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pccl.base.errors import UsageError
from pccl.base.private_files import make_private_file
from pccl.outcome import Peer
from pccl.transport.identity import peer_id_of_raw

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

HOST_KEY_BYTES = 8
_KEEP = "name one that does not exist yet, and it is made"


def load_or_make_key(path: str | os.PathLike[str] | None) -> Ed25519PrivateKey:
    """Returns the key in the file `path`, making the file if there is none; a new key if None.

    Raises:
        UsageError: the file cannot be read or written, or holds no Ed25519 key in PEM form.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if path is None:
        return Ed25519PrivateKey.generate()
    try:
        file = Path(path)
    except TypeError:
        raise UsageError(f"identity must be a path, not {path!r}") from None
    try:
        if not file.exists():
            _write_new(file, Ed25519PrivateKey.generate())
        return _parse(file.read_bytes(), file)
    except OSError as error:
        raise UsageError(
            f"identity file {file} cannot be read or made: {error.strerror or error}; name a file "
            "in a folder that exists and that this user may write to"
        ) from error


def peer_id_of(key: Ed25519PrivateKey) -> Peer:
    """Returns the first 16 bytes of SHA-256 over the raw public key."""
    return Peer(peer_id_of_raw(key.public_key().public_bytes_raw()))


def this_host_key() -> int:
    """Returns a number that is equal for processes which can reach each other inside one machine:
    same boot, same network namespace.  0 if the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
        namespace = os.stat("/proc/self/ns/net").st_ino
    except OSError:
        return 0
    digest = hashlib.sha256(boot + namespace.to_bytes(8, "little")).digest()
    return int.from_bytes(digest[:HOST_KEY_BYTES], "little")


def _write_new(file: Path, key: Ed25519PrivateKey) -> None:
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = make_private_file(file)
    except FileExistsError:
        return  # another process was faster: its key is as good
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(pem)


def _parse(pem: bytes, file: Path) -> Ed25519PrivateKey:
    from cryptography.exceptions import InternalError, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:
        raise UsageError(
            f"identity file {file} holds no private key in PEM form; {_KEEP}"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"identity file {file} holds a key that is not Ed25519; {_KEEP}")
    return key
