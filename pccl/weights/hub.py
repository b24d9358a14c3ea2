"""The publisher's side of all connections: tells receivers what there is and from whom to fetch it.

Everything here runs on one event loop.  What is decided is decided by `Tree`; this only carries it
out.

Invariant: a receiver that is silent for LEASE_S, or does not read, is forgotten, and costs nobody
else anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pccl.base.errors import RemoteError, UsageError
from pccl.base.log import get_logger
from pccl.transport.address import Address, is_loopback
from pccl.weights.channels import Channels, Proved
from pccl.weights.door import Door
from pccl.weights.frames import (
    PROTOCOL,
    ROOT,
    Alive,
    Dropped,
    Fetch,
    Held,
    Join,
    Joined,
    Message,
    Released,
    Source,
    Trouble,
    Want,
)
from pccl.weights.holding import GIVE_UP_S, Counted, Holding, give
from pccl.weights.stream import Stream
from pccl.weights.tree import Tree

ALIVE_EVERY_S: Final = 1.0
LEASE_S: Final = 5.0  # five words missed; a stopped process gives up its place
_log = get_logger("weights")


@dataclass(slots=True)
class _Attendant:
    stream: Stream
    host: str
    port: int


class Hub:
    """Receivers, updates and who fetches what; belongs to one event loop."""

    def __init__(
        self,
        *,
        lineage: bytes,
        secret: bytes,
        fan_out: int,
        channels: Channels,
    ) -> None:
        self.given = Counted()
        self.reports = 0  # of holders that gave wrong bytes
        self._lineage = lineage
        self._secret = secret
        self._fan_out = fan_out
        self._newest = 0
        self._local = True
        self._holdings: dict[int, Holding] = {}
        self._trees: dict[int, Tree] = {}
        self._receivers: dict[bytes, _Attendant] = {}
        self._channels = channels
        self._door = Door(self._serve, context=channels.listening, encrypts=channels.encrypted)

    @property
    def receivers(self) -> int:
        return len(self._receivers)

    async def open(self, address: Address) -> Address:
        self._local = is_loopback(address.host)
        try:
            return await self._door.open(address)
        except OSError as error:
            raise UsageError(f"cannot listen on {address}: {error.strerror or error}") from error

    async def run(self) -> None:
        """Speaks to the receivers until it is cancelled, and then closes everything."""
        try:
            while True:
                await asyncio.sleep(ALIVE_EVERY_S)
                self._tell(Alive())
        finally:
            await self._door.close()

    def add(self, holdings: Iterable[Holding], kept: frozenset[int]) -> None:
        """Takes what one `publish` has made, drops what is not kept, and tells everybody."""
        for old in [number for number in self._holdings if number not in kept]:
            del self._holdings[old], self._trees[old]
            self._tell(Dropped(old))
        for holding in holdings:
            manifest = holding.manifest
            self._holdings[manifest.update] = holding
            self._trees[manifest.update] = Tree(self._fan_out)
            self._newest = max(self._newest, manifest.revision)
            self._tell(manifest)

    def _tell(self, message: Message) -> None:
        for attendant in self._receivers.values():
            attendant.stream.post(message)

    async def _serve(self, stream: Stream, first: Message) -> None:
        with self._channels.admitted(stream) as proved:
            match first:
                case Join():
                    await self._attend(stream, first, proved)
                case Fetch():
                    holding = self._holdings.get(first.update)
                    await give(stream, first, self._secret, holding, self.given)
                case _:
                    raise RemoteError(f"a connection begins with {type(first).__name__}")

    async def _attend(self, stream: Stream, join: Join, proved: Proved | None) -> None:
        if proved is not None and proved.peer_id != join.receiver:
            raise RemoteError("a receiver that calls itself by another's name")
        if join.protocol != PROTOCOL:
            raise RemoteError(f"a receiver speaks protocol {join.protocol}, this is {PROTOCOL}")
        before = self._receivers.get(join.receiver)
        if before is not None:
            before.stream.close()  # it has lost that connection, or it is one that lies
        attendant = _Attendant(stream, join.host or stream.remote_host, join.port)
        self._receivers[join.receiver] = attendant
        try:
            stream.post(Joined(self._lineage, self._secret, self._newest))
            for holding in list(self._holdings.values()):
                # One that is dropped meanwhile is told so again, when it is asked for.
                await stream.send(holding.manifest, timeout_s=GIVE_UP_S)
            while proved is None or not proved.over:
                self._hear(join.receiver, attendant, await stream.receive(LEASE_S))
            _log.info("receiver %s has to show a newer certificate", join.receiver.hex()[:8])
        finally:
            if self._receivers.get(join.receiver) is attendant:
                del self._receivers[join.receiver]
                for tree in self._trees.values():
                    tree.left(join.receiver)

    def _hear(self, receiver: bytes, attendant: _Attendant, message: Message) -> None:
        for tree in self._trees.values():
            tree.heard(receiver)
        match message:
            case Want():
                self._answer(receiver, attendant, message)
            case Held(update) if update in self._trees:
                self._trees[update].completed(receiver, gives=self._gives(attendant))
            case Released(update) if update in self._trees:
                self._trees[update].released(receiver)
            case Held() | Released() | Alive():
                pass
            case _:
                raise RemoteError(f"a receiver sent {type(message).__name__}")

    def _gives(self, attendant: _Attendant) -> bool:
        """Whether every other receiver may reach it: none on another machine reaches a loopback."""
        return attendant.port != 0 and (self._local or not is_loopback(attendant.host))

    def _answer(self, receiver: bytes, attendant: _Attendant, want: Want) -> None:
        tree = self._trees.get(want.update)
        if tree is None:
            attendant.stream.post(Dropped(want.update))
            return
        if want.trouble == Trouble.CORRUPT:
            self.reports += 1
            _log.warning(
                "receiver %s says that %s gave it wrong bytes",
                receiver.hex()[:8],
                want.blamed.hex()[:8] if want.blamed else "the publisher",
            )
        gives = self._gives(attendant)
        holder = tree.assign(receiver, gives=gives, blamed=want.blamed, trouble=want.trouble)
        if holder == ROOT:
            attendant.stream.post(Source(want.update, ROOT, "", 0))
            return
        at = self._receivers[holder]
        attendant.stream.post(Source(want.update, holder, at.host, at.port))
