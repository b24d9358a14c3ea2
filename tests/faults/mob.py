"""Enemies of a secured run, of every kind: `mob.py`, told what to do as JSON on standard input.

The first line says whom to attack with what material, every further line how many connections to
make; the answer to each is a line that counts them by kind.  `breaches` counts those that got what
only members get: it must stay 0.  Connections are made in turns of kinds and targets, so many at
once and no more, and none stays longer than STAYS_S.  It gives way to everybody, for what is
measured is the run and not this program's hunger for processor time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import random
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # behind an installed pccl

from pccl.base.errors import RemoteError
from pccl.membership.enrolment import (
    Enrolled,
    EnrolOffer,
    EnrolProof,
    EnrolRefused,
    EnrolRequest,
    enrolment_codec,
    proof_mac,
)
from pccl.membership.messages import (
    PROTOCOL_VERSION,
    Admitted,
    Hello,
    coordinator_codec,
    peer_codec,
)
from pccl.transport import native_frames as nf
from pccl.transport.channel import Channel
from pccl.transport.framing import Framer, frame
from pccl.transport.identity import TlsMaterial
from pccl.transport.tls import client_context, enrolling_context
from pccl.transport.tls_session import TlsSession, handshake
from pccl.weights.frames import PROTOCOL as WEIGHTS_PROTOCOL
from pccl.weights.frames import Fetch, Join
from pccl.weights.frames import codec as weights_codec

MEMBERS = "127.0.0.1"  # where members are, too: whoever comes from there passes for one of them
ADDRESSES = (*(f"127.0.0.{number}" for number in range(2, 10)), MEMBERS)
AT_ONCE = 400
STAYS_S = 6.0
DRIP_S = 0.4
STREAM_PREFACE = b"PCCLSTR1"


@dataclass
class Target:
    host: str
    port: int
    coordinator: bool
    weights: bool  # a publisher's port, or a receiver's


@dataclass
class Told:
    """What came of the connections."""

    made: Counter[str] = field(default_factory=Counter)
    refused: int = 0  # not even connected
    from_members: int = 0  # of those made, from an address of members
    breaches: list[str] = field(default_factory=list)


class Mob:
    def __init__(self, order: dict[str, Any]) -> None:
        self._targets = [Target(**target) for target in order["targets"]]
        self._materials = {
            name: TlsMaterial(*(part.encode() for part in parts))
            for name, parts in order["materials"].items()
        }
        self._contexts = {n: client_context(m) for n, m in self._materials.items()}
        self._contexts["nobody"] = enrolling_context()
        self._token_id = bytes.fromhex(order["token_id"])
        self._run_id = bytes.fromhex(order["run_id"])
        self._outsider = bytes.fromhex(order["outsider"])
        self._dice = random.Random(order.get("seed", 1))
        self._greeting = self._record_greeting()
        self._turns = itertools.cycle(KINDS.items())
        self._sources = itertools.cycle(ADDRESSES)
        self._whom = itertools.cycle(self._targets)

    def _record_greeting(self) -> bytes:
        session = TlsSession(self._contexts["outsider"], server_side=False)
        session.start()
        return session.take()

    async def attack(self, count: int, told: Told) -> None:
        places = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                await places.acquire()
                group.create_task(self._one(places, told))

    async def _one(self, places: asyncio.Semaphore, told: Told) -> None:
        name, kind = next(self._turns)
        target = next(self._whom)
        if self._dice.randrange(len(self._targets)) == 0:  # or kinds and targets go in step
            target = next(self._whom)
        source = next(self._sources)
        if self._dice.randrange(len(ADDRESSES)) == 0:  # nor kinds and sources
            source = next(self._sources)
        connected = False
        try:
            async with asyncio.timeout(STAYS_S):
                reader, writer = await asyncio.open_connection(
                    target.host, target.port, local_addr=(source, 0)
                )
                connected = True
                told.made[name] += 1
                told.from_members += source == MEMBERS
                try:
                    if await kind(self, target, reader, writer):
                        told.breaches.append(f"{name} at {target.host}:{target.port}")
                finally:
                    writer.transport.abort()
        except (OSError, TimeoutError, RemoteError, asyncio.IncompleteReadError):
            told.refused += not connected
        finally:
            places.release()

    # ------------------------------------------------------------------ what they do
    async def garbage(self, _: Target, reader: Any, writer: Any) -> bool:
        texts = (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", self._dice.randbytes(300), b"\0" * 2000)
        writer.write(self._dice.choice(texts))
        await _until_closed(reader)
        return False

    async def silent(self, _: Target, reader: Any, writer: Any) -> bool:
        await _until_closed(reader)
        return False

    async def half_open(self, _: Target, reader: Any, writer: Any) -> bool:
        writer.write(self._greeting)
        await asyncio.sleep(STAYS_S / 2)
        return False

    async def half_a_greeting(self, _: Target, reader: Any, writer: Any) -> bool:
        writer.write(self._greeting[: self._dice.randrange(1, len(self._greeting))])
        await _until_closed(reader)
        return False

    async def huge_record(self, _: Target, reader: Any, writer: Any) -> bool:
        writer.write(b"\x16\x03\x01\xff\xff" + bytes(8000))
        await _until_closed(reader)
        return False

    async def slow(self, _: Target, reader: Any, writer: Any) -> bool:
        for byte in self._greeting:
            writer.write(bytes((byte,)))
            await asyncio.sleep(DRIP_S)
        return False

    async def replayed(self, _: Target, reader: Any, writer: Any) -> bool:
        """A greeting that was heard before, and records that were made for another connection."""
        writer.write(self._greeting + b"\x14\x03\x03\x00\x01\x01")
        writer.write(b"\x17\x03\x03\x00\x50" + self._dice.randbytes(80))
        await _until_closed(reader)
        return False

    async def plain_frames(self, target: Target, reader: Any, writer: Any) -> bool:
        """An unsecured peer, and a length of four gigabytes."""
        native = frame(nf.encode(self._native_hello()))
        weights = frame(self._weights_word())
        writer.write(self._dice.choice((frame(self._hello()), native, weights, b"\xff" * 16)))
        return await _hears_welcome(target, reader)

    async def stream_preface(self, _: Target, reader: Any, writer: Any) -> bool:
        writer.write(STREAM_PREFACE + self._dice.choice((b"", self._greeting, b"\xff" * 99)))
        await _until_closed(reader)
        return False

    async def part_of_the_preface(self, _: Target, reader: Any, writer: Any) -> bool:
        writer.write(STREAM_PREFACE[: self._dice.randrange(1, len(STREAM_PREFACE))])
        await _until_closed(reader)
        return False

    async def wrong_ca(self, target: Target, reader: Any, writer: Any) -> bool:
        return await self._with_certificate("foreign", target, reader, writer)

    async def expired(self, target: Target, reader: Any, writer: Any) -> bool:
        return await self._with_certificate("expired", target, reader, writer)

    async def revoked(self, target: Target, reader: Any, writer: Any) -> bool:
        return await self._with_certificate("revoked", target, reader, writer)

    async def receiver(self, target: Target, reader: Any, writer: Any) -> bool:
        """A valid certificate that makes no member; where weights are, in another's name."""
        return await self._with_certificate("receiver", target, reader, writer)

    async def outside_the_view(self, target: Target, reader: Any, writer: Any) -> bool:
        """A valid certificate, but no place in the view, or the name of somebody else."""
        if target.coordinator:
            return await self._with_certificate("outsider", target, reader, writer, bytes(16))
        return await self._with_certificate("outsider", target, reader, writer, self._outsider)

    async def no_certificate(self, target: Target, reader: Any, writer: Any) -> bool:
        return await self._with_certificate("nobody", target, reader, writer)

    async def huge_frame(self, _: Target, reader: Any, writer: Any) -> bool:
        """Within TLS, a frame of four gigabytes."""
        session = await self._secure("nobody", reader, writer)
        writer.write(session.seal(b"\xff\xff\xff\xff" + bytes(3000)))
        await _until_closed(reader)
        return False

    async def false_token(self, target: Target, reader: Any, writer: Any) -> bool:
        """Enrols by a ticket that nobody made, or with a secret that is not the ticket's."""
        session = await self._secure("nobody", reader, writer)
        channel = Channel(reader, writer, trusted=True, tls=session)
        known = self._dice.random() < 0.5
        token_id = self._token_id if known else self._dice.randbytes(8)
        channel.send(enrolment_codec.encode(EnrolRequest(1, token_id)))
        while (body := await channel.receive(STAYS_S)) is not None:
            said = enrolment_codec.decode(body)
            if isinstance(said, EnrolOffer):
                if self._dice.random() < 0.2:  # and then says nothing more
                    await asyncio.sleep(STAYS_S)
                mac = proof_mac(self._dice.randbytes(32), b"", said.nonce, b"request")
                channel.send(enrolment_codec.encode(EnrolProof(b"request", mac)))
            elif isinstance(said, EnrolRefused):
                return False
            elif isinstance(said, Enrolled):
                return True
        return False

    # ------------------------------------------------------------------ how they do it

    async def _secure(self, who: str, reader: Any, writer: Any) -> TlsSession:
        session = TlsSession(self._contexts[who], server_side=False)
        try:
            await handshake(reader, writer, session, dials=True)
        except ssl.SSLError as error:
            raise RemoteError(str(error)) from error
        return session

    async def _with_certificate(
        self, who: str, target: Target, reader: Any, writer: Any, peer_id: bytes = b""
    ) -> bool:
        """Says HELLO with a certificate; true if it was welcome."""
        session = await self._secure(who, reader, writer)
        if target.coordinator:
            body = self._hello(peer_id or self._dice.randbytes(16))
        elif target.weights:
            body = self._weights_word()
        else:
            body = nf.encode(self._native_hello(peer_id or self._dice.randbytes(16)))
        writer.write(session.seal(frame(body)))
        heard = b""
        with contextlib.suppress(ssl.SSLError):
            while sealed := await reader.read(1 << 14):
                heard += session.feed(sealed)
        return _is_welcome(target, heard)

    def _hello(self, peer_id: bytes = bytes(16)) -> bytes:
        return peer_codec.encode(
            Hello(
                protocol=PROTOCOL_VERSION,
                run_id=b"",
                peer_id=peer_id,
                incarnation=0,
                generation=0,
                epoch=0,
                data_host="",
                data_port=1,
                host_key=1,
                min_world=0,
                hostname="enemy",
                pid=1,
            )
        )

    def _weights_word(self) -> bytes:
        """What a receiver says first to a publisher, or to another receiver; of somebody else."""
        words = (
            Join(WEIGHTS_PROTOCOL, self._dice.randbytes(16), "", 0),
            Fetch(WEIGHTS_PROTOCOL, self._dice.randbytes(16), 1, 0),
        )
        return weights_codec.encode(self._dice.choice(words))

    def _native_hello(self, peer_id: bytes = bytes(16)) -> nf.NativeHello:
        return nf.NativeHello(
            purpose=nf.Purpose.DATA_LANE,
            run_id=self._run_id,
            peer_id=peer_id,
            incarnation=1,
            secret=self._dice.randbytes(16),
        )


