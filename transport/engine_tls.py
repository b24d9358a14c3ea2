"""How the native core is given what it proves itself by, and what happens where it has no TLS."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pccl.base.errors import UsageError
from pccl.transport.identity import TlsMaterial

plain_engine_in_secured_run = False
"""For tests of the control plane alone: an engine without TLS may join a secured run, in which its
native connections are plain.  The coordinator must have been told, too (`plain_engines`)."""


@dataclass(frozen=True, slots=True)
class Library:
    """The OpenSSL that native connections of this process use.

    `wide_aes`: it enciphers several blocks at once (VAES), which takes version 3.2 and a processor
    that can.
    """

    version: str
    path: str
    wide_aes: bool


def library(module: Any) -> Library | None:
    """Returns what a native core has found; None if it has no TLS, or found nothing."""
    if not has_tls(module):
        return None
    version, path, problem = module.tls_library()
    return None if problem else Library(version, path, is_recent(version) and _has_vaes())


def in_words(module: Any) -> str:
    """Says for people within what lanes of a secured run are here; "" if this core has no TLS."""
    found = library(module)
    if found is None:
        return ""
    version = " ".join(found.version.split()[:2])  # without its date
    return f"TLS 1.3, {version}, {found.path}"


def is_recent(version: str) -> bool:
    """Says whether an OpenSSL of this version has the wide kernels for AES-GCM."""
    number = re.search(r"(\d+)\.(\d+)", version)
    return number is not None and (int(number[1]), int(number[2])) >= (3, 2)


def _has_vaes() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("flags")[2]
    except OSError:
        return False
    return "vaes" in flags.partition("\n")[0].split()


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
