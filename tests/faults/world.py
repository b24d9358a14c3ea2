"""A small world to break: a coordinator process, peer processes, and spares that wait for work.

Invariant: every wait has a deadline; when it passes, the error says what every process was doing.
A process that ends unasked, or prints anything, is an error too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from pccl.membership.service_ca import CaFolder, init_ca
from pccl.transport.identity import Role
from tests.faults.history import History

PROGRAM = Path(__file__).with_name("peer.py")
POLL_S = 0.005
START_S = 60.0  # imports on a loaded machine
DUMP_S = 0.5  # for a process to print its stacks
LAST_RECORDS = 3
TICKET_USES = 100_000  # every process is a peer of its own
TICKET_LIFE_S = 86_400.0


class Trouble(AssertionError):
    """Something happened that must not, or did not happen in time; the text has the states."""


class Peer:
    """One peer process, its history, and what became of it."""

    def __init__(self, name: str, folder: Path, arguments: list[str], ticket: str = "") -> None:
        self.name = name
        self.history = History(folder / f"{name}.jsonl")
        self.output = folder / f"{name}.out"
        self.doomed = False  # its end is wanted
        self.stopped = False
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    str(PROGRAM),
                    arguments[0],
                    str(self.history.path),
                    *arguments[1:],
                ],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(ticket),
            )

    def order(self) -> None:
        """The first order starts it, the second ends the run."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()

    def send(self, number: signal.Signals) -> float:
        """Sends a signal; returns the moment."""
        at = time.monotonic()
        self.process.send_signal(number)
        if number is signal.SIGKILL:
            self.doomed = True
        self.stopped = number is signal.SIGSTOP
        return at

    def discard(self) -> None:
        self.doomed = True
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(START_S)
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()


