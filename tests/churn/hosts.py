"""Where processes run and how they are reached: namespaces of this machine, itself, or ssh.

Everything the harness does to a host goes through `Host`, so one code path drives all kinds: a host
is a prefix that makes a command run there, a way to send signals, and what can be done to it
(`filters`: nft; `freezer`: its processes can be frozen at once).

A process that the harness starts ends with it: by a death signal on this machine, over ssh by the
end of its standard input.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

COMMAND_S = 20.0  # nft, kill and the like; ssh included
DIE_TOGETHER = ("setpriv", "--pdeathsig", "KILL")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(slots=True, kw_only=True)
class Host:
    """This machine itself (transport "local"); the base of the other kinds."""

    name: str
    address: str = "127.0.0.1"
    python: str = sys.executable
    folder: str = str(ROOT)
    filters: bool = False  # nft can be told what to drop
    cgroup: Path | None = None  # of a v2 freezer, made by the harness

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Returns the command that runs `arguments` there, as the direct child of the harness."""
        return [*DIE_TOGETHER, *arguments]

    def spawn(self, arguments: Sequence[str], output: IO[bytes], errors: IO[bytes]) -> Child:
        """Starts a process there whose output and complaints go to files here."""
        process = subprocess.Popen(
            self.command(arguments),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=errors,
            cwd=self._cwd(),
        )
        return Child(self, process)

    def run(self, arguments: Sequence[str], text: str = "") -> str:
        """Runs a short command there and returns what it prints.

        Raises:
            OSError: it cannot be run, fails or takes too long; the text has its complaint.
        """
        try:
            done = subprocess.run(
                self.command(arguments), input=text, capture_output=True, text=True,
                timeout=COMMAND_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise OSError(f"{self.name}: no end of {arguments[0]} in {COMMAND_S:g} s") from error
        if done.returncode != 0:
            raise OSError(f"{self.name}: {shlex.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def signal(self, pid: int, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def filter(self, rules: str) -> None:
        self.run(["nft", "-f", "-"], rules)

    @property
    def freezer(self) -> bool:
        return self.cgroup is not None

    def freeze(self, pids: Iterable[int]) -> None:
        """Stops all processes of the host at once, as a paused virtual machine would be."""
        assert self.cgroup is not None
        self.cgroup.mkdir(exist_ok=True)
        for pid in pids:
            with suppress(ProcessLookupError):
                (self.cgroup / "cgroup.procs").write_text(f"{pid}\n")
        (self.cgroup / "cgroup.freeze").write_text("1\n")

    def thaw(self) -> None:
        assert self.cgroup is not None
        (self.cgroup / "cgroup.freeze").write_text("0\n")

    def _cwd(self) -> str | None:
        return self.folder


@dataclass(slots=True, kw_only=True)
class Namespace(Host):
    """A network namespace of this machine."""

    namespace: str
    filters: bool = True

    def command(self, arguments: Sequence[str]) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *DIE_TOGETHER, *arguments]


@dataclass(slots=True, kw_only=True)
class Remote(Host):
    """A machine behind ssh; its checkout lies in `folder`, with an environment of its own."""

    target: str
    sudo: bool = False
    options: list[str] = field(default_factory=list)

    def command(self, arguments: Sequence[str]) -> list[str]:
        there = f"cd {shlex.quote(self.folder)} && exec {shlex.join(arguments)}"
        return ["ssh", "-T", "-o", "BatchMode=yes", *self.options, self.target, there]

    def signal(self, pid: int, number: signal.Signals) -> None:
        with suppress(OSError):  # it is gone already
            self.run(["kill", f"-{number.name.removeprefix('SIG')}", str(pid)])

    def filter(self, rules: str) -> None:
        self.run(["sudo", "-n", "nft", "-f", "-"] if self.sudo else ["nft", "-f", "-"], rules)

    def _cwd(self) -> str | None:
        return None


class Child:
    """A process that was started on a host.  Its pid there is known once it has told."""

    def __init__(self, host: Host, process: subprocess.Popen[bytes]) -> None:
        self.host = host
        self.process = process
        self.pid = process.pid if not isinstance(host, Remote) else 0

    def order(self, words: str) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError, ValueError):
            self.process.stdin.write(f"{words}\n".encode())
            self.process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        if self.pid:
            self.host.signal(self.pid, number)
        else:
            self.process.send_signal(number)

    @property
    def code(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self.process.poll()

    def discard(self, timeout_s: float = COMMAND_S) -> None:
        """Ends it for certain."""
        if self.code is None:
            self.signal(signal.SIGKILL)
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:  # ssh itself hangs
            self.process.kill()
            self.process.wait(timeout_s)


@dataclass(frozen=True, slots=True)
class Places:
    """The hosts of a run: the coordinator's, and those of peers."""

    coordinator: Host
    hosts: tuple[Host, ...]
    port: int = 48148


def local_places(count: int, port: int) -> Places:
    """All on this machine, without any namespace: what needs no root."""
    hosts = tuple(Host(name=f"h{i}") for i in range(count))
    return Places(Host(name="coord"), hosts, port)


def places_of(path: Path) -> Places:
    """Reads a hosts file; docs/CHURN.md has the format.

    Raises:
        ValueError: it cannot be read or is not as described; says what is missing where.
    """
    try:
        return _places(tomllib.loads(path.read_text()))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _places(document: dict[str, Any]) -> Places:
    defaults, coordinator, entries = (document.get(k) for k in ("defaults", "coordinator", "host"))
    if not isinstance(coordinator, dict):
        raise ValueError("it lacks the table [coordinator]")
    if not isinstance(entries, list) or not entries:
        raise ValueError("it lacks the tables [[host]], one per host")
    defaults = defaults if isinstance(defaults, dict) else {}
    port = coordinator.pop("port", 48148)
    if not isinstance(port, int):
        raise ValueError(f"port in [coordinator] must be a number, not {port!r}")
    hosts = [_host({**defaults, **e}, f"[[host]] {i}") for i, e in enumerate(entries, 1)]
    first = _host({**defaults, "name": "coord", **coordinator}, "[coordinator]")
    names = [host.name for host in (first, *hosts)]
    if len(set(names)) != len(names):
        raise ValueError("names of hosts must differ")
    return Places(first, tuple(hosts), port)


def _host(entry: dict[str, Any], where: str) -> Host:
    transport = entry.pop("transport", "ssh")
    if transport not in ("ssh", "local"):
        raise ValueError(f"transport in {where} must be ssh or local, not {transport!r}")
    kind: type[Host] = Remote if transport == "ssh" else Host
    for key in ("name", "address"):
        if key not in entry:
            raise ValueError(f"{where} lacks the key {key!r}")
    known = {f.name for f in fields(kind)} - {"cgroup"}
    for key in entry:
        if key not in known:
            raise ValueError(f"{where} has the key {key!r}; it may have {', '.join(sorted(known))}")
    if kind is Host:
        return Host(**entry)
    return Remote(**{"target": entry["address"], **entry})
