"""A stream: one connection between two peers' programs, through a peer's one listening port.

    dial -> HELLO (purpose 5, the listener's secret) -> WELCOME -> questions and answers

Invariant: every call ends within its timeout, which is counted from the last bytes that moved, and
receiving by the deadline of whoever waits for it, if one is set; no length from the other end is
believed before it is checked.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from pccl.base.clock import Deadline
from pccl.base.errors import PcclError, RemoteError
from pccl.membership.messages import MemberInfo
from pccl.state.messages import BODY_BYTES_MAX
from pccl.transport import native_frames as nf
from pccl.transport.framing import HEAD_BYTES, Framer, frame

NOTSENT_BYTES = 128 << 10  # more in the kernel would only blur how long sending takes
BURST_BYTES_MAX = 256 << 10
BURST_BYTES_MIN = 16 << 10
BURST_S = 0.05  # a burst that takes longer is halved, so that pauses stay short
PAUSE_S_MAX = 0.5  # below the patience of a receiver


@dataclass(frozen=True, slots=True)
class Identity:
    """What a dialler says of itself."""

    run_id: bytes
    peer_id: bytes
    incarnation: int


class StreamLost(PcclError):
    """The other end of a stream is gone, silent, or refuses."""


class Stream:
    """One end.  One thread at a time; `close` may be called from any."""

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        self._socket = sock
        self._timeout_s = timeout_s
        self._burst_bytes = BURST_BYTES_MAX
        self._short = False
        self._deadline: Deadline | None = None
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
        if member.port == 0:
            raise StreamLost("nobody can dial it: it connected with reachable=False")
        try:
            sock = socket.create_connection((member.host, member.port), timeout_s)
        except OSError as error:
            raise StreamLost(f"cannot be reached: {error}") from error
        stream = cls(sock, timeout_s)
        stream.until(deadline)
        try:
            hello = nf.NativeHello(
                purpose=nf.Purpose.STREAM,
                run_id=identity.run_id,
                peer_id=identity.peer_id,
                incarnation=identity.incarnation,
                secret=member.secret,
            )
            stream.send(nf.encode(hello))
            answer = nf.decode(stream.receive())
            if not isinstance(answer, nf.Welcome):
                text = answer.text if isinstance(answer, nf.RefusedFrame) else str(answer)
                raise StreamLost(f"refuses a stream: {text}")
        except BaseException:
            stream.close()
            raise
        return stream

    def patience(self, timeout_s: float) -> None:
        """How long the other end may move nothing from now on."""
        self._timeout_s = timeout_s
        with contextlib.suppress(OSError):  # closed by another thread: the next call says so
            self._socket.settimeout(timeout_s)

    def until(self, deadline: Deadline | None) -> None:
        """Nothing is received after this, however steadily it drips."""
        self._deadline = deadline

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
                view = view[self._socket.send(view) :]
        except OSError as error:
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
                count = self._socket.recv_into(view)
                if count == 0:
                    raise StreamLost("has closed the stream")
                view = view[count:]
                if len(view) and self._deadline is not None and self._deadline.passed():
                    raise StreamLost("was too slow for the time there was")
        except OSError as error:
            raise StreamLost(_words(error, self._timeout_s)) from error

    def receive_bytes(self, count: int) -> bytes:
        """Returns that many bare bytes; the caller has checked the number."""
        data = bytearray(count)
        self.receive_into(memoryview(data))
        return bytes(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _words(error: OSError, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"moved nothing for {timeout_s:g} s"
    return f"is gone ({error.strerror or error})"
