"""Which of those who wait to begin a TLS handshake may begin, and when.  Pure: told the time.

A handshake costs about a millisecond of processor time, and anybody may ask for one.  So only so
many begin per second, whoever asks; addresses take turns, so that a crowd behind one of them delays
nobody behind another; and addresses that the caller prefers, those of members, come before all
others, but for every fourth turn: a crowd behind a member's address shall not keep newcomers out.

Invariant: `burst` handshakes begin at once and `rate_per_s` in the long run; each address that
waits is granted one before any other of its kind is granted a second; so n that wait are gone after
4 n / `rate_per_s`, whatever else comes.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

HOSTS_MAX: Final = 1024
PREFERRED_IN_A_ROW: Final = 3  # while others wait
IPV6_NETWORK_BITS: Final = 64  # one customer's; it may use any address in it

Key = TypeVar("Key")
Prefer = Callable[[str], bool]
"""Says of an `address_group` whether its handshakes come first."""


class HandshakePace:
    """Tickets (any numbers) wait here; `grant` lets one begin."""

    def __init__(self, *, rate_per_s: float, burst: float, now_s: float) -> None:
        self._rate_per_s, self._burst = rate_per_s, burst
        self._tokens, self._at_s = burst, now_s
        self._waiting: dict[str, deque[int]] = {}  # by address, in the order of their turns
        self._group_of: dict[int, str] = {}
        self._in_a_row = 0  # turns of preferred ones, while others waited

    def __len__(self) -> int:
        return len(self._group_of)

    def ask(self, ticket: int, host: str) -> None:
        group = address_group(host)
        self._waiting.setdefault(group, deque()).append(ticket)
        self._group_of[ticket] = group

    def forget(self, ticket: int) -> None:
        """The connection has ended while it waited, or it was granted."""
        group = self._group_of.pop(ticket, None)
        if group is not None:
            queue = self._waiting[group]
            queue.remove(ticket)
            if not queue:
                del self._waiting[group]

    def grant(self, now_s: float, prefer: Prefer) -> int | None:
        """Returns the ticket that may begin now; None if none may, or none waits."""
        self._refill(now_s)
        if not self._waiting or self._tokens < 1:
            return None
        group = self._next(prefer)
        queue = self._waiting.pop(group)
        ticket = queue.popleft()
        del self._group_of[ticket]
        if queue:
            self._waiting[group] = queue  # behind all others
        self._tokens -= 1
        return ticket

    def _next(self, prefer: Prefer) -> str:
        preferred = next((g for g in self._waiting if prefer(g)), None)
        other = next((g for g in self._waiting if not prefer(g)), None)
        if other is None or preferred is None:
            self._in_a_row = 0
            return next(iter(self._waiting))
        if self._in_a_row < PREFERRED_IN_A_ROW:
            self._in_a_row += 1
            return preferred
        self._in_a_row = 0
        return other

    def wait_s(self, now_s: float) -> float | None:
        """Returns how long until `grant` may return a ticket; None while nobody waits."""
        if not self._waiting:
            return None
        self._refill(now_s)
        return 0.0 if self._tokens >= 1 else (1 - self._tokens) / self._rate_per_s

    def _refill(self, now_s: float) -> None:
        elapsed_s = max(0.0, now_s - self._at_s)
        self._tokens = min(self._burst, self._tokens + elapsed_s * self._rate_per_s)
        self._at_s = now_s


class FairPlaces(Generic[Key]):
    """Connections whose other ends have not proved who they are, as many as there are places."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._groups: dict[Key, str] = {}  # the eldest first

    def __len__(self) -> int:
        return len(self._groups)

    def enter(self, key: Key, host: str) -> Key | None:
        """Takes one in; returns whose place that was, if none was free: the eldest one of the
        address that holds the most, the newcomer counted."""
        self._groups[key] = address_group(host)
        if len(self._groups) <= self._most:
            return None
        counts = Counter(self._groups.values())
        fullest = max(counts.values())
        victim = next(one for one, group in self._groups.items() if counts[group] == fullest)
        del self._groups[victim]
        return victim

    def leave(self, key: Key) -> None:
        """It has proved who it is, or ended."""
        self._groups.pop(key, None)


class SilentPlaces(Generic[Key]):
    """The same where nothing is secured: who is of good will has spoken when it comes, and who only
    wants to fill the places says nothing."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._spoken: dict[Key, bool] = {}  # in order of arrival

    def __len__(self) -> int:
        return len(self._spoken)

    def has_room(self, *, spoken: bool) -> bool:
        """Says whether one more may enter that has spoken already, or has not."""
        return len(self._spoken) < self._most or (spoken and not all(self._spoken.values()))

    def enter(self, key: Key, *, spoken: bool) -> Key | None:
        """Takes one in for whom there is room; returns whose place that was, if none was free: that
        of the longest silence."""
        victim = None
        if len(self._spoken) >= self._most:
            victim = next(one for one, has_spoken in self._spoken.items() if not has_spoken)
            del self._spoken[victim]
        self._spoken[key] = spoken
        return victim

    def leave(self, key: Key) -> None:
        """It has said who it is, or ended."""
        self._spoken.pop(key, None)


class KnownHosts:
    """Addresses from which somebody has proved to be of the run: handshakes from there come first.
    Of HOSTS_MAX, those where it happened last."""

    def __init__(self) -> None:
        self._groups: dict[str, None] = {}

    def prove(self, host: str) -> None:
        group = address_group(host)
        self._groups.pop(group, None)
        self._groups[group] = None
        if len(self._groups) > HOSTS_MAX:
            del self._groups[next(iter(self._groups))]

    def __call__(self, group: str) -> bool:
        return group in self._groups


def address_group(host: str) -> str:
    """Returns what stands for an address when its connections are counted: an IPv4 address itself,
    of an IPv6 address its network."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        network = ipaddress.ip_network((address, IPV6_NETWORK_BITS), strict=False)
        return str(network.network_address)
    return str(address)
