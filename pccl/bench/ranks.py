"""The parent's side: starts the ranks of one contender, gives them orders, and ends them.

Invariants: every wait has a deadline; a rank that fails or dies is reported with its own words and
the end of its log; when `close` returns no process of the group lives, whatever happened.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from pccl.base.errors import PcclError

START_S = 120.0  # eight processes that import torch on two busy CPUs take half a minute
END_S = 5.0
LAST_WORDS_S = 0.5
POLL_S = 0.2
ANSWER_BYTES_MAX = 1 << 24
LOG_TAIL_BYTES = 2000


class RankFailed(PcclError):
    """A rank process failed, died or did not answer in time; the text has its own words."""


class RankGroup:
    """The processes of one contender, in rank order."""

    def __init__(self, name: str, folder: Path, world: int) -> None:
        self.name = name
        self.end_s = END_S  # how long ranks that were asked to end may take
        self.world = world
        self.door = str(folder / f"{name}.sock")
        self._log_path = folder / f"{name}.log"
        self._log: IO[bytes] = self._log_path.open("ab")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._links: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.door)
        self._listener.listen(world)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """The processes that were started; the ranks themselves, but for mpirun's."""
        return [process.pid for process in self._processes]

    def start(
        self,
        commands: Sequence[Sequence[str]],
        environment: Mapping[str, str] | None = None,
        start_s: float = START_S,
    ) -> None:
        """Starts the commands, which together are all ranks, and waits until each has reported."""
        for command in commands:
            self._processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    env={**os.environ, **(environment or {})},
                    start_new_session=True,  # Ctrl-C is for the parent, which ends them in order
                )
            )
        deadline_s = time.monotonic() + start_s
        links: dict[int, socket.socket] = {}
        try:
            while len(links) < self.world:
                link = self._accept(deadline_s)
                try:
                    hello = self._receive(link, deadline_s)
                    links[int(hello["rank"])] = link
                except BaseException:
                    link.close()
                    raise
        finally:
            self._links = [links[rank] for rank in sorted(links)]

    def ask(self, order: str, *, timeout_s: float, **details: Any) -> list[Any]:
        """Gives all ranks one order at the same time; returns their answers in rank order."""
        deadline_s = time.monotonic() + timeout_s
        document = {"do": order, "deadline_s": timeout_s, **details}
        line = json.dumps(document).encode() + b"\n"
        for link in self._links:
            try:
                link.sendall(line)
            except OSError:
                self._fail("a rank has hung up")
        return [self._receive(link, deadline_s)["ok"] for link in self._links]

    def close(self) -> None:
        """Asks the ranks to end, and ends those that do not."""
        for link in self._links:
            with contextlib.closing(link), contextlib.suppress(OSError):
                link.sendall(b'{"do": "end"}\n')
        self._listener.close()
        deadline_s = time.monotonic() + (self.end_s if self._links else 0.0)
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline_s - time.monotonic()))
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self._processes:
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, number)
            for process in self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(END_S)
        self._links = []
        self._log.close()
        Path(self.door).unlink(missing_ok=True)

    def _accept(self, deadline_s: float) -> socket.socket:
        while True:
            self._listener.settimeout(POLL_S)
            try:
                link, _ = self._listener.accept()
                return link
            except TimeoutError:
                self._look_after(deadline_s, "did not start")

    def _receive(self, link: socket.socket, deadline_s: float) -> dict[str, Any]:
        """Reads one answer; there is never more than one on its way."""
        link.settimeout(POLL_S)
        received = bytearray()
        while not received.endswith(b"\n"):
            try:
                piece = link.recv(1 << 16)
            except TimeoutError:
                self._look_after(deadline_s, "did not answer")
                continue
            except OSError:
                piece = b""
            if not piece or len(received) > ANSWER_BYTES_MAX:
                self._fail("; ".join(self._last_words()) or "a rank ended without an answer")
            received += piece
        answer: dict[str, Any] = json.loads(received)
        if "error" in answer:
            self._fail("; ".join(self._last_words([str(answer["error"])])))
        return answer

    def _look_after(self, deadline_s: float, what: str) -> None:
        """Called while waiting: raises if the time is over or a process has failed.

        One dead rank leaves the others waiting inside their library, so waiting on is in vain.
        """
        for process in self._processes:
            if process.poll() not in (None, 0):
                words = self._last_words()
                self._fail(
                    "; ".join(words) or f"a process ended with exit code {process.returncode}"
                )
        if time.monotonic() > deadline_s:
            self._fail(f"the ranks {what} in time")

    def _last_words(self, heard: Sequence[str] = ()) -> list[str]:
        """Returns what ranks say went wrong: the first to be read need not be the first to fail."""
        words = list(heard)
        deadline_s = time.monotonic() + LAST_WORDS_S
        with selectors.DefaultSelector() as selector:
            for link in self._links:
                link.setblocking(False)
                selector.register(link, selectors.EVENT_READ)
            while selector.get_map() and (rest_s := deadline_s - time.monotonic()) > 0:
                for key, _ in selector.select(rest_s):
                    selector.unregister(key.fileobj)
                    assert isinstance(key.fileobj, socket.socket)
                    with contextlib.suppress(OSError, ValueError):
                        answer = json.loads(key.fileobj.recv(1 << 16))
                        words += [str(answer["error"])] if "error" in answer else []
        return list(dict.fromkeys(words))

    def _fail(self, text: str) -> None:
        self._log.flush()
        tail = self._log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
        raise RankFailed(f"{self.name}: {text}" + (f"\n{tail}" if tail else ""))


def start_pccl(group: RankGroup, address: str, lanes: int, start_s: float = START_S) -> None:
    """Starts pccl's peers; the coordinator at `address` is the caller's."""
    tail = [str(group.world), group.door, address, str(lanes)]
    group.start(
        [
            [sys.executable, "-m", "pccl.bench.peer", str(rank), *tail]
            for rank in range(group.world)
        ],
        start_s=start_s,
    )
