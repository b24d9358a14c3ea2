"""Hosts with slow uplinks, and processes on them: network namespaces of this machine, as root.

    with slow_links(world=4, rate_mbit=50.0) as hosts:
        peers = hosts.start("benchmarks.overlap", range(4))
        peers.run({"case": "sync"})         # one JSON line to each, one JSON line from each

A host's uplink is a token bucket; what it receives is not limited.  What ends the block ends the
processes too.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PORT = 48148
WAIT_S = 120.0


class Peers:
    """Processes that answer each JSON line with one; `prefixes` start a command on each host."""

    def __init__(self, module: str, words: Sequence[str], prefixes: Sequence[list[str]]) -> None:
        """Starts `python -m module --peer WORDS... RANK WORLD` on each."""
        self._killed: set[int] = set()
        self._processes = [
            subprocess.Popen(
                [*prefix, sys.executable, "-m", module, "--peer", *words, str(rank),
                 str(len(prefixes))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            )
            for rank, prefix in enumerate(prefixes)
        ]  # fmt: skip

    def run(self, job: dict[str, Any]) -> list[Any]:
        """Returns the answers, by the order of the hosts."""
        self.ask(job)
        return self.answers()

    def ask(self, job: dict[str, Any]) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()

    def answers(self) -> list[Any]:
        """Returns what they say to `ask`; None for those that `kill` has ended."""
        answers = []
        for rank, process in enumerate(self._processes):
            assert process.stdout is not None
            line = "null" if rank in self._killed else process.stdout.readline()
            if not line:
                raise SystemExit("a peer has ended: see above")
            answers.append(json.loads(line))
        return answers

    def kill(self, rank: int) -> None:
        """Ends one at once, as the kernel does.  There is nothing to be asked of all after that."""
        self._killed.add(rank)
        self._processes[rank].kill()

    def end(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass(slots=True)
class Hosts:
    """What `slow_links` has made."""

    coordinator: Any  # of tests.churn.hosts.Host
    hosts: Sequence[Any]
    _ending: contextlib.ExitStack
    _ports: Iterator[int] = field(default_factory=lambda: iter(range(PORT, PORT + 100)))

    def start(self, module: str, on: Sequence[int], *words: str) -> Peers:
        """Starts a coordinator, and a process of `module` on each of these hosts."""
        address = f"{self.coordinator.address}:{next(self._ports)}"
        command = [sys.executable, "-m", "pccl", "coordinator", "--listen", address, "--insecure"]
        coordinator = subprocess.Popen(
            self.coordinator.command(command), stdout=subprocess.DEVNULL, cwd=ROOT
        )
        self._ending.callback(coordinator.wait, WAIT_S)
        self._ending.callback(coordinator.terminate)
        peers = Peers(module, [*words, address], [self.hosts[i].command([]) for i in on])
        self._ending.callback(peers.end)
        return peers


@contextlib.contextmanager
def slow_links(world: int, rate_mbit: float) -> Iterator[Hosts]:
    """Makes the hosts.  Ends the program if that is not possible here."""
    from tests.churn.namespaces import Laboratory, why_not
    from tests.churn.rules import LinkQuality

    if reason := why_not():
        raise SystemExit(f"{Path(sys.argv[0]).name}: {reason}")
    quality = LinkQuality(rate_mbit=rate_mbit)
    with (
        tempfile.TemporaryDirectory() as folder,
        Laboratory("veth", world, Path(folder), quality=quality) as lab,
        contextlib.ExitStack() as ending,
    ):
        yield Hosts(lab.places.coordinator, lab.places.hosts, ending)
