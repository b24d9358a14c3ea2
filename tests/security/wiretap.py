"""A relaying listener that hears everything: what it takes on one port it passes on to another."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

READ_BYTES = 1 << 16


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


class Wiretap:
    """Relays between `port` and `target` on loopback; `heard` has each direction of each
    connection, as bytes.  While nobody listens at the target, who comes is hung up on."""

    def __init__(self, target: int = 0) -> None:
        self.target = target or free_port()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._heard: list[bytearray] = []
        self._sockets: list[socket.socket] = []
        self._closed = False
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._closed = True
            sockets = [self._listener, *self._sockets]
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self._thread.join(10)

    def heard(self) -> list[bytes]:
        with self._lock:
            return [bytes(one) for one in self._heard]

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target), 10)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                if self._closed:
                    near.close()
                    far.close()
                    return
                self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        kept = bytearray()
        with self._lock:
            self._heard.append(kept)
        with contextlib.suppress(OSError):
            while data := source.recv(READ_BYTES):
                with self._lock:
                    kept += data
                sink.sendall(data)
        for one in (source, sink):  # whoever ends ends both: a peer that died must look dead
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
