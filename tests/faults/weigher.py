"""A publisher of weights, or a receiver, beside a run that trains: `weigher.py publisher|receiver
COORDINATOR [PUBLISHER]`, with its ticket in PCCL_TICKET.

The publisher makes a new revision a few times a second, the receiver pulls each as it comes and
compares every bit.  Both tell what they do as JSON lines, until their standard input ends.  `Pair`
is the other end: both as processes, and what they have told.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2]))  # behind an installed pccl

import pccl
import pccl.weights

SIZE = 1 << 16
KEPT_BYTES_MAX = 4 << 20  # of updates: what they grow beyond that, they have lost sight of
PAUSE_S = 0.2  # between two revisions
PULL_S = 60.0
START_S = 60.0
ANSWER_S = 30.0


def state_of(revision: int) -> dict[str, Any]:
    """Everything changes with each revision, most of it by one."""
    table = np.arange(SIZE, dtype=np.int64) // 7 + revision
    return {"table": table, "revision": np.array(revision)}


def empty_state() -> dict[str, Any]:
    return {name: np.zeros_like(tensor) for name, tensor in state_of(0).items()}


def is_exact(state: dict[str, Any], revision: int) -> bool:
    return all(np.array_equal(state[name], tensor) for name, tensor in state_of(revision).items())


# ---- the program


def tell(**fact: Any) -> None:
    print(json.dumps({"at": time.monotonic(), **fact}), flush=True)


def publish(coordinator: str, over: threading.Event) -> None:
    with pccl.weights.Publisher(
        coordinator=coordinator, history_bytes_max=KEPT_BYTES_MAX
    ) as publisher:
        tell(address=publisher.address, peer=publisher._channels.own_id.hex())
        while not over.wait(PAUSE_S):
            revision = publisher.revision + 1
            publisher.publish(state_of(revision), revision)
            tell(published=revision, receivers=publisher.receivers)


def receive(coordinator: str, address: str, over: threading.Event) -> None:
    into = empty_state()
    with pccl.weights.Receiver(
        address, coordinator=coordinator, keep_bytes_max=KEPT_BYTES_MAX
    ) as receiver:
        door = f"127.0.0.1:{receiver._fetcher._port}"
        tell(address=door, peer=receiver._channels.own_id.hex())
        while not over.is_set():
            done = receiver.pull(into, timeout_s=PULL_S, at_least=(receiver.revision or 0) + 1)
            tell(pulled=done.revision, exact=is_exact(into, done.revision))


def main(role: str, coordinator: str, address: str = "") -> None:
    over = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    if role == "publisher":
        publish(coordinator, over)
    else:
        receive(coordinator, address, over)


# ---- who has it run


class Weigher:
    """One of the two, and what it has told."""

    def __init__(self, ticket_environment: dict[str, str], *arguments: str) -> None:
        self.facts: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [sys.executable, __file__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ticket_environment,
        )
        self._reader = threading.Thread(target=self._hear, daemon=True)
        self._reader.start()

    def _hear(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.facts.append(json.loads(line))

    def first(self, key: str) -> str:
        """Waits for what it tells of this once."""
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s and self.process.poll() is None:
            for fact in list(self.facts):
                if key in fact:
                    return str(fact[key])
            time.sleep(0.01)
        raise TimeoutError(f"{self.process.args!r} tells nothing of its {key}")

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(ANSWER_S)
        self._reader.join(ANSWER_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Pair:
    """Both, beside a run."""

    def __init__(self, coordinator: str, publisher: Weigher, receiver: Weigher) -> None:
        self._coordinator = coordinator
        self._wrong: list[str] = []
        self.publisher, self.receiver = publisher, receiver
        self.addresses = [one.first("address") for one in (publisher, receiver)]
        self.peers = [one.first("peer") for one in (publisher, receiver)]

    def pids(self) -> dict[str, int]:
        both = {"publisher": self.publisher, "receiver": self.receiver}
        return {name: one.process.pid for name, one in both.items()}

    def pauses_s(self, began_s: float, ended_s: float) -> list[float]:
        """How long nothing was pulled, each time, from one moment to another."""
        moments = [f["at"] for f in list(self.receiver.facts) if "pulled" in f]
        within = [at for at in moments if began_s < at < ended_s]
        return [b - a for a, b in zip([began_s, *within], [*within, ended_s], strict=True)]

    def fetch_once(self, ticket: str) -> float:
        """Returns how long a receiver that comes now takes to hold a revision, every bit of it."""
        began_s, into = time.monotonic(), empty_state()
        with pccl.weights.Receiver(
            self.addresses[0], coordinator=self._coordinator, ticket=ticket
        ) as receiver:
            self.peers.append(receiver._channels.own_id.hex())
            done = receiver.pull(into, timeout_s=PULL_S)
        if not is_exact(into, done.revision):
            self._wrong.append(f"a new receiver has wrong bits of revision {done.revision}")
        return time.monotonic() - began_s

    def wrong(self) -> list[str]:
        """What is not as it should be, in words."""
        facts = self.receiver.facts
        found = [*self._wrong, *(f"wrong bits: {f}" for f in facts if not f.get("exact", True))]
        for name, one in (("publisher", self.publisher), ("receiver", self.receiver)):
            if one.process.poll() is not None:
                found.append(f"the {name} has ended: {one.facts[-1:]}")
        if self.publisher.facts[-1].get("receivers") != 1:
            found.append(f"the publisher serves not one receiver: {self.publisher.facts[-1]}")
        return found


@contextmanager
def pair(coordinator: str, environment: dict[str, str]) -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        publisher = Weigher(environment, "publisher", coordinator)
        stack.callback(publisher.close)
        receiver = Weigher(environment, "receiver", coordinator, publisher.first("address"))
        stack.callback(receiver.close)
        found = Pair(coordinator, publisher, receiver)
        receiver.first("pulled")
        yield found


if __name__ == "__main__":
    main(*sys.argv[1:])
