"""A coordinator as a process that a story may kill, stop and start again, on one address."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.peer_processes import PeerProcess

WAIT_S = 60.0


def free_address() -> str:
    """An address that nobody listens on now, and that the same story may use again and again."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{bound.getsockname()[1]}"


class CoordinatorProcess:
    """`pccl coordinator`; `line` waits for what it prints."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pccl", "coordinator", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._guard = threading.Timer(WAIT_S, self.process.kill)
        self._guard.start()

    def line(self, words: str) -> str:
        """Returns the next line with these words."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if words in line:
                return line
        assert self.process.stderr is not None
        raise AssertionError(f"it ended without saying {words!r}: {self.process.stderr.read()}")

    def ready(self) -> CoordinatorProcess:
        self.line("coordinator listening on")
        return self

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> tuple[int, str]:
        """Waits for the end; returns the exit code and what it said on its standard error."""
        _, errors = self.process.communicate(timeout=WAIT_S)
        self._guard.cancel()
        return self.process.returncode, errors

    def discard(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.end()


@contextmanager
def looping_peers(address: str, count: int) -> Iterator[list[PeerProcess]]:
    """Peers that reduce in a loop until one of them is asked to end."""
    peers = [PeerProcess(address, "loop", index, count) for index in range(count)]
    try:
        for peer in peers:
            peer.until("contributors", count)
        yield peers
    finally:
        for peer in peers:
            peer.discard()


def journal_option(folder: Path) -> tuple[str, str]:
    return ("--journal", str(folder / "run.db"))
