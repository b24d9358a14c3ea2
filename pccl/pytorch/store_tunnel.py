"""torch's own store between the ranks of a secured group, within TLS.

    TCPStore of a rank -- its loopback address -- TLS -- rank 0's machine -- loopback -- TCPStore

torch's store encrypts nothing and believes everybody, so in a secured group that other machines can
reach it listens on the loopback address alone.  What the other ranks say to it comes through here.

Invariant: a connection reaches the store only from this machine, or from who has proved to be a
trainer of the run; no more than HALF_OPEN_MAX have not yet, which have HANDSHAKE_S each for the
first byte, their turn and the handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from pccl.base.clock import system_clock
from pccl.base.config import ControlLimits
from pccl.base.errors import PcclError, RemoteError, UsageError
from pccl.base.event_loop import new_event_loop
from pccl.base.log import get_logger
from pccl.membership.agent_denials import Denied
from pccl.transport import doors
from pccl.transport.handshake_pace import FairPlaces, KnownHosts
from pccl.transport.identity import Name, Role, TlsMaterial, name_in
from pccl.transport.tls import HANDSHAKE_RECORD, client_context, server_context
from pccl.transport.tls_turns import HandshakeTurns, first_bytes, remote_host

if TYPE_CHECKING:
    from pccl.session import Session

LOOPBACK: Final = "127.0.0.1"
HALF_OPEN_MAX: Final = 64
HANDSHAKE_S: Final = 5.0
RETRY_S: Final = 0.1
BLOCK_BYTES: Final = 1 << 16
_log = get_logger("pytorch")

Connected = Callable[[socket.socket], Coroutine[Any, Any, None]]
"""Owns a connection that was taken off the listening port."""


def material_of(session: Session) -> Callable[[], TlsMaterial] | None:
    """Returns what gives a session's certificate in force; None if its run is not secured."""
    credentials = session.agent.credentials
    if credentials is None:
        return None

    def material() -> TlsMaterial:
        assert credentials is not None and credentials.material is not None  # it is admitted
        return credentials.material

    return material


def loopback_listener() -> socket.socket:
    """A listening socket for the store itself."""
    return socket.create_server((LOOPBACK, 0))


class StoreTunnel:
    """One end, on a daemon thread of its own; lives as long as the process, as the store does."""

    def __init__(self, listener: socket.socket, connected: Connected) -> None:
        self.port = int(listener.getsockname()[1])
        self._listener = listener
        self._connected = connected
        self._ready = threading.Event()
        threading.Thread(target=self._main, name="pccl-store", daemon=True).start()
        self._ready.wait(HANDSHAKE_S)

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        tasks: set[asyncio.Task[None]] = set()
        self._ready.set()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # no descriptors, for a while
                _log.warning("torch's store cannot be reached now: %s", error)
                await asyncio.sleep(RETRY_S)
                continue
            task = doors.serve(connection, self._connected)
            tasks.add(task)
            task.add_done_callback(tasks.discard)


def serve(
    host: str,
    store_port: int,
    run_id: bytes,
    material: Callable[[], TlsMaterial],
    denials: Denied | None = None,
) -> StoreTunnel:
    """Rank 0's end: listens on `host` and passes on, to the store, what trainers of the run say.
    Of those that are in `denials` nothing is passed on any more.

    Raises:
        UsageError: it cannot listen there.
    """
    half_open: FairPlaces[asyncio.Task[None] | None] = FairPlaces(HALF_OPEN_MAX)
    members, limits = KnownHosts(), ControlLimits()
    turns = HandshakeTurns(
        rate_per_s=limits.handshake_rate_per_s,
        burst=float(limits.handshake_burst_max),
        clock=system_clock,
        prefer=members,
    )

    async def connected(connection: socket.socket) -> None:
        task, remote = asyncio.current_task(), remote_host(connection)
        if (victim := half_open.enter(task, remote)) is not None:
            victim.cancel()
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                said = await first_bytes(connection)
            if said[:1] != bytes((HANDSHAKE_RECORD,)):
                raise RemoteError("it does not speak TLS, and torch's store is secured")
            await turns.take(remote, HANDSHAKE_S)
            async with asyncio.timeout(HANDSHAKE_S):
                context = server_context(material(), strangers=False)
                reader, writer = await _open(connection, context)
            name = _name(writer)
            if name.role is not Role.TRAINER or name.run_id != run_id:
                raise RemoteError(f"a {name.role} of run {name.run_id.hex()} wants torch's store")
            if name.peer_id in known:
                raise RemoteError("a peer that was revoked wants torch's store")
            members.prove(remote)
        except (OSError, PcclError, asyncio.CancelledError) as error:  # among them TimeoutError
            _log.info("a connection to torch's store is not let in: %s", error)
            if writer is None:
                connection.close()
            else:  # the socket is the transport's
                writer.transport.abort()
            return
        finally:
            half_open.leave(task)
        loop, aborts = asyncio.get_running_loop(), writer.transport.abort

        def end() -> None:  # on the thread that hears of the denial
            loop.call_soon_threadsafe(aborts)

        with known.ends(name.peer_id, end):
            await _pass_on(reader, writer, LOOPBACK, store_port)

    known = Denied() if denials is None else denials
    try:
        listener = socket.create_server((host, 0), family=_family(host))
    except OSError as error:
        raise UsageError(f"cannot listen on {host}: {error.strerror or error}") from error
    return StoreTunnel(listener, connected)


def towards(
    host: str, port: int, expected: Name, material: Callable[[], TlsMaterial]
) -> StoreTunnel:
    """Another rank's end: what comes to its loopback port goes to rank 0's tunnel."""

    async def connected(connection: socket.socket) -> None:
        def check(name: Name) -> None:
            if name != expected:
                raise RemoteError(f"torch's store is answered for by {name.uri}")

        try:
            context = client_context(material())
            reader, writer = await _open(connection, None)
        except (OSError, PcclError) as error:
            _log.warning("torch's store cannot be reached now: %s", error)
            connection.close()
            return
        await _pass_on(reader, writer, host, port, ssl=context, check=check)

    return StoreTunnel(loopback_listener(), connected)


async def _open(
    connection: socket.socket, context: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=BLOCK_BYTES, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection, ssl=context)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _name(writer: asyncio.StreamWriter) -> Name:
    tls = writer.get_extra_info("ssl_object")
    return name_in(tls.getpeercert(binary_form=True) or b"")


async def _pass_on(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    host: str,
    port: int,
    *,
    check: Callable[[Name], None] | None = None,
    **how: Any,
) -> None:
    """Connects there and copies both ways, until either end has ended."""
    far: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(HANDSHAKE_S):
            far_reader, far = await asyncio.open_connection(host, port, limit=BLOCK_BYTES, **how)
        if check is not None:
            check(_name(far))
        ways = [
            asyncio.create_task(_copy(reader, far)),
            asyncio.create_task(_copy(far_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
    except (OSError, PcclError) as error:
        _log.warning("torch's store at %s port %d: %s", host, port, error)
    finally:
        for end in (writer, far):
            if end is not None:
                with contextlib.suppress(RuntimeError):
                    end.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(BLOCK_BYTES):
        writer.write(data)
        await writer.drain()