Kind = Callable[[Mob, Target, Any, Any], Awaitable[bool]]
KINDS: dict[str, Kind] = {
    "garbage": Mob.garbage,
    "silent": Mob.silent,
    "half-open handshake": Mob.half_open,
    "half a greeting": Mob.half_a_greeting,
    "huge TLS record": Mob.huge_record,
    "slow sender": Mob.slow,
    "replayed greeting": Mob.replayed,
    "plain frames": Mob.plain_frames,
    "stream preface": Mob.stream_preface,
    "part of the preface": Mob.part_of_the_preface,
    "another CA": Mob.wrong_ca,
    "expired certificate": Mob.expired,
    "revoked certificate": Mob.revoked,
    "receiver's certificate": Mob.receiver,
    "outside the view": Mob.outside_the_view,
    "no certificate": Mob.no_certificate,
    "huge frame in TLS": Mob.huge_frame,
    "false token": Mob.false_token,
    "false token, again": Mob.false_token,
}


async def _until_closed(reader: Any) -> None:
    while await reader.read(1 << 14):
        pass


async def _hears_welcome(target: Target, reader: Any) -> bool:
    heard = b""
    while data := await reader.read(1 << 14):
        heard += data
    return _is_welcome(target, heard)


def _is_welcome(target: Target, heard: bytes) -> bool:
    framer = Framer()
    framer.feed(heard)
    with contextlib.suppress(RemoteError):
        while (body := framer.next_message()) is not None:
            if _welcomes(target, body):
                return True
    return False


def _welcomes(target: Target, body: bytes) -> bool:
    if target.weights:  # there any answer is one too many
        with contextlib.suppress(RemoteError):
            return bool(weights_codec.decode(body))
        return False
    with contextlib.suppress(RemoteError):
        if isinstance(coordinator_codec.decode(body), Admitted):
            return True
    with contextlib.suppress(RemoteError):
        return isinstance(nf.decode(body), nf.Welcome)
    return False


def main() -> None:
    os.nice(19)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # that others hang up is the rule here
    mob = Mob(json.loads(sys.stdin.readline()))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        told = Told()
        asyncio.run(mob.attack(int(line), told))
        print(
            json.dumps(
                {
                    "made": told.made,
                    "unconnected": told.refused,
                    "from_members": told.from_members,
                    "breaches": told.breaches[:20],
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
