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
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pccl.base.errors import DeadlineExceeded, PcclError, RemoteError, UsageError
from pccl.base.log import get_logger
from pccl.transport.address import Address
from pccl.transport.dial import Backoff
from pccl.weights.door import Door
from pccl.weights.frames import (
    PROTOCOL,
    ROOT,
    Alive,
    ChunkHead,
    Dropped,
    Fetch,
    Gone,
    Held,
    Join,
    Joined,
    Manifest,
    Message,
    Released,
    Source,
    Trouble,
    Waiting,
    Want,
)
from pccl.weights.history import route
from pccl.weights.holding import Counted, Holding, give
from pccl.weights.stream import Stream, StreamEnded, open_stream

ALIVE_EVERY_S: Final = 1.0
LEASE_S: Final = 5.0  # a publisher that says nothing for so long is dialled again
DIAL_S: Final = 3.0
SILENT_S: Final = 3.0  # a holder says every half a second that it lives
CHUNK_S: Final = 10.0  # for one chunk, 256 KiB unless an update is very large
STARVED_S: Final = 20.0  # a holder that has nothing for so long is no source
UNANSWERED_S: Final = 0.1  # until the publisher, which is gone or has dropped it, is asked again
SLACK_BYTES: Final = 64 << 20  # a state so much larger is fetched, to name the first difference
SERVED_MAX: Final = 64  # fetches at a time; the tree asks for two
_log = get_logger("weights")


class _NotHeld(PcclError):
    """The holder does not have the update any more."""


