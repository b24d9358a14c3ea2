"""How the native core is given what it proves itself by, and what happens where it has no TLS."""

from __future__ import annotations

from typing import Any

from pccl.base.errors import UsageError
from pccl.transport.identity import TlsMaterial

plain_engine_in_secured_run = False
"""For tests of the control plane alone: an engine without TLS may join a secured run, in which its
native connections are plain.  The coordinator must have been told, too (`plain_engines`)."""


def parts(tls: TlsMaterial) -> tuple[bytes, bytes, bytes]:
    """Returns certificate, key and CA as the core takes them, PEM."""
    return tls.certificate_pem, tls.key_pem, tls.ca_pem


def has_tls(module: Any) -> bool:
    """Says whether a native core can secure its connections."""
    return hasattr(module.Engine, "set_tls")


def tls_arguments(module: Any, tls: TlsMaterial | None) -> dict[str, Any]:
    """Returns what a native engine is made with besides.

    Raises:
        UsageError: the run is secured, and this core has no TLS: nothing falls back to plain bytes.
    """
    if tls is None:
        return {}
    if has_tls(module):
        return {"tls": parts(tls)}
    if not plain_engine_in_secured_run:
        raise UsageError("the run is secured, and this build of pccl's native core has no TLS")
    return {}
