"""Updates as a process holds them: bytes that grow chunk by chunk, and giving them to others.

The publisher holds whole updates, a receiver those that it is fetching and those it has fetched;
both give them away by the same code, a chunk as soon as it is there.

Invariant: `bytes` up to chunk `chunks` are what the manifest's digests say, and never change.
"""

from __future__ import annotations

import asyncio
from typing import Final

import numpy as np

from pccl.base.errors import DeadlineExceeded, RemoteError
from pccl.transport.digests import xxh3_blocks
from pccl.weights.frames import (
    PROTOCOL,
    ChunkHead,
    Fetch,
    Gone,
    Manifest,
    Waiting,
    chunk_bytes_for,
)
from pccl.weights.stream import Stream

WAITING_EVERY_S: Final = 0.5  # so often a holder says that it lives and has nothing new
GIVE_UP_S: Final = 30.0  # a fetcher that takes nothing for so long is let go


class Holding:
    """The bytes of one update, as far as they are here.  Belongs to one event loop, apart from
    `view`, which any thread may read once `complete`."""

    def __init__(self, manifest: Manifest, data: bytes | None = None) -> None:
        """With `data` it is whole; without, memory for all of it is allocated here and now."""
        self.manifest = manifest
        self.chunks = 0 if data is None else manifest.chunks
        self.released = False
        self._data: bytes | bytearray = bytearray(manifest.byte_count) if data is None else data
        self._grown = asyncio.Event()

    @property
    def complete(self) -> bool:
        return self.chunks == self.manifest.chunks

    @property
    def view(self) -> memoryview:
        return memoryview(self._data).toreadonly()

    def take(self, chunk: bytes) -> None:
        """Appends the next chunk.

        Raises:
            RemoteError: it is not the one that the manifest announces; nothing has changed.
        """
        start, end = self.manifest.span(self.chunks)
        right = self.manifest.chunk_digest(self.chunks)
        if len(chunk) != end - start or digests_of(chunk, len(chunk)) != right:
            raise RemoteError(f"chunk {self.chunks} is not what was announced")
        assert isinstance(self._data, bytearray)
        self._data[start:end] = chunk
        self.chunks += 1
        self._wake()

    def release(self) -> None:
        """Nobody is given any more of it."""
        self.released = True
        self._wake()

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()

    async def wait_beyond(self, index: int, timeout_s: float) -> bool:
        """Waits until chunk `index` is here; False if it is not within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.chunks <= index and not self.released:
                    await self._grown.wait()
        except TimeoutError:
            return False
        return self.chunks > index


class Counted:
    """Bytes of chunks that were given away, or have come."""

    def __init__(self) -> None:
        self.byte_count = 0


async def give(
    stream: Stream, fetch: Fetch, secret: bytes, holding: Holding | None, count: Counted
) -> None:
    """Answers one fetch: chunk after chunk as they come, to the end.

    Raises:
        RemoteError: it speaks another protocol, or was let in by nobody.
        StreamEnded, DeadlineExceeded: the fetcher is gone, or takes nothing.
    """
    if fetch.protocol != PROTOCOL or fetch.secret != secret:
        raise RemoteError("a fetch with another protocol or without the publisher's secret")
    if holding is None:
        await stream.send(Gone(), timeout_s=GIVE_UP_S)
        return
    for index in range(fetch.chunk, holding.manifest.chunks):
        while not await holding.wait_beyond(index, WAITING_EVERY_S):
            if holding.released:
                await stream.send(Gone(), timeout_s=GIVE_UP_S)
                return
            await stream.send(Waiting(), timeout_s=GIVE_UP_S)
        start, end = holding.manifest.span(index)
        head = ChunkHead(index, end - start)
        await stream.send(head, holding.view[start:end], timeout_s=GIVE_UP_S)
        count.byte_count += end - start
    try:  # the fetcher hangs up; closing first would drop what the socket still holds
        await stream.receive(GIVE_UP_S)
    except DeadlineExceeded:
        return


def make_manifest(
    *, update: int, revision: int, base: bytes, digest: bytes, state_bytes: int, data: bytes
) -> Manifest:
    """Describes an update.  Cost: one read of it."""
    chunk_bytes = chunk_bytes_for(len(data))
    digests = digests_of(data, chunk_bytes)
    return Manifest(update, revision, base, digest, state_bytes, len(data), chunk_bytes, digests)


def digests_of(data: bytes, block_bytes: int) -> bytes:
    """Returns the digest of each block of some bytes; there is at least one byte."""
    memory = np.frombuffer(data, np.uint8)
    return xxh3_blocks(memory.ctypes.data, memory.size, block_bytes)