class World:
    """Use as a context manager.  `peers` are those that were started and not discarded.

    A secured world has a CA of its own in `folder`, and its peers have nothing but a ticket.
    """

    def __init__(
        self,
        folder: Path,
        *,
        size: int,
        min_world: int,
        count: int,
        secured: bool = False,
        transport: str = "tcp",
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.ca: CaFolder | None = init_ca(folder / "ca") if secured else None
        self.ticket = ""
        self.size = size
        self.min_world = min_world
        self.count = count
        self.transport = transport
        self.address = ""
        self.peers: list[Peer] = []
        self.all_peers: list[Peer] = []
        self.spares: list[Peer] = []
        self._coordinator: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start_coordinator()
            self.prepare(self.size)
            self.start(self.size)
            self.wait_whole()
        except BaseException:
            self._discard_all()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._discard_all()

    # ---- processes

    def _start_coordinator(self) -> None:
        command = [sys.executable, "-m", "pccl", "coordinator", "--listen", "127.0.0.1:0"]
        if self.ca is not None:
            command += ["--ca", str(self.ca.path)]
        output = self.folder / "coordinator.out"
        with output.open("wb") as file, (self.folder / "coordinator.err").open("wb") as errors:
            self._coordinator = subprocess.Popen(
                [*command, "-v"], stdin=subprocess.DEVNULL, stdout=file, stderr=errors
            )

        def address() -> str:
            said = output.read_text()
            return said.partition(" listening on ")[2].split()[0].rstrip(";") if ";" in said else ""

        self.wait_until("the coordinator listens", lambda: bool(address()), START_S)
        self.address = address()
        if self.ca is not None:
            self.ticket = self.new_ticket(Role.TRAINER)

    def new_ticket(self, role: Role, expires_in_s: float = TICKET_LIFE_S) -> str:
        """A ticket of a secured world, as good as the peers' own."""
        assert self.ca is not None
        return self.ca.make_ticket(
            role, uses=TICKET_USES, expires_in_s=expires_in_s, endpoints=(self.address,)
        ).text

    @property
    def coordinator_pid(self) -> int:
        assert self._coordinator is not None
        return self._coordinator.pid

    def prepare(self, count: int = 1) -> None:
        """Starts processes that import all they need and wait to be told to connect."""
        for _ in range(count):
            name = f"peer{len(self.all_peers):03}"
            arguments = [self.address, str(self.min_world), str(self.count), self.transport]
            spare = Peer(name, self.folder, arguments, self.ticket)
            self.spares.append(spare)
            self.all_peers.append(spare)

    def start(self, count: int = 1) -> list[Peer]:
        """Tells spares to connect."""
        self.wait_until(
            "the spares are ready",
            lambda: sum(peer.history.ready for peer in self.spares) >= count,
            START_S,
        )
        ready = [peer for peer in self.spares if peer.history.ready][:count]
        for peer in ready:
            self.spares.remove(peer)
            self.peers.append(peer)
            peer.order()
        return ready

    def remove(self, peer: Peer) -> None:
        """Takes an ended process off the list; its history stays."""
        peer.discard()
        self.peers.remove(peer)

    def end(self, timeout_s: float) -> None:
        """All peers end after the same step, and with exit code 0."""
        for peer in self.peers:
            peer.doomed = True
            peer.order()
        self.wait_until(
            "all peers end",
            lambda: all(peer.process.poll() is not None for peer in self.peers),
            timeout_s,
        )
        for peer in self.peers:
            if peer.process.returncode != 0:
                raise Trouble(self._story(f"{peer.name} ended badly"))

    def printed(self) -> list[str]:
        """What processes printed, which must be nothing."""
        texts = {peer.name: peer.output.read_text() for peer in self.all_peers}
        return [f"{name} printed: {text[:500]}" for name, text in texts.items() if text]

    def _discard_all(self) -> None:
        for peer in self.all_peers:
            peer.discard()
        if self._coordinator is not None:
            self._coordinator.terminate()
            try:
                self._coordinator.wait(START_S)
            except subprocess.TimeoutExpired:
                self._coordinator.kill()
                self._coordinator.wait(START_S)
        if self.ca is not None:
            self.ca.close()

    # ---- waiting

    def wait_until(self, what: str, condition: Callable[[], bool], timeout_s: float) -> float:
        """Waits for a condition on the histories; returns the seconds it took.

        Raises:
            Trouble: it did not hold in time, or a process ended that should not.
        """
        begin = time.monotonic()
        while True:
            for peer in (*self.peers, *self.spares):
                peer.history.poll()
            took_s = time.monotonic() - begin
            if condition():
                return took_s
            self._require_alive(what)
            if took_s > timeout_s:
                raise Trouble(self._story(f"after {timeout_s:g} s it is still not so that {what}"))
            time.sleep(POLL_S)

    def wait_whole(self, timeout_s: float = START_S) -> None:
        """Waits until the last commit of every peer has all peers in it, and no others."""

        def whole() -> bool:
            names = {peer.history.peer for peer in self.peers}
            last = [peer.history.commits[-1:] for peer in self.peers]
            return all(one and set(one[0].contributors) == names for one in last)

        self.wait_until(f"all {len(self.peers)} peers commit together", whole, timeout_s)

    def _require_alive(self, what: str) -> None:
        for peer in (*self.peers, *self.spares):
            if not peer.doomed and peer.process.poll() is not None:
                peer.history.poll()
                raise Trouble(self._story(f"while waiting until {what}, {peer.name} ended"))
        coordinator = self._coordinator
        if coordinator is not None and coordinator.poll() is not None:
            raise Trouble(self._story(f"while waiting until {what}, the coordinator ended"))

    # ---- what to say when it goes wrong

    def _story(self, reason: str) -> str:
        living = [p for p in (*self.peers, *self.spares) if p.process.poll() is None]
        status = self._status()
        for peer in living:
            if not peer.stopped:
                peer.process.send_signal(signal.SIGUSR1)
        time.sleep(DUMP_S)
        parts = [reason, f"coordinator: {status}"]
        parts += [_tail(self.folder / "coordinator.err", 40)]
        for peer in self.peers:
            parts.append(_state(peer))
        return "\n".join(parts)

    def _status(self) -> str:
        if not self.address:
            return "it has not said where it listens"
        try:
            done = self.status()
        except subprocess.TimeoutExpired:
            return "no answer to pccl status within 10 s"
        return done.stdout + done.stderr

    def status(self, timeout_s: float = 10.0) -> subprocess.CompletedProcess[str]:
        """What `pccl status --json` says.  Raises subprocess.TimeoutExpired."""
        return subprocess.run(
            [sys.executable, "-m", "pccl", "status", self.address, "--json"],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=environment(self.ticket),
        )


def environment(ticket: str) -> dict[str, str]:
    """This process's, with this ticket and no other."""
    kept = {key: value for key, value in os.environ.items() if key != "PCCL_TICKET"}
    return {**kept, "PCCL_TICKET": ticket} if ticket else kept


def _state(peer: Peer) -> str:
    history = peer.history
    history.poll()
    code = peer.process.poll()
    life = _threads(peer.process.pid) if code is None else f"exit code {code}"
    last = "\n  ".join(map(str, history.commits[-LAST_RECORDS:]))
    return (
        f"--- {peer.name} pid {peer.process.pid} peer {history.peer[:8]}: {life}\n"
        f"  end: {history.end} {history.end_text}\n  {last}\n{_tail(peer.output, 60)}"
    )


def _threads(pid: int) -> str:
    lines = []
    for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
        with contextlib.suppress(OSError):
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            name, where = (task / "comm").read_text().strip(), (task / "wchan").read_text()
            lines.append(f"{name} {state} {where}")
    return "; ".join(lines)


def _tail(path: Path, lines: int) -> str:
    if not path.exists():
        return ""
    return "\n".join("  | " + line for line in path.read_text().splitlines()[-lines:])


def peer_names(peers: Iterable[Peer]) -> list[str]:
    """The ids of peers, as contributors are written down."""
    return [peer.history.peer for peer in peers]
