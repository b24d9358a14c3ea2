"""Starts peers as processes, reads what they tell, and ends them whatever happened."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pccl.membership.service import CoordinatorThread
from tests.integration.peer_wire import asked_for_ucx, went_by_ucx

PROGRAM = Path(__file__).with_name("peer_program.py")
WAIT_S = 60.0
TCP_WILL_DO = "PEER_MAY_STAY_ON_TCP"  # in the environment: also where UCX was asked for


class PeerProcess:
    """One running peer_program; `next_fact` returns what it tells, line by line."""

    def __init__(
        self,
        address: str,
        program: str,
        index: int,
        count: int,
        file: Path = PROGRAM,
        within: Sequence[str] = (),
    ) -> None:
        """`within`: words before the command, which say where to run it."""
        self.over_ucx = asked_for_ucx()
        command = [sys.executable, str(file), address, program, str(index), str(count)]
        self.process = subprocess.Popen(
            [*within, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._facts: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_facts, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_facts(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._facts.put(json.loads(line))
        self._facts.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self._errors.extend(self.process.stderr)

    def next_fact(self) -> dict[str, Any]:
        try:
            fact = self._facts.get(timeout=WAIT_S)
        except queue.Empty:
            raise AssertionError(f"peer {self.process.pid} says nothing\n{self.errors()}") from None
        assert fact is not None, f"peer {self.process.pid} ended\n{self.errors()}"
        return fact

    def fact_within(self, timeout_s: float) -> dict[str, Any]:
        """Returns the next fact; an empty one if there is none in time, or no more."""
        with contextlib.suppress(queue.Empty):
            return self._facts.get(timeout=timeout_s) or {}
        return {}

    def fact_with(self, key: str) -> dict[str, Any]:
        """Returns the next fact that has `key`; a failure told meanwhile is an error."""
        while True:
            fact = self.next_fact()
            if key in fact:
                return fact
            assert "failure" not in fact, f"{fact}\n{self.errors()}"

    def rest(self) -> list[dict[str, Any]]:
        """Returns all that it has still told, up to its end."""
        facts = []
        while (fact := self._facts.get(timeout=WAIT_S)) is not None:
            facts.append(fact)
        return facts

    def until(self, key: str, wanted: Any) -> dict[str, Any]:
        """Returns the first fact whose `key` is (or counts) `wanted`."""
        while True:
            fact = self.fact_with(key)
            value = fact[key]
            if (len(value) if isinstance(value, list) else value) == wanted:
                return fact

    def ask_to_end(self) -> None:
        self.say("end")

    def say(self, line: str) -> None:
        """Writes a line to its standard input, if it is still there to read it."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Waits for the process; returns its exit code."""
        code = self.process.wait(WAIT_S)
        for reader in self._readers:
            reader.join(WAIT_S)
        return code

    def stayed_on_tcp(self) -> bool:
        """Tells whether it came to its end without UCX although that was asked for."""
        ended = self.process.returncode == 0
        return self.over_ucx and ended and not went_by_ucx("".join(self._errors))

    def errors(self) -> str:
        return "".join(self._errors)[-4000:]

    def discard(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(WAIT_S)
        for reader in self._readers:
            reader.join(WAIT_S)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Run:
    """A coordinator in this process, and peers as processes of their own."""

    def __init__(self, file: Path = PROGRAM) -> None:
        self.coordinator = CoordinatorThread()
        self.file = file
        self.peers: list[PeerProcess] = []

    def __enter__(self) -> Self:
        self.coordinator.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for peer in self.peers:
            peer.discard()
        self.coordinator.stop()
        if kind is None and len(self.peers) > 1 and TCP_WILL_DO not in os.environ:
            assert not any(peer.stayed_on_tcp() for peer in self.peers)

    @property
    def address(self) -> str:
        return self.coordinator.address

    def start(self, program: str, count: int) -> list[PeerProcess]:
        """Starts `count` peers that wait for one another."""
        started = [
            PeerProcess(self.address, program, index, count, self.file) for index in range(count)
        ]
        self.peers += started
        return started

    def start_one(self, program: str, index: int, count: int) -> PeerProcess:
        """Starts one of `count` peers that wait for one another."""
        peer = PeerProcess(self.address, program, index, count, self.file)
        self.peers.append(peer)
        return peer

    def start_newcomer(self, program: str) -> PeerProcess:
        peer = PeerProcess(self.address, program, index=1, count=1, file=self.file)
        self.peers.append(peer)
        return peer
