"""A receiver's side of all connections: learns what there is, fetches it ahead, gives it to others.

Everything here runs on one event loop, whatever the program is doing, so that a busy program delays
neither its own next update nor those who fetch from it.  Nothing is fetched before the program has
said by its first `pull` what it holds.

Invariant: whatever dies, the chunks that are here stay, and the next source begins behind them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from typing import Final

from pccl.base.errors import DeadlineExceeded, RemoteError, UsageError
from pccl.base.log import get_logger
from pccl.state.memory import available_bytes
from pccl.transport.address import Address
from pccl.transport.dial import Backoff
from pccl.weights.channels import Channels
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
    Manifest,
    Message,
    Released,
    Source,
    Trouble,
    Want,
)
from pccl.weights.holding import Counted, give
from pccl.weights.store import Ready, Store
from pccl.weights.stream import Stream, StreamEnded, open_stream
from pccl.weights.taking import DIAL_S, take_from

ALIVE_EVERY_S: Final = 1.0
LEASE_S: Final = 5.0  # a publisher that says nothing for so long is dialled again
UNANSWERED_S: Final = 0.1  # until the publisher, which is gone or has dropped it, is asked again
SLACK_BYTES: Final = 64 << 20  # a state so much larger is fetched, to name the first difference
SERVED_MAX: Final = 64  # fetches at a time; the tree asks for two
_log = get_logger("weights")


class Fetcher:
    """One receiver's connections; belongs to one event loop."""

    def __init__(
        self,
        publisher: Address,
        *,
        receiver: bytes,
        relay: bool,
        host: str,
        ahead_bytes_max: int,
        keep_bytes_max: int,
        channels: Channels,
    ) -> None:
        """
        Args:
            host: where others reach this receiver; "": where the publisher sees it.
            ahead_bytes_max: of updates fetched before a pull asks for them.
            keep_bytes_max: of applied updates kept for others.
        """
        self.received = Counted()  # chunks that were right
        self.given = Counted()
        self.trouble = ""  # the last one, for the text of a deadline
        self._publisher = publisher
        self._receiver = receiver
        self._host = host
        self._port = 0
        self._ahead_bytes_max = ahead_bytes_max
        self._keep_bytes_max = keep_bytes_max
        self._channels = channels
        self._secret = b""
        self._store = Store()
        self._base: bytes | None = None
        self._active = False  # the program has pulled once
        self._pulling = 0
        self._state_bytes_max = 0
        self._control: Stream | None = None
        self._asked: dict[int, asyncio.Future[Source | None]] = {}
        self._news = asyncio.Event()
        self._door = self._make_door() if relay else None
        self._serving = 0

    def _make_door(self) -> Door:
        if self._channels.ticketed:
            return Door(self._serve, context=self._channels.listening, encrypts=True)
        return Door(self._serve)  # a context of the caller's is for the way to the publisher

    async def open(self, address: Address) -> None:
        """Begins to listen for other receivers."""
        assert self._door is not None
        self._port = (await self._door.open(address)).port

    async def run(self) -> None:
        """Keeps in touch with the publisher, and fetches, until it is cancelled."""
        channels = self._channels
        keep = (
            self._keep_joined(),
            self._keep_fetching(),
            channels.keep_fresh(),
            channels.keep_informed(),
        )
        tasks = [asyncio.create_task(work) for work in keep]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._door is not None:
                await self._door.close()

    @property
    def newest_in_words(self) -> str:
        """What is published, for the text of a deadline by which nothing else went wrong."""
        newest = self._store.newest
        return f"the newest is revision {newest}" if newest else "nothing has been published"

    # ---- for the program's thread, run on the loop

    async def ready(self, base: bytes | None, at_least: int, state_bytes: int) -> Ready:
        """Waits until a revision that was the newest when asked, and no less than `at_least`, can
        be made of the base; cancelled when the program waits no longer.

        Raises:
            UsageError: what is published is so much larger than the program's `state_bytes`, or
                than the memory that is left, that it is not fetched at all.
        """
        self._base, self._active = base, True
        self._state_bytes_max = 2 * state_bytes + SLACK_BYTES
        self._pulling += 1
        self._wake()
        target: int | None = None
        try:
            while True:
                if target is None and self._store.newest:
                    target = max(at_least, self._store.newest)
                if self._store.largest_state_bytes() > self._state_bytes_max:
                    raise UsageError(
                        f"a state of {self._store.largest_state_bytes()} bytes is published, the "
                        f"tensors given have {state_bytes}; nothing was fetched"
                    )
                self._require_room(base)
                found = None if target is None else self._store.reached(base, target)
                if found is not None:
                    return found
                await self._news.wait()
        finally:
            self._pulling -= 1

    def _require_room(self, base: bytes | None) -> None:
        wanted = self._store.next_to_fetch(base)
        if wanted is not None and self._has_no_room(wanted):
            raise UsageError(
                f"revision {wanted.revision} needs {wanted.byte_count} bytes beside the tensors, "
                f"and of memory {available_bytes()} are free; nothing was fetched"
            )

    def _has_no_room(self, manifest: Manifest) -> bool:
        begun = self._store.find(manifest.update) is not None
        return not begun and manifest.byte_count > available_bytes()

    def applied(self, digest: bytes, updates: Sequence[int]) -> None:
        """The program holds this state now; these updates are kept only for others."""
        self._base = digest
        for number in self._store.applied(updates, digest, self._keep_bytes_max):
            self._say(Released(number))
        self._wake()

    def discard(self, updates: Sequence[int]) -> None:
        """These were not what they should be: they are fetched again."""
        self._store.forget(updates)
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    # ---- the publisher

    async def _keep_joined(self) -> None:
        backoff = Backoff(random.Random())
        while True:
            try:
                way = self._channels.to_publisher()
                self._control = await open_stream(self._publisher, timeout_s=DIAL_S, way=way)
                try:
                    with way.bound(self._control):
                        await self._talk(self._control, backoff)
                finally:
                    ended, self._control = self._control, None
                    await ended.end()
            except (StreamEnded, DeadlineExceeded, RemoteError) as error:
                self.trouble = f"the publisher at {self._publisher}: {error}"
            for update in list(self._asked):
                self._resolve(update, None)
            await asyncio.sleep(backoff.next_delay_s())

    async def _talk(self, stream: Stream, backoff: Backoff) -> None:
        stream.post(Join(PROTOCOL, self._receiver, self._host, self._port))
        alive = asyncio.create_task(_say_alive(stream))
        try:
            while True:
                message = await stream.receive(LEASE_S)
                backoff.reset()
                self._hear(message)
        finally:
            alive.cancel()

    def _hear(self, message: Message) -> None:
        match message:
            case Joined():
                self._secret = message.secret
                for number in self._store.joined(message.lineage):
                    self._say(Held(number))
                self._wake()
            case Manifest():
                self._store.learn(message)
                self._wake()
            case Dropped():
                self._store.dropped(message.update)
                self._resolve(message.update, None)
                self._wake()
            case Source():
                self._resolve(message.update, message)
            case Alive():
                pass
            case _:
                raise RemoteError(f"the publisher sent {type(message).__name__}")

    def _resolve(self, update: int, source: Source | None) -> None:
        asked = self._asked.get(update)
        if asked is not None and not asked.done():
            asked.set_result(source)

    def _say(self, message: Message) -> bool:
        return self._control is not None and self._control.post(message)

    # ---- fetching

    async def _keep_fetching(self) -> None:
        while True:
            news = self._news
            manifest = self._next()
            if manifest is None:
                await news.wait()
            else:
                await self._fetch(manifest)

    def _next(self) -> Manifest | None:
        found = self._store.next_to_fetch(self._base) if self._active else None
        if found is None or found.state_bytes > self._state_bytes_max or self._has_no_room(found):
            return None
        ahead_bytes = self._store.held_bytes() + found.byte_count
        fits = ahead_bytes <= self._ahead_bytes_max + self._keep_bytes_max
        return found if self._pulling or fits else None

    async def _fetch(self, manifest: Manifest) -> None:
        """Fetches one update to its end, or until it is dropped or nobody can say where it is."""
        number, lineage = manifest.update, self._store.lineage
        holding = self._store.begin(manifest)
        backoff = Backoff(random.Random(), first_s=0.02, max_s=1.0)
        want = Want(number)
        while not holding.complete and not holding.released:
            source = await self._ask(want)
            if source is None or self._store.lineage != lineage:
                await asyncio.sleep(UNANSWERED_S)
                return  # what is to be done now is decided anew
            before = holding.chunks
            root = source.holder == ROOT
            at = self._publisher if root else Address(source.host, source.port)
            if root:
                way = self._channels.to_publisher()
            else:
                way = self._channels.to_receiver(source.holder)
            trouble, text = await take_from(at, self._secret, holding, self.received, way)
            want = Want(number, None if trouble == Trouble.NONE else source.holder, trouble)
            if trouble == Trouble.NONE:
                continue
            whom = "the publisher" if root else f"receiver {source.holder.hex()[:8]}"
            self.trouble = f"revision {manifest.revision} from {whom}: {text}"
            _log.info("%s", self.trouble)
            if holding.chunks > before:
                backoff.reset()
            await asyncio.sleep(backoff.next_delay_s())
        if holding.complete and self._store.lineage == lineage:
            self._say(Held(number))
            self._wake()

    async def _ask(self, want: Want) -> Source | None:
        """Asks the publisher for a source; None if there is none, or no publisher."""
        answer: asyncio.Future[Source | None] = asyncio.get_running_loop().create_future()
        self._asked[want.update] = answer
        try:
            if not self._say(want):
                return None
            async with asyncio.timeout(LEASE_S):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._asked[want.update]

    # ---- giving to others

    async def _serve(self, stream: Stream, first: Message) -> None:
        if not isinstance(first, Fetch):
            raise RemoteError(f"a connection begins with {type(first).__name__}")
        with self._channels.admitted(stream):
            if self._serving >= SERVED_MAX:
                raise RemoteError("more fetches at a time than any tree asks for")
            self._serving += 1
            try:
                holding = self._store.find(first.update)
                await give(stream, first, self._secret, holding, self.given)
            finally:
                self._serving -= 1


async def _say_alive(stream: Stream) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        while stream.post(Alive()):
            await asyncio.sleep(ALIVE_EVERY_S)
