"""Taking an update from one holder: what each kind of bad holder is blamed for, and within what."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from pccl.transport.address import Address
from pccl.transport.framing import frame
from pccl.weights import taking
from pccl.weights.channels import PLAIN
from pccl.weights.frames import ChunkHead, Fetch, Gone, Held, Message, Trouble, Waiting, codec
from pccl.weights.holding import Counted, Holding, make_manifest

SECRET = bytes(range(16))
DATA = bytes(range(256)) * 3000  # three chunks
Holder = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Taken = tuple[Trouble, str]


def manifest_of(data: bytes) -> Holding:
    return Holding(
        make_manifest(
            update=1, revision=1, base=b"", digest=bytes(16), state_bytes=len(data), data=data
        )
    )


def words(message: Message) -> bytes:
    return frame(codec.encode(message))


def chunk(holding: Holding, index: int) -> bytes:
    start, end = holding.manifest.span(index)
    return words(ChunkHead(index, end - start)) + DATA[start:end]


def take_from(holder: Holder, holding: Holding) -> Taken:
    async def run() -> Taken:
        tasks: list[asyncio.Task[None]] = []

        async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await holder(reader, writer)
            finally:
                writer.transport.abort()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.append(asyncio.create_task(hold(reader, writer)))

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        try:
            at = Address("127.0.0.1", server.sockets[0].getsockname()[1])
            async with asyncio.timeout(20):
                return await taking.take_from(at, SECRET, holding, Counted(), PLAIN)
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0.01)  # transports close in the turn after

    return asyncio.run(run())


def says(*parts: bytes, then_s: float = 5.0) -> Holder:
    """A holder that says this and then nothing, until it hangs up."""

    async def holder(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        for part in parts:
            writer.write(part)
        try:
            async with asyncio.timeout(then_s):
                await reader.read()
        except (TimeoutError, ConnectionError):
            return

    return holder


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taking, "SILENT_S", 0.3)
    monkeypatch.setattr(taking, "CHUNK_S", 0.5)
    monkeypatch.setattr(taking, "STARVED_S", 0.6)


def test_chunks_that_are_right_are_all_taken_and_waiting_between_them_is_no_fault() -> None:
    holding = manifest_of(DATA)
    parts = [words(Waiting()), *(chunk(holding, n) for n in range(holding.manifest.chunks))]
    assert take_from(says(*parts), holding) == (Trouble.NONE, "")
    assert holding.complete and bytes(holding.view) == DATA


def test_the_fetch_begins_behind_the_chunks_that_are_here() -> None:
    holding = manifest_of(DATA)
    start, end = holding.manifest.span(0)
    holding.take(DATA[start:end])
    heard = []

    async def holder(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readexactly(12)
        heard.append(codec.decode(await reader.readexactly(int.from_bytes(head[:4], "little"))))
        writer.write(b"".join(chunk(holding, n) for n in range(1, holding.manifest.chunks)))
        await reader.read()

    assert take_from(holder, holding)[0] == Trouble.NONE
    assert heard == [Fetch(1, SECRET, 1, 1)]
    assert bytes(holding.view) == DATA


def bad_byte(part: bytes) -> bytes:
    return part[:-1] + bytes([part[-1] ^ 1])


FIRST = chunk(manifest_of(DATA), 0)


@pytest.mark.parametrize(
    ("parts", "trouble", "kept"),
    [
        ((), Trouble.SILENT, 0),
        ((FIRST,), Trouble.SILENT, 1),
        ((FIRST, FIRST), Trouble.CORRUPT, 1),
        ((FIRST[:-1],), Trouble.SILENT, 0),
        ((bad_byte(FIRST),), Trouble.CORRUPT, 0),
        ((chunk(manifest_of(DATA), 1),), Trouble.CORRUPT, 0),
        ((words(ChunkHead(0, 4 << 20)),), Trouble.CORRUPT, 0),
        ((FIRST, words(Gone())), Trouble.GONE, 1),
        ((words(Held(1)),), Trouble.CORRUPT, 0),
        ((b"\xff" * 64,), Trouble.CORRUPT, 0),
        ((bad_byte(words(Waiting())),), Trouble.CORRUPT, 0),
    ],
)
def test_a_bad_holder_is_blamed_for_what_it_did_and_right_chunks_are_kept(
    parts: tuple[bytes, ...], trouble: Trouble, kept: int
) -> None:
    holding = manifest_of(DATA)
    found, text = take_from(says(*parts), holding)
    assert (found, holding.chunks) == (trouble, kept) and text


def test_one_that_hangs_up_is_lost_and_so_is_one_that_nobody_answers_for() -> None:
    holding = manifest_of(DATA)
    assert take_from(says(FIRST, then_s=0.05), holding)[0] == Trouble.LOST
    assert holding.chunks == 1
    nowhere = Address("127.0.0.1", 1)
    found, _ = asyncio.run(taking.take_from(nowhere, SECRET, holding, Counted(), PLAIN))
    assert found == Trouble.LOST


def test_one_that_only_ever_waits_is_left_after_a_while() -> None:
    async def holder(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.transport.is_closing():
            writer.write(words(Waiting()))
            await asyncio.sleep(0.1)

    found, text = take_from(holder, manifest_of(DATA))
    assert found == Trouble.SILENT and "nothing for" in text


def test_one_that_trickles_is_too_slow_though_it_is_never_silent() -> None:
    async def holder(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in FIRST:
            if writer.transport.is_closing():
                return
            writer.write(bytes([byte]))
            await asyncio.sleep(0.01)

    holding = manifest_of(DATA)
    assert take_from(holder, holding)[0] == Trouble.SILENT
    assert holding.chunks == 0
