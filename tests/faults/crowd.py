"""Strangers at a coordinator's port: `crowd.py HOST PORT SILENT GARBAGE_PER_S HELLOS_PER_S`.

Keeps SILENT connections open that say nothing (closed ones are opened again), and makes so many
connections per second that say garbage, and so many with a valid Hello, which stay for a second and
do no more.  Prints "full" once the silent ones have all been tried, ends with its standard input,
and then prints how many of each there were.  It gives way to everybody: what is measured is the
coordinator, not this program's hunger for processor time.
"""

from __future__ import annotations

import os
import random
import resource
import select
import socket
import sys
import time
from collections import deque
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # behind an installed pccl

from pccl.membership.messages import PROTOCOL_VERSION, Hello, peer_codec
from pccl.transport.framing import frame

HELLO_FROM = "127.0.0.2"  # strangers come from other hosts than peers
HELLO_STAYS_S = 1.0
TURN_S = 0.01
OPENED_PER_TURN = 100
GARBAGE = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\xff" * 64,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    b"\x05\x00\x00\x00" + b"\xc1" * 60,
)


class Crowd:
    def __init__(
        self, where: tuple[str, int], silent: int, garbage_per_s: float, hellos_per_s: float
    ) -> None:
        self._where = where
        self._silent_max = silent
        self._rates_per_s = (garbage_per_s, hellos_per_s)
        self._poll = select.epoll()
        self._open: dict[int, socket.socket] = {}
        self._dice = random.Random(1)
        self._greeting: deque[tuple[float, socket.socket]] = deque()  # and until when
        self.opened = self.sent = self.greeted = 0

    def run(self) -> None:
        told = False
        owed = [0.0, 0.0]
        before = time.monotonic()
        while not select.select([sys.stdin], [], [], TURN_S)[0]:
            now = time.monotonic()
            owed = [
                min(due + (now - before) * rate, rate)
                for due, rate in zip(owed, self._rates_per_s, strict=True)
            ]
            before = now
            self._drop_closed()
            for _ in range(min(OPENED_PER_TURN, self._silent_max - len(self._open))):
                self._open_silent()
            while owed[0] >= 1:
                owed[0] -= 1
                self._send_garbage()
            while owed[1] >= 1:
                owed[1] -= 1
                self._greet(now)
            while self._greeting and self._greeting[0][0] <= now:
                self._greeting.popleft()[1].close()
            if not told and self.opened >= self._silent_max:
                told = True
                print("full", flush=True)

    def _dial(self, source: str = "") -> socket.socket | None:
        connection = socket.socket()
        connection.setblocking(False)
        try:
            if source:
                connection.bind((source, 0))
            connection.connect(self._where)
        except BlockingIOError:
            pass
        except OSError:  # no port left, or refused: the crowd is as large as it gets
            connection.close()
            return None
        return connection

    def _open_silent(self) -> None:
        connection = self._dial()
        if connection is not None:
            self._open[connection.fileno()] = connection
            self._poll.register(connection, select.EPOLLIN | select.EPOLLRDHUP)
            self.opened += 1

    def _drop_closed(self) -> None:
        for number, _ in self._poll.poll(0, 1024):
            self._poll.unregister(number)
            self._open.pop(number).close()

    def _send_garbage(self) -> None:
        connection = self._dial()
        if connection is None:
            return
        try:
            connection.send(self._dice.choice(GARBAGE))
            self.sent += 1
        except OSError:
            pass  # not connected yet; then it is one more that says nothing
        connection.close()

    def _greet(self, now: float) -> None:
        connection = self._dial(HELLO_FROM)
        if connection is None:
            return
        try:
            connection.send(self._hello())
            self.greeted += 1
        except OSError:
            pass  # as above
        self._greeting.append((now + HELLO_STAYS_S, connection))

    def _hello(self) -> bytes:
        hello = Hello(
            protocol=PROTOCOL_VERSION,
            run_id=b"",
            peer_id=self._dice.randbytes(16),
            incarnation=0,
            generation=0,
            epoch=0,
            data_host="",
            data_port=1,  # a dial is refused
            host_key=1,
            min_world=0,
            hostname="stranger",
            pid=1,
        )
        return frame(peer_codec.encode(hello), frame_bytes_max=1 << 12)


def main() -> None:
    host, port, silent, garbage, hellos = sys.argv[1:6]
    os.nice(19)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    crowd = Crowd((host, int(port)), int(silent), float(garbage), float(hellos))
    crowd.run()
    print(f"opened {crowd.opened} sent {crowd.sent} greeted {crowd.greeted}", flush=True)


if __name__ == "__main__":
    main()
