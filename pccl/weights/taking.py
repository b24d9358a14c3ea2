"""Takes an update from one holder, as far as that one gives it.

Invariant: whatever the holder does, this ends within STARVED_S after the last chunk that was right,
and says what was wrong.
"""

from __future__ import annotations

import asyncio
from typing import Final

from pccl.base.errors import DeadlineExceeded, PcclError, RemoteError
from pccl.transport.address import Address
from pccl.weights.channels import Way
from pccl.weights.frames import PROTOCOL, ChunkHead, Fetch, Gone, Trouble, Waiting
from pccl.weights.holding import Counted, Holding
from pccl.weights.stream import Stream, StreamEnded, open_stream

DIAL_S: Final = 3.0
SILENT_S: Final = 3.0  # a holder says every half a second that it lives
CHUNK_S: Final = 10.0  # for one chunk, 256 KiB unless an update is very large
STARVED_S: Final = 20.0  # a holder that has nothing for so long is no source


class _NotHeld(PcclError):
    """The holder does not have the update any more."""


async def take_from(
    at: Address, secret: bytes, holding: Holding, received: Counted, way: Way
) -> tuple[Trouble, str]:
    """Fetches what is missing from one holder; returns what was wrong with it, and in words."""
    try:
        stream = await open_stream(at, timeout_s=DIAL_S, way=way)
    except (StreamEnded, DeadlineExceeded, RemoteError) as error:  # it may be another by now
        return Trouble.LOST, str(error)
    try:
        fetch = Fetch(PROTOCOL, secret, holding.manifest.update, holding.chunks)
        with way.bound(stream):
            await stream.send(fetch, timeout_s=DIAL_S)
            await _take_chunks(stream, holding, received)
    except StreamEnded as error:
        return Trouble.LOST, str(error)
    except DeadlineExceeded as error:
        return Trouble.SILENT, str(error)
    except RemoteError as error:
        return Trouble.CORRUPT, str(error)
    except _NotHeld as error:
        return Trouble.GONE, str(error)
    finally:
        await stream.end()
    return Trouble.NONE, ""


async def _take_chunks(stream: Stream, holding: Holding, received: Counted) -> None:
    loop = asyncio.get_running_loop()
    since_s = loop.time()
    while not holding.complete and not holding.released:
        match await stream.receive(SILENT_S):
            case ChunkHead(index, byte_count):
                start, end = holding.manifest.span(holding.chunks)
                if index != holding.chunks or byte_count != end - start:
                    raise RemoteError(f"chunk {index} of {byte_count} bytes was not asked for")
                holding.take(await stream.receive_bytes(byte_count, CHUNK_S))
                received.byte_count += byte_count
                since_s = loop.time()
            case Waiting():
                if loop.time() - since_s > STARVED_S:
                    raise DeadlineExceeded(f"it has had nothing for {STARVED_S:g} s")
            case Gone():
                raise _NotHeld("it does not hold the update any more")
            case other:
                raise RemoteError(f"it sent {type(other).__name__} instead of a chunk")
