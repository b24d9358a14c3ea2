"""A stream: one connection between two peers' programs, through a peer's one listening port.

    dial -> HELLO (purpose 5, the listener's secret) -> WELCOME -> questions and answers

In a secured run all of it is within TLS (`stream_tls`).

Invariant: every call ends within its timeout, which is counted from the last bytes that moved, and
receiving by the deadline of whoever waits for it, if one is set; no length from the other end is
believed before it is checked.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from pccl.base.clock import Deadline
from pccl.base.errors import PcclError, RemoteError
from pccl.membership.messages import MemberInfo
from pccl.state.messages import BODY_BYTES_MAX
from pccl.state.stream_tls import HANDSHAKE_S, StreamTls, refusal_of
from pccl.transport import native_frames as nf
from pccl.transport.framing import HEAD_BYTES, Framer, frame
from pccl.transport.identity import Name, Role, TlsMaterial

if TYPE_CHECKING:
    from pccl.session import Session

NOTSENT_BYTES = 128 << 10  # more in the kernel would only blur how long sending takes
BURST_BYTES_MAX = 256 << 10
BURST_BYTES_MIN = 16 << 10
BURST_S = 0.05  # a burst that takes longer is halved, so that pauses stay short
PAUSE_S_MAX = 0.5  # below the patience of a receiver
SEALED_BYTES_MAX = 64 << 10  # TLS counts a whole send against one timeout, so sends stay small
HELLO_BYTES_MAX = 4096
TOO_SLOW = "was too slow for the time there was"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a dialler says of itself."""

    run_id: bytes
    peer_id: bytes
    incarnation: int
    secret: bytes = field(default=b"", repr=False)  # of this incarnation: what diallers must know
    tls: StreamTls | None = None  # None: the run is not secured
    relays: Callable[[], Sequence[MemberInfo]] = tuple  # to meet at who cannot be dialled
    in_vain: dict[bytes, None] = field(default_factory=dict, repr=False, compare=False)
    """Relays that led nowhere when they were asked last, the last one last."""

    def hello(self, purpose: nf.Purpose, secret: bytes) -> bytes:
        """Returns the first frame of a connection to whoever knows that secret."""
        return nf.encode(
            nf.NativeHello(
                purpose=purpose,
                run_id=self.run_id,
                peer_id=self.peer_id,
                incarnation=self.incarnation,
                secret=secret,
            )
        )


def why_unwelcome(answer: bytes) -> str | None:
    """Says what the answer to a hello is, if no WELCOME.  Raises RemoteError: it is no frame."""
    said = nf.decode(answer)
    if isinstance(said, nf.Welcome):
        return None
    return said.text if isinstance(said, nf.RefusedFrame) else str(said)


def stream_tls_of(session: Session) -> StreamTls | None:
    """Returns what a session's streams are secured with; None if its run is not secured."""
    credentials = session.agent.credentials
    if credentials is None:
        return None

    def material() -> TlsMaterial:
        assert credentials is not None and credentials.material is not None  # it is admitted
        return credentials.material

    return StreamTls(material, credentials.denials)


def identity_of(session: Session, tls: StreamTls | None) -> Identity:
    """Returns what a session that has been admitted says of itself now."""
    admitted = session.agent.standing.admitted
    assert admitted is not None
    own = bytes(session.peer_id)

    def relays() -> Sequence[MemberInfo]:
        """This process first, if others can dial it: then no third one carries anything."""
        seat, met = session.agent.seat, session.agent.standing.met
        others = [one for one in met if one.port and one.peer_id != own]
        mine = next((one for one in met if one.peer_id == own), None)
        if mine is None or seat is None or seat.home is None:
            return others
        return [replace(mine, host=seat.home.host, port=seat.home.port), *others]

    return Identity(admitted.run_id, own, admitted.incarnation, admitted.secret, tls, relays)


class StreamLost(PcclError):
    """The other end of a stream is gone, silent, or refuses."""


class Unreachable(StreamLost):
    """Nobody answered there, neither with yes nor with no: another way may lead to it."""


