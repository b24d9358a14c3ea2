"""TLS contexts of a secured run: 1.3 only, nothing resumed, certificates of the run's CA.

Neither end remembers a session (no tickets, hence no early data that could be replayed), so every
connection proves both keys anew.  Host names mean nothing here: whom a certificate names is checked
against the run and, where one is expected, the peer (`Secured.name`).

Invariant: keys reach OpenSSL through memory only, where the system allows it, and never through a
file that another user can read.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pccl.base.errors import RemoteError
from pccl.transport.identity import Name, Role, TlsMaterial, name_in

HANDSHAKE_RECORD: Final = 0x16  # the first byte of every TLS connection


@dataclass(frozen=True, slots=True)
class Secured:
    """What a TLS connection has proved: the certificates at its ends, DER; b"" where none was
    shown.  The other end's was signed by the run's CA, if its context demanded or was given one."""

    theirs: bytes
    own: bytes

    def name(self) -> Name | None:
        """Returns whom the other end's certificate names; None if it showed none.

        Raises:
            RemoteError: the CA signed what is no certificate of a run.
        """
        return name_in(self.theirs) if self.theirs else None


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What a listener shows: its context, and the leaf in it."""

    context: ssl.SSLContext
    leaf_der: bytes


def server_context(material: TlsMaterial, *, strangers: bool) -> ssl.SSLContext:
    """Returns the context of a listener.

    Args:
        strangers: whoever has no certificate may connect, too; what it may say is up to the caller.
            One that shows a certificate must show a valid one, in any case.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, material)
    context.verify_mode = ssl.CERT_OPTIONAL if strangers else ssl.CERT_REQUIRED
    context.num_tickets = 0
    return context


def client_context(material: TlsMaterial) -> ssl.SSLContext:
    """Returns the context of a dialler: shows its certificate, and demands one of the same CA."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, material)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def enrolling_context() -> ssl.SSLContext:
    """Returns the context of who has nothing but a ticket.  It believes no certificate: who uses it
    must check the leaf against the ticket's fingerprint before it sends anything of worth."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def check_coordinator(found: Secured, run_id: bytes) -> None:
    """Raises RemoteError unless the other end is a coordinator of this run."""
    name = found.name()
    if name is None or name.role is not Role.COORDINATOR or name.run_id != run_id:
        raise RemoteError("who answers holds a certificate of this run, but is no coordinator")


def _context(protocol: int, material: TlsMaterial) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    _harden(context)
    context.load_verify_locations(cadata=material.ca_pem.decode("ascii"))
    with _as_file(material.certificate_pem + material.ca_pem + material.key_pem) as path:
        context.load_cert_chain(path)
    return context


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """Gives bytes a path, because Python's ssl takes keys from nowhere else."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("pccl-tls", os.MFD_CLOEXEC)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    with tempfile.NamedTemporaryFile("wb") as file:  # made for its owner alone
        file.write(data)
        file.flush()
        yield file.name
