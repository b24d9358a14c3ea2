"""The doors of weights in a secured run: who is heard there when a crowd wants to be."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pccl.base.config import ControlLimits
from pccl.transport.address import Address
from pccl.transport.authority import key_pem, pem
from pccl.transport.identity import Role, TlsMaterial
from pccl.transport.tls import client_context, server_context
from pccl.weights.channels import Way
from pccl.weights.door import HALF_OPEN_MAX, Door
from pccl.weights.frames import Alive, Message
from pccl.weights.stream import Stream, StreamEnded, open_stream
from tests.security.laboratory import Laboratory, laboratory

__all__ = ["laboratory"]
WAIT_S = 20.0
HELLO = b"\x16\x03\x01\x02\x00"  # as TLS begins; the rest never comes


def contexts(lab: Laboratory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What a door shows, and who may come in."""
    ca, key = lab.ca.authority, Ed25519PrivateKey.generate()
    leaf = ca.issue_peer(key.public_key(), Role.TRAINER, lab.ca.new_serial(), time.time(), 600)
    material = TlsMaterial(pem(leaf), key_pem(key), pem(ca.certificate_der))
    return server_context(material, strangers=False), client_context(material)


async def answers(stream: Stream, first: Message) -> None:
    await stream.send(Alive(), timeout_s=WAIT_S)
    with contextlib.suppress(StreamEnded):
        await stream.receive(WAIT_S)


async def stranger(door: Address, host: str) -> socket.socket:
    """One that begins a handshake and goes no further."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind((host, 0))
    await asyncio.get_running_loop().sock_connect(sock, (door.host, door.port))
    await asyncio.get_running_loop().sock_sendall(sock, HELLO)
    return sock


async def is_open(sock: socket.socket) -> bool:
    try:
        async with asyncio.timeout(0.2):
            return bool(await asyncio.get_running_loop().sock_recv(sock, 1))
    except TimeoutError:
        return True
    except OSError:
        return False


async def is_heard(door: Address, way: Way) -> float:
    """Returns how long it took somebody of the run."""
    began_s = time.monotonic()
    stream = await open_stream(door, timeout_s=WAIT_S, way=way)
    await stream.send(Alive(), timeout_s=WAIT_S)
    await stream.receive(WAIT_S)
    stream.close()
    return time.monotonic() - began_s


def test_a_crowd_from_one_address_takes_no_place_of_another(laboratory: Laboratory) -> None:
    shown, _ = contexts(laboratory)

    async def story() -> None:
        door = Door(answers, context=lambda: shown, encrypts=True)
        at = await door.open(Address("127.0.0.1", 0))
        slow = await stranger(at, "127.0.0.3")  # somebody's handshake over a long way
        crowd = [await stranger(at, "127.0.0.66") for _ in range(3 * HALF_OPEN_MAX)]
        await asyncio.sleep(0.5)
        assert door.drops["full"] >= 2 * HALF_OPEN_MAX
        assert await is_open(slow)
        for sock in (slow, *crowd):
            sock.close()
        await door.close()

    asyncio.run(story())


def test_handshakes_have_a_pace_and_addresses_take_turns(laboratory: Laboratory) -> None:
    shown, mine = contexts(laboratory)
    limits = ControlLimits(handshake_burst_max=1, handshake_rate_per_s=2.0)

    async def story() -> None:
        door = Door(answers, context=lambda: shown, encrypts=True, limits=limits)
        at = await door.open(Address("127.0.0.1", 0))
        crowd = [await stranger(at, "127.0.0.66") for _ in range(30)]
        await asyncio.sleep(0.2)
        took_s = await is_heard(at, Way(mine))
        assert 0.2 < took_s < 5, "it waited for one turn, and not for thirty"
        # Somebody from here is of the run, as has been shown: now it comes before all others.
        crowd += [await stranger(at, f"127.0.1.{n}") for n in range(1, 20)]
        await asyncio.sleep(0.2)
        assert await is_heard(at, Way(mine)) < 5, "twenty other addresses have their turns later"
        for sock in crowd:
            sock.close()
        await door.close()

    asyncio.run(story())


def test_what_is_no_tls_costs_no_handshake_and_silence_no_turn(laboratory: Laboratory) -> None:
    shown, mine = contexts(laboratory)
    limits = ControlLimits(handshake_burst_max=1, handshake_rate_per_s=0.01)

    async def story() -> None:
        door = Door(answers, context=lambda: shown, encrypts=True, limits=limits)
        at = await door.open(Address("127.0.0.1", 0))
        loop = asyncio.get_running_loop()
        talkers: list[socket.socket] = []
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"", b"\xc1"):
            sock = socket.socket()
            sock.setblocking(False)
            await loop.sock_connect(sock, (at.host, at.port))
            if said:
                await loop.sock_sendall(sock, said)
            talkers.append(sock)
        await asyncio.sleep(0.3)
        assert door.drops["protocol"] == 2
        assert await is_heard(at, Way(mine)) < 5, "the one turn there is was not spent on them"
        for sock in talkers:
            sock.close()
        await door.close()

    asyncio.run(story())