class Stream:
    """One end.  One thread at a time; `close` may be called from any.

    Attributes:
        by_third: a third peer carries it.
        received: bytes that have come.
        proved: the peer id that who has dialled it has proved; b"" in a run that is not secured.
    """

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        self._socket = sock
        self._timeout_s = timeout_s
        self._burst_bytes = BURST_BYTES_MAX
        self._short = False
        self._deadline: Deadline | None = None
        self._shortened = False  # the socket's own timeout, by the deadline
        self.by_third = False
        self.received = 0
        self.proved = b""
        self._send_bytes_max = SEALED_BYTES_MAX if isinstance(sock, ssl.SSLSocket) else 1 << 30
        sock.settimeout(timeout_s)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @classmethod
    def dial(
        cls,
        member: MemberInfo,
        identity: Identity,
        timeout_s: float,
        deadline: Deadline | None = None,
    ) -> Self:
        """Raises StreamLost if it does not answer in time, or refuses."""
        try:
            sock = socket.create_connection((member.host, member.port), _least(timeout_s, deadline))
        except ConnectionRefusedError as error:
            raise StreamLost(f"cannot be reached: {error}") from error
        except OSError as error:
            raise Unreachable(f"cannot be reached: {error}") from error
        return cls.over(sock, member, identity, timeout_s, deadline)

    @classmethod
    def over(
        cls,
        sock: socket.socket,
        member: MemberInfo,
        identity: Identity,
        timeout_s: float,
        deadline: Deadline | None = None,
    ) -> Self:
        """The same over a connection that leads there; takes over `sock`."""
        if identity.tls is not None:
            expected = Name(identity.run_id, member.peer_id, Role.TRAINER)
            try:
                wait_s = _least(min(timeout_s, HANDSHAKE_S), deadline)
                sock = identity.tls.dial(sock, expected, wait_s)
            except (OSError, RemoteError) as error:
                raise StreamLost(f"cannot be spoken with in secret: {error}") from error
        stream = cls(sock, timeout_s)
        stream.until(deadline)
        try:
            stream.send(identity.hello(nf.Purpose.STREAM, member.secret))
            if (text := why_unwelcome(stream.receive())) is not None:
                raise StreamLost(f"refuses a stream: {text}")
        except BaseException:
            stream.close()
            raise
        return stream

    @classmethod
    def accept(cls, sock: socket.socket, identity: Identity, timeout_s: float) -> Self:
        """Returns a stream that the native core has handed over, once its dialler is welcome.

        In a plain run it was already, and nothing is waited for; in a secured one it is heard
        here, which takes HANDSHAKE_S at most.  Takes over `sock`.

        Raises:
            StreamLost, RemoteError: it is not welcome, or did not say what it is in time.
        """
        if identity.tls is None:
            return cls(sock, timeout_s)
        deadline = Deadline(HANDSHAKE_S)
        try:
            secured, name = identity.tls.accept(sock, identity.run_id, HANDSHAKE_S)
        except OSError as error:
            raise StreamLost(f"is not of this run: {_words(error, HANDSHAKE_S)}") from error
        stream = cls(secured, max(0.001, deadline.remaining_s()))
        stream.proved = name.peer_id
        try:
            stream.until(deadline)
            hello = nf.decode(stream.receive(HELLO_BYTES_MAX))
            refusal = refusal_of(hello, name, identity.run_id, identity.secret)
            stream.send(nf.encode(nf.Welcome() if refusal is None else refusal))
            if refusal is not None:
                raise StreamLost(f"was refused: {refusal.text}")
        except BaseException:
            stream.close()
            raise
        stream.until(None)
        stream.patience(timeout_s)
        return stream

    def patience(self, timeout_s: float) -> None:
        """How long the other end may move nothing from now on."""
        self._timeout_s = timeout_s
        self._shortened = False
        with contextlib.suppress(OSError):  # closed by another thread: the next call says so
            self._socket.settimeout(timeout_s)

    def until(self, deadline: Deadline | None) -> None:
        """Nothing is received after this, however steadily it drips."""
        self._deadline = deadline
        if self._shortened:
            self.patience(self._timeout_s)

    def send(self, body: bytes) -> None:
        self._send(memoryview(frame(body)))

    def send_bytes(self, content: Any, pace: Callable[[], float]) -> None:
        """Sends bare bytes; `pace` says for which part of its time (1: all of it)."""
        view = memoryview(content).cast("B")
        at = 0
        while at < len(view):
            part = pace()
            if part < 1.0:
                self._keep_short()
            size = len(view) - at if part >= 1.0 else min(self._burst_bytes, len(view) - at)
            began_s = time.monotonic()
            self._send(view[at : at + size])
            at += size
            if part < 1.0:
                self._pause(time.monotonic() - began_s, part)

    def _keep_short(self) -> None:
        """Lets only little lie unsent in the kernel, so that sending takes as long as the way."""
        if not self._short:
            self._short = True
            option = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, option, NOTSENT_BYTES)

    def _pause(self, took_s: float, part: float) -> None:
        if took_s > BURST_S:
            self._burst_bytes = max(BURST_BYTES_MIN, self._burst_bytes // 2)
        elif took_s < BURST_S / 4:
            self._burst_bytes = min(BURST_BYTES_MAX, self._burst_bytes * 2)
        time.sleep(min(PAUSE_S_MAX, took_s * (1.0 / part - 1.0)))

    def _send(self, view: memoryview) -> None:
        try:
            while len(view):
                view = view[self._socket.send(view[: self._send_bytes_max]) :]
        except (OSError, ValueError) as error:  # ValueError: closed here, within TLS
            raise StreamLost(_words(error, self._timeout_s)) from error

    def receive(self, body_bytes_max: int = BODY_BYTES_MAX) -> bytes:
        """Returns one body.  Raises StreamLost, RemoteError for bytes that are no frame."""
        framer = Framer(first_frame_bytes_max=body_bytes_max)
        head = bytearray(HEAD_BYTES)
        self.receive_into(memoryview(head))
        framer.feed(bytes(head))
        length = int.from_bytes(head[:4], "little")
        if not 0 < length <= body_bytes_max:
            raise RemoteError(f"a frame of {length} bytes, where {body_bytes_max} are allowed")
        body = bytearray(length)
        self.receive_into(memoryview(body))
        framer.feed(bytes(body))
        whole = framer.next_message()
        assert whole is not None
        return whole

    def receive_into(self, view: memoryview) -> None:
        """Fills `view` with bare bytes."""
        try:
            while len(view):
                self._heed_deadline()
                count = self._socket.recv_into(view)
                if count == 0:
                    raise StreamLost("has closed the stream")
                self.received += count
                view = view[count:]
                if len(view) and self._deadline is not None and self._deadline.passed():
                    raise StreamLost(TOO_SLOW)
        except TimeoutError as error:
            if self._deadline is not None and self._deadline.passed():
                raise StreamLost(TOO_SLOW) from error
            raise StreamLost(_words(error, self._timeout_s)) from error
        except (OSError, ValueError) as error:
            raise StreamLost(_words(error, self._timeout_s)) from error

    def _heed_deadline(self) -> None:
        """Has the socket wait no longer than there is time, where that is less than its patience.
        What has come already is taken even then."""
        if self._deadline is None:
            return
        left_s = self._deadline.remaining_s()
        if left_s < self._timeout_s or self._shortened:
            self._shortened = True
            self._socket.settimeout(min(self._timeout_s, max(0.001, left_s)))

    def receive_bytes(self, count: int) -> bytes:
        """Returns that many bare bytes; the caller has checked the number."""
        data = bytearray(count)
        self.receive_into(memoryview(data))
        return bytes(data)

    def bare(self) -> socket.socket:
        """Gives the connection away without what secured it; this stream is over."""
        return socket.socket(fileno=self._socket.detach())

    def close(self) -> None:
        with contextlib.suppress(OSError):
            # Not TLS's own shutdown: that makes a plain socket of it first, while another thread
            # may be sending.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        self._socket.close()


def _least(timeout_s: float, deadline: Deadline | None) -> float:
    return timeout_s if deadline is None else max(0.001, min(timeout_s, deadline.remaining_s()))


def _words(error: OSError | ValueError, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"moved nothing for {timeout_s:g} s"
    return f"is gone ({getattr(error, 'strerror', None) or error})"
