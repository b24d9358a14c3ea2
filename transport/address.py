"""Addresses as people write them: `host:port`, `10.0.0.7:48148`, `[::1]:48148`, and lists."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from pccl.base.errors import UsageError

ADDRESSES_MAX: Final = 16  # coordinators of one run; a longer list is a mistake in quoting
_HOST_NAME: Final = re.compile(
    r"(?=.{1,253}\.?$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\.?"
)


@dataclass(frozen=True, slots=True)
class Address:
    """A host name or literal address, without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, *, port_min: int = 1) -> Address:
    """Parses one `host:port`.

    Args:
        text: host name, IPv4 address or [IPv6 address], a colon and a port.
        port_min: 0 where "any free port" makes sense, as for a listener.

    Raises:
        UsageError: says what is wrong and shows how it should look.
    """
    stripped = text.strip()
    host, colon, port_text = stripped.rpartition(":")
    if not colon or not host:
        raise _error(text, "it has no port")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ip(host, version=6):
            raise _error(text, "there is no IPv6 address between the brackets")
    elif ":" in host:
        raise _error(text, "an IPv6 address needs brackets")
    elif not _is_ip(host, version=4) and not _is_host_name(host):
        raise _error(text, "the host is neither a name nor an address")
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5):
        raise _error(text, f"{port_text!r} is not a port")
    port = int(port_text)
    if not port_min <= port <= 65535:
        raise _error(text, f"port {port} is not within {port_min} to 65535")
    return Address(host, port)


def parse_addresses(text: str) -> tuple[Address, ...]:
    """Parses a comma-separated list, in order of preference, without duplicates."""
    parts = [part for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError("no address given; write host:port, or a list host-a:port,host-b:port")
    if len(parts) > ADDRESSES_MAX:
        raise UsageError(f"{len(parts)} addresses given; at most {ADDRESSES_MAX} are tried")
    return tuple(dict.fromkeys(parse_address(part) for part in parts))


def is_loopback(host: str) -> bool:
    """Says whether a host can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Says whether a listener on this host takes connections on every interface."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def literal_to_dial(host: str) -> str:
    """Returns where this machine itself reaches a listener on `host`."""
    if not is_wildcard(host):
        return host
    return "::1" if ":" in host else "127.0.0.1"


def _is_ip(host: str, *, version: int) -> bool:
    try:
        return ipaddress.ip_address(host).version == version
    except ValueError:
        return False


def _is_host_name(host: str) -> bool:
    # A name of digits and dots alone is a mistyped IPv4 address: no resolver should guess at it.
    digits_and_dots = host.replace(".", "").isdigit()
    return not digits_and_dots and _HOST_NAME.fullmatch(host) is not None


def _error(text: str, reason: str) -> UsageError:
    return UsageError(
        f"{text.strip()!r} is not an address: {reason}; "
        "write host:port, 10.0.0.7:48148 or [::1]:48148"
    )
