"""Measures how long a newcomer's lanes to a view take: `python benchmarks/joining.py` (root).

A view of engines in one network namespace, a newcomer in another, and the link emulator of
tests/churn between them.  All are told of the plan at the same moment, as by VIEW_PLAN; the figure
is the time until the last of them, at either end, says that all its lanes are up.  Plain and
encrypted newcomers take turns.  The bar, for encrypted lanes: 2 round trips and 100 ms.

Processor time is that of the whole process at each end, for one newcomer, and is printed apart:
here both ends share the machine's processors, with hosts of their own they would not.

Exit codes: 0 every median within the bar; 1 not; 2 asked for wrongly, or not root.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import select
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click

from benchmarks.machine import describe, load
from benchmarks.secure import RUN_ID, Who, plain_peers, secured_peers
from pccl import _native
from pccl.transport.engine import Engine
from pccl.transport.engine_api import RUNS, MemberTuple
from pccl.transport.engine_events import LinksOpened
from tests.churn.hosts import Namespace
from tests.churn.namespaces import Laboratory, why_not
from tests.churn.rules import LinkQuality

DISCARD_PORT = 9  # no coordinator is needed while nobody fails
WAIT_S = 60.0
BAR_S, BAR_ROUND_TRIPS = 0.1, 2
CLONE_NEWNET = 0x40000000
SETTLE_S = 0.3  # between two newcomers: what the last one left is closed


@dataclass(frozen=True)
class Taken:
    """What one end saw of a plan: when it was told, when its lanes were up, and what that cost."""

    told_s: float
    up_s: float
    cpu_s: float


@dataclass(frozen=True)
class Seat:
    """An engine's place in the view."""

    who: Who
    incarnation: int

    @property
    def secret(self) -> bytes:
        return self.incarnation.to_bytes(16, "big")

    def engine(self, host: str, lanes: int) -> Engine:
        engine = Engine(
            peer_id=self.who.peer_id,
            listen_host=host,
            lanes=lanes,
            shared_memory=False,
            tls=self.who.tls,
        )
        engine.admit(
            run_id=RUN_ID,
            incarnation=self.incarnation,
            secret=self.secret,
            generation=1,
            host="127.0.0.1",
            port=DISCARD_PORT,
            heartbeat_s=1.0,
            lease_s=60.0,
        )
        return engine

    def member(self, host: str, port: int) -> MemberTuple:
        return (self.who.peer_id, self.incarnation, self.secret, host, port, 1, 0, 0)


