"""Streams of a secured run: TLS 1.3 by Python at both ends, behind eight bytes that say so.

    dial -> "PCCLSTR1" -> TLS, certificates at both ends -> HELLO -> WELCOME -> as in a plain run

The native core listens for both kinds of connection on one port; by the eight bytes it knows those
that are not its own to secure, and hands them over as they are.

Invariant: nothing is sent to, or believed of, who has not proved to be a trainer of this run; who
dials has reached the very peer it meant, and who says HELLO is whom its certificate names.
"""

from __future__ import annotations

import contextlib
import hmac
import socket
import ssl
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from pccl.base.clock import Deadline
from pccl.base.errors import RemoteError
from pccl.membership.agent_denials import Denied
from pccl.transport import native_frames as nf
from pccl.transport.handshake_pace import FairPlaces
from pccl.transport.identity import Name, Role, name_in
from pccl.transport.tls import client_context, server_context
from pccl.transport.tls_turns import remote_host

if TYPE_CHECKING:
    from pccl.transport.identity import TlsMaterial

PREFACE: Final = b"PCCLSTR1"
HANDSHAKE_S: Final = 5.0  # from the first byte to the HELLO, in all


class StreamTls:
    """What one peer's streams are secured with.  Its methods may be called from any thread.

    Args:
        material: returns the certificate in force, which is renewed while the peer lives.
        denials: who is not let in although its certificate is in force.
    """

    def __init__(self, material: Callable[[], TlsMaterial], denials: Denied | None = None) -> None:
        self.denials = Denied() if denials is None else denials
        self._material = material
        self._lock = threading.Lock()
        self._made_of: TlsMaterial | None = None
        self._client: ssl.SSLContext | None = None
        self._server: ssl.SSLContext | None = None

    def dial(
        self, sock: socket.socket, expected: Name, timeout_s: float, preface: bytes = PREFACE
    ) -> ssl.SSLSocket:
        """Secures a connection that was dialled; takes over `sock`, which it closes on failure.

        `preface` is for the program's side of a peer; "" for its native one.

        Raises:
            OSError: the handshake failed, or took too long.
            RemoteError: who answers is another member of the run, or no member.
        """
        deadline = Deadline(timeout_s)
        client, _ = self._contexts()
        try:
            sock.settimeout(timeout_s)
            sock.sendall(preface)
            return _shake(client, sock, lambda name: name == expected, deadline, server_side=False)[
                0
            ]
        except BaseException:
            sock.close()
            raise

    def accept(
        self, sock: socket.socket, run_id: bytes, timeout_s: float
    ) -> tuple[ssl.SSLSocket, Name]:
        """Secures a connection whose preface the native core has read; as `dial` otherwise.

        Raises:
            OSError, RemoteError: as `dial`; who dialled is no trainer of this run.
        """
        _, server = self._contexts()

        def welcome(name: Name) -> bool:
            is_member = name.role is Role.TRAINER and name.run_id == run_id
            return is_member and name.peer_id not in self.denials

        try:
            return _shake(server, sock, welcome, Deadline(timeout_s), server_side=True)
        except BaseException:
            sock.close()
            raise

    def _contexts(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        material = self._material()
        with self._lock:
            if self._client is None or self._server is None or material is not self._made_of:
                self._client = client_context(material)
                self._server = server_context(material, strangers=False)
                self._made_of = material
            return self._client, self._server


def refusal_of(hello: object, name: Name, run_id: bytes, secret: bytes) -> nf.RefusedFrame | None:
    """Returns why the first frame on a secured stream is not welcome; None if it is.

    `name` is what the dialler's certificate says, `secret` this peer's incarnation's.
    """
    if not isinstance(hello, nf.NativeHello):
        return nf.RefusedFrame(nf.RefusalCode.PROTOCOL, "a stream begins with a HELLO")
    if hello.purpose != nf.Purpose.STREAM:
        return nf.RefusedFrame(nf.RefusalCode.PURPOSE, "behind this preface there are streams only")
    if hello.peer_id != name.peer_id:
        return nf.RefusedFrame(nf.RefusalCode.SECURITY, "your certificate is another peer's")
    if hello.run_id != run_id:
        return nf.RefusedFrame(nf.RefusalCode.RUN, "this peer belongs to another run")
    if not _same(hello.secret, secret):
        text = "wrong secret for this peer's incarnation"
        return nf.RefusedFrame(nf.RefusalCode.SECRET, text)
    return None


def _same(one: bytes, other: bytes) -> bool:
    """Takes the same time wherever the two differ."""
    return hmac.compare_digest(one, other)


def _shake(
    context: ssl.SSLContext,
    sock: socket.socket,
    welcome: Callable[[Name], bool],
    deadline: Deadline,
    *,
    server_side: bool,
) -> tuple[ssl.SSLSocket, Name]:
    sock.settimeout(max(0.001, deadline.remaining_s()))  # of the handshake as a whole
    secured = context.wrap_socket(sock, server_side=server_side, do_handshake_on_connect=False)
    try:
        secured.do_handshake()
        name = name_in(secured.getpeercert(binary_form=True) or b"")
        if not welcome(name):
            raise RemoteError(f"who is there is {name.uri} ({name.role}), which was not expected")
    except BaseException:
        secured.close()
        raise
    return secured, name


class HalfOpen:
    """Streams whose diallers have not yet said who they are.  Any thread.

    Who comes when there are too many ends the eldest of the address that has the most: a member
    says who it is within round trips, and a crowd behind one address ends none behind another.
    """

    def __init__(self, count_max: int) -> None:
        self._places: FairPlaces[int] = FairPlaces(count_max)
        self._lock = threading.Lock()
        self._handles: dict[int, socket.socket] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._handles)

    def enter(self, sock: socket.socket) -> int:
        """Takes note of one; returns what `leave` is to be told once its dialler is known."""
        handle = sock.dup()  # `sock` itself becomes another object's within the handshake
        host = remote_host(sock)
        with self._lock:
            self._serial += 1
            self._handles[self._serial] = handle
            if (victim := self._places.enter(self._serial, host)) is not None:
                _end(self._handles.pop(victim))
            return self._serial

    def leave(self, serial: int) -> None:
        """Forgets it, if it is not forgotten already; the connection itself stays as it is."""
        with self._lock:
            self._places.leave(serial)
            handle = self._handles.pop(serial, None)
        if handle is not None:
            handle.close()

    def close(self) -> None:
        """Ends all."""
        with self._lock:
            while self._handles:
                serial, handle = self._handles.popitem()
                self._places.leave(serial)
                _end(handle)


def _end(handle: socket.socket) -> None:
    with contextlib.suppress(OSError):
        handle.shutdown(socket.SHUT_RDWR)
    handle.close()