@dataclass(frozen=True, slots=True)
class Ready:
    """What leads from a base to a revision, all here."""

    lineage: bytes
    revision: int
    holdings: tuple[Holding, ...]
    base_known: bool  # whether the base is a state that the publisher has published and remembers


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
        context: ssl.SSLContext | None = None,
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
        self.lineage = b""
        self._publisher = publisher
        self._receiver = receiver
        self._host = host
        self._port = 0
        self._ahead_bytes_max = ahead_bytes_max
        self._keep_bytes_max = keep_bytes_max
        self._context = context
        self._secret = b""
        self._manifests: dict[int, Manifest] = {}
        self._holdings: dict[int, Holding] = {}
        self._newest = 0
        self._stale: set[int] = set()  # complete here, and served by the publisher no more
        self._base: bytes | None = None
        self._active = False  # the program has pulled once
        self._state_bytes_max = 0
        self._pulling = 0
        self._control: Stream | None = None
        self._asked: dict[int, asyncio.Future[Source | None]] = {}
        self._news = asyncio.Event()
        self._door = Door(self._serve) if relay else None
        self._serving = 0

    async def open(self, address: Address) -> None:
        """Begins to listen for other receivers."""
        assert self._door is not None
        self._port = (await self._door.open(address)).port

    async def run(self) -> None:
        """Keeps in touch with the publisher, and fetches, until it is cancelled."""
        tasks = [
            asyncio.create_task(self._keep_joined()),
            asyncio.create_task(self._keep_fetching()),
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._door is not None:
                await self._door.close()

    # ---- for the program's thread, run on the loop

    async def ready(self, base: bytes | None, at_least: int, state_bytes: int) -> Ready:
        """Waits until a revision that was the newest when asked, and no less than `at_least`, can
        be made of the base; cancelled when the program waits no longer.

        Raises:
            UsageError: what is published is so much larger than the program's `state_bytes` that
                it is not fetched at all.
        """
        self._base, self._active = base, True
        self._state_bytes_max = 2 * state_bytes + SLACK_BYTES
        self._pulling += 1
        self._wake()
        target = at_least
        joined = False
        try:
            while True:
                if self.lineage and self._newest and not joined:
                    joined, target = True, max(at_least, self._newest)
                    self._require_possible(state_bytes)
                found = self._reached(base, target) if joined else None
                if found is not None:
                    return found
                await self._news.wait()
        finally:
            self._pulling -= 1

    def _require_possible(self, state_bytes: int) -> None:
        for manifest in self._manifests.values():
            if manifest.state_bytes > self._state_bytes_max:
                raise UsageError(
                    f"a state of {manifest.state_bytes} bytes is published, the tensors given have "
                    f"{state_bytes}; nothing was fetched"
                )

    def applied(self, digest: bytes, updates: Sequence[int]) -> None:
        """The program holds this state now; these updates are kept only for others."""
        self._base = digest
        for number in updates:
            if number in self._holdings:  # to the end: it is the youngest of those not needed
                self._holdings[number] = self._holdings.pop(number)
        self._release_some()
        self._wake()

    def discard(self, updates: Sequence[int]) -> None:
        """These were not what they should be: they are fetched again."""
        for number in updates:
            self._forget(number)
        self._wake()

    def _reached(self, base: bytes | None, target: int) -> Ready | None:
        known = self._manifests.values()
        way = route(known, base, self._complete)
        if way is None:
            return None
        if not way:
            done = self._newest >= target
            return Ready(self.lineage, self._newest, (), True) if done else None
        whole = []
        for manifest in way:
            if not self._complete(manifest.update):
                break
            whole.append(self._holdings[manifest.update])
        if not whole or whole[-1].manifest.revision < target:
            return None
        base_known = any(base in (m.base, m.digest) for m in known)
        return Ready(self.lineage, whole[-1].manifest.revision, tuple(whole), base_known)

    def _complete(self, update: int) -> bool:
        holding = self._holdings.get(update)
        return holding is not None and holding.complete

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    # ---- the publisher

    async def _keep_joined(self) -> None:
        backoff = Backoff(random.Random())
        while True:
            try:
                self._control = await open_stream(
                    self._publisher, timeout_s=DIAL_S, context=self._context
                )
                try:
                    await self._talk(self._control, backoff)
                finally:
                    self._control.close()
                    self._control = None
            except (StreamEnded, DeadlineExceeded, RemoteError) as error:
                self.trouble = f"the publisher at {self._publisher}: {error}"
            for asked in self._asked.values():
                if not asked.done():
                    asked.set_result(None)
            await asyncio.sleep(backoff.next_delay_s())

    async def _talk(self, stream: Stream, backoff: Backoff) -> None:
        host = self._host or ""
        stream.post(Join(PROTOCOL, self._receiver, host, self._port))
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
                self._join(message)
            case Manifest():
                if message.update not in self._manifests:
                    self._manifests[message.update] = message
                self._newest = max(self._newest, message.revision)
                self._wake()
            case Dropped():
                if self._complete(message.update):  # it may still be of use here
                    self._stale.add(message.update)
                else:
                    self._forget(message.update)
                    self._manifests.pop(message.update, None)
                self._resolve(message.update, None)
                self._wake()
            case Source():
                self._resolve(message.update, message)
            case Alive():
                pass
            case _:
                raise RemoteError(f"the publisher sent {type(message).__name__}")

    def _join(self, joined: Joined) -> None:
        if joined.lineage != self.lineage:
            # Another publisher, whose numbers mean other updates.
            for number in list(self._holdings):
                self._forget(number)
            self._manifests.clear()
            self._stale.clear()
            self.lineage, self._newest = joined.lineage, 0
        self._secret = joined.secret
        self._wake()
        for number, holding in self._holdings.items():
            if holding.complete:
                self._say(Held(number))

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
        """The first update on the way to the newest revision that is not here."""
        if not self._active:
            return None
        way = route(self._manifests.values(), self._base, self._complete)
        missing = [m for m in way or () if not self._complete(m.update)]
        if not missing or missing[0].state_bytes > self._state_bytes_max:
            return None
        held = sum(h.manifest.byte_count for h in self._holdings.values())
        ahead = held + missing[0].byte_count
        fits = ahead <= self._ahead_bytes_max + self._keep_bytes_max
        return missing[0] if self._pulling or fits else None

    async def _fetch(self, manifest: Manifest) -> None:
        """Fetches one update to its end, or until it is dropped or nobody can say where it is."""
        number, lineage = manifest.update, self.lineage
        holding = self._holdings.get(number)
        if holding is None:
            holding = self._holdings[number] = Holding(manifest)
        backoff = Backoff(random.Random(), first_s=0.02, max_s=1.0)
        want = Want(number)
        while not holding.complete and not holding.released:
            source = await self._ask(want)
            if source is None or self.lineage != lineage:
                await asyncio.sleep(UNANSWERED_S)
                return  # what is to be done now is decided anew
            before = holding.chunks
            trouble, text = await self._fetch_from(source, holding)
            want = Want(number, None if trouble == Trouble.NONE else source.holder, trouble)
            if trouble == Trouble.NONE:
                continue
            whom = f"receiver {source.holder.hex()[:8]}" if source.holder else "the publisher"
            self.trouble = f"revision {manifest.revision} from {whom}: {text}"
            _log.info("%s", self.trouble)
            if holding.chunks > before:
                backoff.reset()
            await asyncio.sleep(backoff.next_delay_s())
        if holding.complete and self.lineage == lineage:
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

    async def _fetch_from(self, source: Source, holding: Holding) -> tuple[Trouble, str]:
        """Fetches from one source as long as it lasts; returns what was wrong with it."""
        at = self._publisher if source.holder == ROOT else Address(source.host, source.port)
        context = self._context if source.holder == ROOT else None
        try:
            stream = await open_stream(at, timeout_s=DIAL_S, context=context)
        except (StreamEnded, DeadlineExceeded) as error:
            return Trouble.LOST, str(error)
        try:
            number = holding.manifest.update
            fetch = Fetch(PROTOCOL, self._secret, number, holding.chunks)
            await stream.send(fetch, timeout_s=DIAL_S)
            await self._take_chunks(stream, holding)
        except StreamEnded as error:
            return Trouble.LOST, str(error)
        except DeadlineExceeded as error:
            return Trouble.SILENT, str(error)
        except RemoteError as error:
            return Trouble.CORRUPT, str(error)
        except _NotHeld as error:
            return Trouble.GONE, str(error)
        finally:
            stream.close()
        return Trouble.NONE, ""

    async def _take_chunks(self, stream: Stream, holding: Holding) -> None:
        starved_s = 0.0
        loop = asyncio.get_running_loop()
        since_s = loop.time()
        while not holding.complete and not holding.released:
            match await stream.receive(SILENT_S):
                case ChunkHead(index, byte_count):
                    start, end = holding.manifest.span(holding.chunks)
                    if index != holding.chunks or byte_count != end - start:
                        raise RemoteError(f"chunk {index} of {byte_count} bytes was not asked for")
                    holding.take(await stream.receive_bytes(byte_count, CHUNK_S))
                    self.received.sent_bytes += byte_count
                    since_s = loop.time()
                case Waiting():
                    starved_s = loop.time() - since_s
                    if starved_s > STARVED_S:
                        raise DeadlineExceeded(f"it has had nothing for {starved_s:.0f} s")
                case Gone():
                    raise _NotHeld("it does not hold the update any more")
                case other:
                    raise RemoteError(f"it sent {type(other).__name__} instead of a chunk")

    # ---- giving to others

    async def _serve(self, stream: Stream, first: Message) -> None:
        if not isinstance(first, Fetch):
            raise RemoteError(f"a connection begins with {type(first).__name__}")
        if self._serving >= SERVED_MAX:
            raise RemoteError("more fetches at a time than any tree asks for")
        self._serving += 1
        try:
            holding = self._holdings.get(first.update)
            await give(stream, first, self._secret, holding, self.given)
        finally:
            self._serving -= 1

    def _release_some(self) -> None:
        """Lets go of applied updates beyond what is kept for others, the oldest first, and of those
        that the publisher names to nobody any more."""
        way = route(self._manifests.values(), self._base, self._complete) or ()
        needed = {m.update for m in way}
        for number in self._stale - needed:
            self._holdings.pop(number, None)
            self._manifests.pop(number, None)
        self._stale &= needed
        spare = [n for n in self._holdings if n not in needed]
        held = sum(self._holdings[n].manifest.byte_count for n in spare)
        for number in spare:
            if held <= self._keep_bytes_max:
                return
            held -= self._holdings[number].manifest.byte_count
            del self._holdings[number]  # who is being given it keeps it to the end
            self._say(Released(number))

    def _forget(self, number: int) -> None:
        holding = self._holdings.pop(number, None)
        if holding is not None:
            holding.release()


async def _say_alive(stream: Stream) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        while stream.post(Alive()):
            await asyncio.sleep(ALIVE_EVERY_S)
