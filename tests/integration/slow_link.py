"""A link to a publisher that is slow, may flip a bit, and counts what comes over it.

It stands in front of the publisher: receivers are given its address, so what they exchange with
the publisher passes here and what they exchange with each other does not.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Self

READ_BYTES = 1 << 16


class SlowLink:
    """Copies bytes both ways, those towards receivers at `bytes_per_s` over all connections."""

    def __init__(self, target: str, bytes_per_s: float = 1e12) -> None:
        host, _, port = target.rpartition(":")
        self.bytes_per_s = bytes_per_s
        self.passed = 0
        self._flip_after: int | None = None
        self._target = (host, int(port))
        self._lock = threading.Lock()
        self._free_at_s = 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._closed = False

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def flip_a_bit_after(self, byte_count: int) -> None:
        """One bit of what passes after so many bytes more is flipped."""
        with self._lock:
            self._flip_after = self.passed + byte_count

    @property
    def flipped(self) -> bool:
        return self._flip_after is None

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends the accept under way
        with self._lock:
            self._closed = True
            for connection in (self._listener, *self._open):
                connection.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                continue
            with contextlib.ExitStack() as kept:
                kept.callback(near.close)
                try:
                    far = socket.create_connection(self._target, timeout=5)
                except OSError:
                    continue
                kept.callback(far.close)
                far.settimeout(None)
                with self._lock:
                    if self._closed:
                        return
                    self._open += [near, far]
                kept.pop_all()
            for ends in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._copy, args=ends, daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(READ_BYTES):
                target.sendall(self._pass(data) if counted else data)
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def _pass(self, data: bytes) -> bytes:
        with self._lock:
            self.passed += len(data)
            now_s = time.monotonic()
            self._free_at_s = max(self._free_at_s, now_s) + len(data) / self.bytes_per_s
            wait_s = self._free_at_s - now_s
            if self._flip_after is not None and self.passed > self._flip_after and len(data) > 8:
                self._flip_after = None
                data = data[:-1] + bytes([data[-1] ^ 4])
        time.sleep(wait_s)
        return data