def enter(namespace: str) -> None:
    """Moves this process into a network namespace, before it has any thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    finally:
        os.close(descriptor)


def prepare(engines: Sequence[Engine], epoch: int, members: list[MemberTuple]) -> Taken:
    """Tells engines of a plan; returns once all of them have their lanes."""
    for engine in engines:
        engine.drain_events()
    cpu_s, told_s = time.process_time(), time.monotonic()
    for engine in engines:
        engine.prepare_view(1, epoch, members)
    poll = select.poll()
    waiting = {engine.event_fd: engine for engine in engines}
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    while waiting:
        ready = poll.poll(WAIT_S * 1000)
        if not ready:
            raise TimeoutError(f"{len(waiting)} engines have no lanes after {WAIT_S:g} s")
        for descriptor, _ in ready:
            if LinksOpened(epoch) in waiting[descriptor].drain_events():
                poll.unregister(descriptor)
                del waiting[descriptor]
    return Taken(told_s, time.monotonic(), time.process_time() - cpu_s)


def be_the_view(namespace: str, host: str, lanes: int, seats: list[Seat], pipe: Connection) -> None:
    """Keeps the members; for each newcomer it is told (epoch, its seat's member) answers Taken."""
    enter(namespace)
    engines = [seat.engine(host, lanes) for seat in seats]
    members = [seat.member(host, e.port) for seat, e in zip(seats, engines, strict=True)]
    for engine in engines:
        engine.install(1, 1, members, RUNS, 0, [])
    end_s = time.monotonic() + WAIT_S
    while any(e.stats()["lanes"] < (len(engines) - 1) * lanes for e in engines):
        if time.monotonic() > end_s:
            raise TimeoutError("the view has no lanes")
        time.sleep(0.05)
    pipe.send(members)
    while (order := pipe.recv()) is not None:
        epoch, newcomer = order
        pipe.send(prepare(engines, epoch, [*members, newcomer]))
        pipe.recv()  # the newcomer is gone
        for engine in engines:
            engine.cancel_plan(1, epoch)
        pipe.send("forgotten")
    for engine in engines:
        engine.close()


def be_newcomers(namespace: str, host: str, lanes: int, pipe: Connection) -> None:
    """For each seat it is told: makes an engine, tells its port, answers the plan with Taken."""
    enter(namespace)
    while (seat := pipe.recv()) is not None:
        engine = seat.engine(host, lanes)
        pipe.send(seat.member(host, engine.port))
        epoch, members = pipe.recv()
        pipe.send(prepare([engine], epoch, members))
        pipe.recv()
        engine.close()
        pipe.send("gone")


class Pair:
    """A view and its newcomers, of one kind."""

    def __init__(self, places: Places, lanes: int, whos: list[Who]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._newcomers = iter(whos[places.size :])
        seats = [Seat(who, number + 1) for number, who in enumerate(whos[: places.size])]
        self._view, theirs = spawn.Pipe()
        self._other, others = spawn.Pipe()
        self._processes = [
            spawn.Process(
                target=be_the_view, args=(*places.view, lanes, seats, theirs), daemon=True
            ),
            spawn.Process(target=be_newcomers, args=(*places.newcomer, lanes, others), daemon=True),
        ]
        for process in self._processes:
            process.start()
        self._members: list[MemberTuple] = self._view.recv()
        self._epoch = 1

    def join(self) -> tuple[float, float, float]:
        """Returns seconds from the plan to all lanes, and processor seconds of both ends."""
        self._epoch += 1
        seat = Seat(next(self._newcomers), 1000 + self._epoch)
        self._other.send(seat)
        newcomer = self._other.recv()
        time.sleep(SETTLE_S)
        self._other.send((self._epoch, [*self._members, newcomer]))
        self._view.send((self._epoch, newcomer))
        took: list[Taken] = [self._other.recv(), self._view.recv()]
        for pipe in (self._other, self._view):
            pipe.send("over")
            pipe.recv()
        first_s, last_s = min(one.told_s for one in took), max(one.up_s for one in took)
        return last_s - first_s, took[0].cpu_s, took[1].cpu_s

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


@dataclass(frozen=True)
class Places:
    size: int
    view: tuple[str, str]  # namespace and address
    newcomer: tuple[str, str]


def measure(rtt_s: float, size: int, lanes: int, turns: int) -> dict[str, list[Any]]:
    """Returns what each newcomer took, plain and encrypted."""
    quality = LinkQuality(delay_ms=rtt_s * 1e3 / 2, queue_kib=16384)
    with (
        tempfile.TemporaryDirectory() as folder,
        Laboratory("emulator", 2, Path(folder), quality=quality) as laboratory,
    ):
        first, second = laboratory.places.hosts
        assert isinstance(first, Namespace) and isinstance(second, Namespace)
        places = Places(size, (first.namespace, first.address), (second.namespace, second.address))
        count = size + turns + 1
        pairs: dict[str, Pair] = {}
        try:
            for kind, whos in (("plain", plain_peers(count)), ("encrypted", secured_peers(count))):
                pairs[kind] = Pair(places, lanes, whos)
            for pair in pairs.values():
                pair.join()  # code and caches
            taken: dict[str, list[Any]] = {kind: [] for kind in pairs}
            for _ in range(turns):
                for kind, pair in pairs.items():
                    taken[kind].append(pair.join())
            return taken
        finally:
            for pair in pairs.values():
                pair.end()


def line_of(kind: str, taken: list[tuple[float, float, float]]) -> str:
    took_s, newcomer_s, view_s = ([one[i] for one in taken] for i in range(3))
    return (
        f"{kind} {1e3 * statistics.median(took_s):.1f} ms (max {1e3 * max(took_s):.1f}), "
        f"processor {1e3 * statistics.median(newcomer_s):.1f} ms at the newcomer, "
        f"{1e3 * statistics.median(view_s):.1f} ms in the view"
    )


@click.command()
@click.option("--rtts", default="0,50", show_default=True, help="Milliseconds, with commas.")
@click.option("--members", default=16, show_default=True, help="Of the view.")
@click.option("--lanes", default="1,4", show_default=True, help="Per pair, with commas.")
@click.option("--turns", type=click.IntRange(1, 100), default=10, show_default=True)
def main(rtts: str, members: int, lanes: str, turns: int) -> None:
    """Prints plain and encrypted medians per round trip and lanes; fails beyond the bar."""
    if (reason := why_not()) is not None:
        raise click.UsageError(reason)
    version, path, problem = _native.tls_library()
    if problem:
        raise click.ClickException(problem)
    about = describe()
    machine = about["machine"]
    print(about["command"])
    print(
        f"{machine['cpus']} x {machine['cpu']}, kernel {machine['kernel']}, commit "
        f"{about['commit']}, {version} ({path}), load {load():.1f} before"
    )
    missed = False
    for rtt_ms in map(float, rtts.split(",")):
        for count in map(int, lanes.split(",")):
            taken = measure(rtt_ms / 1e3, members, count, turns)
            bar_s = BAR_ROUND_TRIPS * rtt_ms / 1e3 + BAR_S
            median_s = statistics.median(one[0] for one in taken["encrypted"])
            missed = missed or median_s > bar_s
            print(
                f"round trip {rtt_ms:g} ms, {count} lanes to {members} members "
                f"(bar {1e3 * bar_s:g} ms, load {load():.1f}):"
            )
            for kind, found in taken.items():
                print(f"  {line_of(kind, found)}", flush=True)
    if missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
