"""A crowd of strangers at a secured port: members go on, newcomers with a ticket still come in."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time

import numpy as np

from pccl.transport.address import parse_address
from tests.security.laboratory import Laboratory, laboratory

__all__ = ["laboratory"]

CONNECTIONS = 1500
ATTACKERS = ("127.0.0.2", "127.0.0.3")


def _greeting() -> bytes:
    """A whole ClientHello, made once: that is all a flood needs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def flood(address: str, source: str, count: int) -> None:
    """Connections that begin a handshake, or say nonsense, and are left lying."""
    where, kept, greeting = parse_address(address), [], _greeting()
    for number in range(count):
        try:
            sock = socket.create_connection((where.host, where.port), 5, (source, 0))
            sock.send((greeting, greeting[:40], b"GET / HTTP/1.1\r\n\r\n")[number % 3])
            kept.append(sock)
        except OSError:
            continue
        if len(kept) >= 100:
            kept.pop(0).close()
    for sock in kept:
        sock.close()


def test_members_reduce_and_newcomers_join_while_strangers_crowd_the_port(
    laboratory: Laboratory,
) -> None:
    with laboratory.coordinator():
        ticket = laboratory.ticket(uses=2)
        with laboratory.connect(ticket, min_world=1) as comm:
            crowd = [
                threading.Thread(target=flood, args=(laboratory.address, source, CONNECTIONS))
                for source in ATTACKERS
            ]
            for thread in crowd:
                thread.start()
            steps = 0
            with laboratory.connect(ticket, min_world=1):
                joined = time.monotonic()
            while any(thread.is_alive() for thread in crowd):
                value = np.arange(8, dtype=np.float32)
                comm.all_reduce(value)
                assert np.array_equal(value, np.arange(8, dtype=np.float32))
                steps += 1
            for thread in crowd:
                thread.join(60)
            assert joined and steps
            assert not laboratory.audit("evicted")
