"""What one identity may do over all of its connections.  Pure: told the time.

A certificate, or a ticket, gets its holder past the limits for strangers; a process gone wrong, or
one that was taken over, could then open connections without end, or send as much over each new one
as over the first.  So connections and messages are counted by identity: the peer that a certificate
names, or the ticket and the address that a question for the status came by.

Invariant: an identity has at most `identity_connections_max` connections, opens so many in a time
and no more, and its messages share one allowance for each protocol; those that are up are not
touched when more are refused; what is remembered is bounded, too.  Who only asks by a ticket, which
many may share, has at most `asking_connections_max`, and opens them at the pace of handshakes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from pccl.base.config import ControlLimits
from pccl.transport.token_bucket import TokenBucket

IDENTITIES_MAX = 4096  # as many as connections: those in use are never forgotten
UNRULY_S = 10.0
UNRULY_MAX = 4096


@dataclass(slots=True)
class Identity:
    """One identity's allowances, and how many connections it has; who ends one counts it out."""

    opening: TokenBucket
    messages: TokenBucket
    frames: TokenBucket  # of the native protocol
    connections: int = 0

    def bucket(self, *, native: bool) -> TokenBucket:
        return self.frames if native else self.messages


class IdentityLimits:
    def __init__(self, limits: ControlLimits) -> None:
        self._limits = limits
        self._known: OrderedDict[bytes, Identity] = OrderedDict()  # the one used last at the end

    def __len__(self) -> int:
        return len(self._known)

    def enter(self, name: bytes, now_s: float, *, asks: bool = False) -> Identity | None:
        """Counts one more connection; returns None if it is one too many, or comes too soon.

        Args:
            asks: it can ask for the status and do nothing else.
        """
        identity = self._known.get(name)
        if identity is None:
            self._make_room()
            identity = self._known[name] = self._new(now_s)
        self._known.move_to_end(name)
        limits = self._limits
        most = limits.asking_connections_max if asks else limits.identity_connections_max
        if identity.connections >= most:
            return None
        if not asks and identity.opening.take(now_s) > 0:
            return None
        identity.connections += 1
        return identity

    def _new(self, now_s: float) -> Identity:
        limits = self._limits

        def bucket(burst: float, rate_per_s: float) -> TokenBucket:
            return TokenBucket(burst=burst, rate_per_s=rate_per_s, now_s=now_s)

        return Identity(
            bucket(limits.identity_opening_burst_max, limits.identity_opening_rate_per_s),
            bucket(limits.message_burst_max, limits.message_rate_per_s),
            bucket(limits.native_burst_max, limits.native_rate_per_s),
        )

    def _make_room(self) -> None:
        if len(self._known) < IDENTITIES_MAX:
            return
        idle = next((name for name, one in self._known.items() if not one.connections), None)
        if idle is not None:
            del self._known[idle]


class Unruly:
    """Where an identity went beyond its limits, for UNRULY_S after it; of UNRULY_MAX places, those
    where it happened last."""

    def __init__(self) -> None:
        self._until_s: OrderedDict[str, float] = OrderedDict()  # the one that ends first in front

    def __len__(self) -> int:
        return len(self._until_s)

    def note(self, place: str, now_s: float) -> None:
        self._until_s[place] = now_s + UNRULY_S
        self._until_s.move_to_end(place)
        while len(self) > UNRULY_MAX or next(iter(self._until_s.values())) <= now_s:
            self._until_s.popitem(last=False)

    def has(self, place: str, now_s: float) -> bool:
        return self._until_s.get(place, 0.0) > now_s
