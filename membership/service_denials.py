"""Tells those who serve others whom the run has denied: once all of them, then each new one.

There are places for WATCHERS_MAX, and for WATCHES_EACH of one peer, whose eldest makes way for one
more: a peer that comes again has mostly lost the connection before.  Where more peers listen than
there are places, they take turns: once somebody has had TURN_S, its place goes to who was turned
away first and asks again; the one that goes has heard all there was, and waits like the others.  So
each of n hears of a denial after n / WATCHERS_MAX turns, each as long as it takes to ask again.

Invariant: who asks hears of every denial, or its connection ends, and it asks again; who is denied
itself is told so and hears no more; no more than WATCHERS_MAX are told, and WAITING_MAX remembered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pccl.base.clock import Clock, system_clock
from pccl.base.errors import DeadlineExceeded, RemoteError
from pccl.membership.enrolment import (
    DENIALS_MAX,
    REFUSED_FOR_NOW,
    Denials,
    EnrolRefused,
    enrolment_codec,
)
from pccl.membership.service_audit import Audit
from pccl.transport.channel import Channel

BEAT_S: Final = 2.0  # so that who listens knows that it is in touch
WATCHERS_MAX: Final = 1024  # of connections that have places for 4096
WATCHES_EACH: Final = 4  # a communicator, a publisher and a receiver may share one key
TURN_S: Final = 20.0  # ten beats; who has been turned away asks again after 30 to 60 s
WAITING_MAX: Final = 4096
FORGOTTEN_S: Final = 90.0  # one that does not ask again in this time keeps nobody waiting
FULL: Final = "too many listen for denials here; try again"
OVER: Final = "others wait to hear of denials; ask again"


@dataclass(frozen=True, slots=True)
class _Watch:
    peer_id: bytes
    since_s: float


class Watchers:
    """One coordinator's; belongs to one event loop."""

    def __init__(self, audit: Audit, *, clock: Clock = system_clock) -> None:
        self._audit = audit
        self._clock = clock
        self._channels: dict[Channel, _Watch] = {}  # the one that has listened longest in front
        self._waiting: dict[bytes, float] = {}  # when it asked last; first turned away in front

    def __len__(self) -> int:
        return len(self._channels)

    async def serve(self, channel: Channel, peer_id: bytes, denied: frozenset[bytes]) -> None:
        """Serves one that wants to hear, until its connection ends.

        Raises:
            RemoteError: it says something, or there are too many; it has been told.
        """
        if not self._make_room(peer_id):
            self._audit.refused(REFUSED_FOR_NOW, peer_id, channel.remote_host, FULL)
            _end(channel, REFUSED_FOR_NOW, FULL)
            raise RemoteError(FULL)
        _tell(channel, denied)
        self._channels[channel] = _Watch(peer_id, self._clock())
        try:
            while not channel.closed:
                try:
                    body = await channel.receive(BEAT_S)
                except DeadlineExceeded:
                    _tell(channel, ())
                    continue
                if body is not None:
                    raise RemoteError("it was to listen, and speaks")
        finally:
            self._channels.pop(channel, None)

    def tell(self, new: frozenset[bytes]) -> None:
        """These are denied from now on."""
        for channel, watch in list(self._channels.items()):
            if watch.peer_id in new:
                _end(channel, "revoked", "it was revoked")
            else:
                _tell(channel, new)

    def _make_room(self, peer_id: bytes) -> bool:
        """Sees to a place for one more of a peer; says whether there is one."""
        own = [channel for channel, watch in self._channels.items() if watch.peer_id == peer_id]
        if len(own) >= WATCHES_EACH:
            self._displace(own[0])
        if len(self._channels) < WATCHERS_MAX:
            self._waiting.pop(peer_id, None)
            return True
        now_s = self._clock()
        over = sum(now_s - watch.since_s >= TURN_S for watch in self._channels.values())
        if self._place_in_line(peer_id, now_s) >= over:
            return False
        self._waiting.pop(peer_id, None)
        self._displace(next(iter(self._channels)))
        return True

    def _place_in_line(self, peer_id: bytes, now_s: float) -> int:
        """Returns how many have waited for longer."""
        for other, asked_s in list(self._waiting.items()):
            if now_s - asked_s > FORGOTTEN_S:
                del self._waiting[other]
        if peer_id in self._waiting or len(self._waiting) < WAITING_MAX:
            self._waiting[peer_id] = now_s  # one that is there keeps its place
        waiting = list(self._waiting)
        return waiting.index(peer_id) if peer_id in self._waiting else len(waiting)

    def _displace(self, channel: Channel) -> None:
        del self._channels[channel]
        _end(channel, REFUSED_FOR_NOW, OVER)


def _end(channel: Channel, code: str, text: str) -> None:
    channel.send(enrolment_codec.encode(EnrolRefused(code, text)))
    channel.close(text)


def _tell(channel: Channel, peers: Iterable[bytes]) -> None:
    """The last message of several is the one that is not full."""
    ordered = sorted(peers)
    for at in range(0, len(ordered) + 1, DENIALS_MAX):
        channel.send(enrolment_codec.encode(Denials(tuple(ordered[at : at + DENIALS_MAX]))))
