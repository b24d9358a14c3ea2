"""Tells those who serve others whom the run has denied: once all of them, then each new one.

Invariant: who asks hears of every denial, or its connection ends, and it asks again; who is denied
itself is told so and hears no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NoReturn

from pccl.base.errors import DeadlineExceeded, RemoteError
from pccl.membership.enrolment import (
    DENIALS_MAX,
    Denials,
    EnrolRefused,
    enrolment_codec,
)
from pccl.transport.channel import Channel

BEAT_S: Final = 2.0  # so that who listens knows that it is in touch
WATCHERS_MAX: Final = 1024  # of connections that have places for 4096


class Watchers:
    """One coordinator's; belongs to one event loop."""

    def __init__(self) -> None:
        self._channels: dict[Channel, bytes] = {}

    def __len__(self) -> int:
        return len(self._channels)

    async def serve(self, channel: Channel, peer_id: bytes, denied: frozenset[bytes]) -> None:
        """Serves one that wants to hear, until its connection ends.

        Raises:
            RemoteError: it says something, or there are too many; it has been told.
        """
        if len(self._channels) >= WATCHERS_MAX:
            self._refuse(channel, "later", "too many listen for denials here")
        _tell(channel, denied)
        self._channels[channel] = peer_id
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
            del self._channels[channel]

    def tell(self, new: frozenset[bytes]) -> None:
        """These are denied from now on."""
        for channel, peer_id in list(self._channels.items()):
            if peer_id in new:
                channel.send(enrolment_codec.encode(EnrolRefused("revoked", "it was revoked")))
                channel.close("revoked")
            else:
                _tell(channel, new)

    def _refuse(self, channel: Channel, code: str, text: str) -> NoReturn:
        channel.send(enrolment_codec.encode(EnrolRefused(code, text)))
        channel.close(text)
        raise RemoteError(text)


def _tell(channel: Channel, peers: Iterable[bytes]) -> None:
    """The last message of several is the one that is not full."""
    ordered = sorted(peers)
    for at in range(0, len(ordered) + 1, DENIALS_MAX):
        channel.send(enrolment_codec.encode(Denials(tuple(ordered[at : at + DENIALS_MAX]))))
