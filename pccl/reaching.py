"""Where peers find this process: what a program says of it, checked, and what is told to others.

Peers and the engine use literal addresses, so host names are resolved once, here: for a listener to
one address, for what is advertised to the one of the listener's family, if there is one.

Invariant: no address is told to others that could not lead here from where they are: neither a
wildcard nor, in a run whose coordinator is on another address, loopback.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Self

from pccl.arguments import check_text
from pccl.base.errors import UsageError
from pccl.transport.address import Address, is_loopback, is_wildcard, parse_address


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where peers find this process, as far as the program says."""

    at: Address | None  # None: the address used towards the coordinator
    advertised: tuple[Address, ...]  # of which one will do; (): where it listens
    reachable: bool
    text: str = ""  # as the program gave `advertise`

    @classmethod
    def parse(cls, listen: str | None, advertise: str | None, reachable: bool) -> Self:
        """Raises UsageError."""
        if advertise is not None and not reachable:
            raise UsageError(
                "advertise= says where peers reach this process, reachable=False that they "
                "cannot; give one of them"
            )
        at, advertised = None, tuple[Address, ...]()
        if listen is not None:
            at = resolve(parse_address(check_text("listen", listen), port_min=0))[0]
        if advertise is not None:
            advertised = _parse_advertise(check_text("advertise", advertise))
            for address in advertised:
                check_advertised(advertise, address.host, local=True)
        return cls(at, advertised, bool(reachable), advertise or "")

    def told(self, listen_host: str, local_host: str) -> Address | None:
        """Returns what is told to others of a listener on `listen_host`, port 0 being its own; None
        if nothing is, for no peer can dial it.

        Args:
            local_host: this end of the connection to the coordinator; on loopback exactly if the
                coordinator is.

        Raises:
            UsageError: what is advertised leads there from this machine alone.
        """
        if not self.reachable:
            return None
        if not self.advertised:
            # A wildcard tells nobody where to go: the coordinator then takes the address it sees.
            return Address("" if is_wildcard(listen_host) else listen_host, 0)
        alike = (a for a in self.advertised if (":" in a.host) == (":" in listen_host))
        chosen = next(alike, self.advertised[0])
        check_advertised(self.text, chosen.host, local=is_loopback(local_host))
        return chosen


def check_advertised(text: str, host: str, *, local: bool) -> None:
    """Raises UsageError if others could not use an address.

    Args:
        text: what the program gave; `host` is what it came to.
        local: whether all others are known to be on this machine, or may be.
    """
    meaning = "" if host in text else f", which is {host}"
    advice = (
        "give an address of this machine, or of the NAT before it, that the others can dial: "
        "10.0.0.7, host-a.example:48148 or [2001:db8::7]:48148"
    )
    if is_wildcard(host):
        raise UsageError(f"advertise={text!r}{meaning}, leads nobody anywhere; {advice}")
    if is_loopback(host) and not local:
        raise UsageError(
            f"advertise={text!r}{meaning}, leads each of the others to itself; {advice}"
        )


def resolve(address: Address) -> tuple[Address, ...]:
    """Returns the literal addresses of a host, at least one; a literal one is its own.

    Raises:
        UsageError: there is none.
    """
    try:
        ipaddress.ip_address(address.host)
        return (address,)
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"{address.host!r} cannot be resolved: {error.strerror}") from error
    return tuple(dict.fromkeys(Address(str(entry[4][0]), address.port) for entry in found))


def _parse_advertise(text: str) -> tuple[Address, ...]:
    try:
        return (Address(str(ipaddress.ip_address(text.strip("[]"))), 0),)
    except ValueError:
        pass
    bare_name = ":" not in text
    return resolve(parse_address(f"{text}:0" if bare_name else text, port_min=0))
