"""Measures how long a fence takes while a large all-reduce runs: `python benchmarks/fence.py`.

Peers are processes with engines of their own on loopback; this process plays the coordinator: it
sends FLUSH at a random moment of the operation and waits for each REPORT.  So the figure is what a
coordinator sees: the control thread wakes, gets the turn from whoever moves the data, freezes the
epoch, answers.  After that the step is retried under the next epoch and the next sample begins.
Only fences that found the operation under way on every peer count, and the next wait begins when
all peers have installed: a FLUSH that comes while inputs are given back waits for that copy.

Exit codes: 0 measured and p99 within the bar; 1 the bar was missed or a peer failed; 2 asked for
wrongly.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import click
import numpy as np

from benchmarks.machine import describe, load
from pccl.bench.arithmetic import parse_bytes, show_bytes
from pccl.transport import native_frames as nf
from pccl.transport.channel import Channel
from pccl.transport.engine import Engine
from pccl.transport.engine_api import RUNS, STEP_COMMITTED, DecisionTuple, MemberTuple

RUN_ID = b"benchmark: fence"
GENERATION = 1
F32, SUM, AUTOMATIC = 1, 0, 0
COMMIT, RETRY = 1, 2
WAIT_S = 30.0
WARM_UP_STEPS = 3


# ---- a peer


def run_peer(rank: int, count: int, pipe: Connection) -> None:
    """Sums `count` float32 in place, step after step, and installs what the pipe brings."""
    engine = Engine(peer_id=_peer_id(rank), listen_host="127.0.0.1")
    pipe.send(engine.port)
    data = np.ones(count, np.float32)
    ended = threading.Event()
    threading.Thread(target=_obey, args=(engine, rank, pipe, ended), daemon=True).start()
    while not ended.is_set():
        try:
            begun = engine.begin_step("step", WAIT_S)
        except Exception:
            break  # the benchmark is over
        address = data.ctypes.data
        engine.post_all_reduce(
            begun.step, 0, address, address, count, F32, SUM, 1.0, False, AUTOMATIC, True
        )
        while not ended.is_set() and not engine.wait_step(begun.step, 0.5):
            pass
        if not ended.is_set():
            assert engine.step_result(begun.step).state == STEP_COMMITTED
            engine.release_step(begun.step)
        data.fill(1.0)
    os._exit(0)  # nothing here is worth a goodbye


def _obey(engine: Engine, rank: int, pipe: Connection, ended: threading.Event) -> None:
    while True:
        try:
            command, *rest = pipe.recv()
        except EOFError:
            command = "end"
        if command == "admit":
            engine.admit(
                run_id=RUN_ID,
                incarnation=rank + 1,
                secret=_secret(rank),
                generation=GENERATION,
                host="127.0.0.1",
                port=rest[0],
                heartbeat_s=0.25,
                lease_s=3.0,
            )
        elif command == "install":
            epoch, members, decisions = rest
            engine.install(GENERATION, epoch, members, RUNS, 0, decisions)
            pipe.send(epoch)
        else:
            ended.set()
            os._exit(0)


def _peer_id(rank: int) -> bytes:
    return bytes([rank + 1]) * 16


def _secret(rank: int) -> bytes:
    return bytes([rank + 101]) * 16


# ---- the coordinator


@dataclass
class Seat:
    """A peer as the coordinator sees it."""

    process: BaseProcess
    pipe: Connection
    port: int
    channel: Channel | None = None
    reported: asyncio.Future[tuple[float, nf.Report]] | None = None
    watermark: int = 0


@dataclass
class Flushed:
    """One fence: seconds to each REPORT, and whether every peer was in the middle of the step."""

    seconds: list[float]
    under_way: bool


@dataclass
class Coordinator:
    seats: list[Seat]
    epoch: int = 0
    attached: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.add(asyncio.get_running_loop().create_task(self._serve(Channel(reader, writer))))

    async def _serve(self, channel: Channel) -> None:
        hello = nf.decode(await channel.receive(WAIT_S) or b"")
        assert isinstance(hello, nf.NativeHello)
        seat = self.seats[hello.incarnation - 1]
        channel.send(nf.encode(nf.Welcome(GENERATION)))
        seat.channel = channel
        if all(other.channel is not None for other in self.seats):
            self.attached.set()
        while (body := await channel.receive()) is not None:
            now_s = time.perf_counter()
            frame = nf.decode(body)
            if isinstance(frame, nf.Heartbeat):
                seat.watermark = frame.watermark
                channel.send(nf.encode(nf.Pong(GENERATION, self.epoch)))
            elif isinstance(frame, nf.Report) and seat.reported and not seat.reported.done():
                seat.reported.set_result((now_s, frame))

    async def install(self, decisions: list[DecisionTuple]) -> None:
        self.epoch += 1
        members: list[MemberTuple] = [
            (_peer_id(rank), rank + 1, _secret(rank), "127.0.0.1", seat.port, 1, 0, 0)
            for rank, seat in enumerate(self.seats)
        ]
        for seat in self.seats:
            seat.pipe.send(("install", self.epoch, members, decisions))
        for seat in self.seats:
            while not seat.pipe.poll():
                await asyncio.sleep(0.001)
            assert seat.pipe.recv() == self.epoch

    async def flush(self) -> Flushed:
        loop = asyncio.get_running_loop()
        body = nf.encode(nf.Flush(GENERATION, self.epoch + 1))
        began_s = []
        for seat in self.seats:
            seat.reported = loop.create_future()
            assert seat.channel is not None
            began_s.append(time.perf_counter())
            seat.channel.send(body)
        async with asyncio.timeout(WAIT_S):
            answers = [await seat.reported for seat in self.seats if seat.reported is not None]
        reports = [report for _, report in answers]
        await self.install(_decide(reports))
        seconds = [at_s - from_s for (at_s, _), from_s in zip(answers, began_s, strict=True)]
        return Flushed(seconds, all(_under_way(report) for report in reports))


def _under_way(report: nf.Report) -> bool:
    return any(s.sealed and not s.complete and not s.waiting for s in report.open)


def _decide(reports: list[nf.Report]) -> list[DecisionTuple]:
    """The one recovery rule, with every member alive."""
    decisions: list[DecisionTuple] = []
    for step in sorted({opened.step for report in reports for opened in report.open}):
        known = any(step < r.watermark or step in r.committed for r in reports)
        holders = [s for r in reports for s in r.open if s.step == step and s.complete]
        complete = len(holders) == len(reports)
        decisions.append((step, COMMIT if known or complete else RETRY, 0, ""))
    return decisions


# ---- the measurement


async def measure(world: int, count: int, samples: int, seed: int) -> list[float]:
    """Returns the seconds of each fence on each peer; `samples` fences found the step under way."""
    dice = random.Random(seed)
    spawn = multiprocessing.get_context("spawn")
    seats = []
    for rank in range(world):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=run_peer, args=(rank, count, theirs), daemon=True)
        process.start()
        seats.append(Seat(process, ours, 0))
    try:
        for seat in seats:
            seat.port = seat.pipe.recv()
        coordinator = Coordinator(seats)
        server = await asyncio.start_server(coordinator.accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        for seat in seats:
            seat.pipe.send(("admit", port))
        async with asyncio.timeout(WAIT_S):
            await coordinator.attached.wait()
        await coordinator.install([])
        began_s = time.perf_counter()
        async with asyncio.timeout(4 * WAIT_S):
            while seats[0].watermark < WARM_UP_STEPS:
                await asyncio.sleep(0.02)
        step_s = (time.perf_counter() - began_s) / seats[0].watermark
        found: list[float] = []
        counted = 0
        while counted < samples:
            await asyncio.sleep(dice.uniform(0.1, 1.5) * step_s)
            flushed = await coordinator.flush()
            if flushed.under_way:
                counted += 1
                found += flushed.seconds
        server.close()
        for task in coordinator.tasks:
            task.cancel()
        await asyncio.gather(*coordinator.tasks, return_exceptions=True)
        return found
    finally:
        for seat in seats:
            seat.process.kill()


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@click.command()
@click.option("--world", type=click.IntRange(2, 16), default=2, show_default=True)
@click.option("--bytes", "size", default="64MiB", show_default=True, help="Of the all-reduce.")
@click.option("--samples", type=click.IntRange(10, 100_000), default=300, show_default=True)
@click.option("--bar-ms", type=float, default=10.0, show_default=True, help="For the p99.")
@click.option("--seed", type=int, default=1, show_default=True)
def main(world: int, size: str, samples: int, bar_ms: float, seed: int) -> None:
    """Prints p50, p99 and the longest fence; fails if p99 is above the bar."""
    try:
        count = parse_bytes(size) // 4
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--bytes") from None
    about: dict[str, Any] = describe()
    before = load()
    ordered = sorted(asyncio.run(measure(world, count, samples, seed)))
    machine = about["machine"]
    p99_ms = 1e3 * _at(ordered, 0.99)
    print(f"{about['command']}")
    print(
        f"{machine['cpus']} x {machine['cpu']}, kernel {machine['kernel']}, commit "
        f"{about['commit']}, load {before:.1f} before and {load():.1f} after"
    )
    print(
        f"fence with one all-reduce of {show_bytes(4 * count)} in flight, {world} peers: "
        f"{len(ordered)} reports of {samples} fences, p50 {1e3 * _at(ordered, 0.5):.2f} ms, "
        f"p99 {p99_ms:.2f} ms, longest {1e3 * ordered[-1]:.2f} ms (bar: p99 <= {bar_ms:g} ms)"
    )
    if p99_ms > bar_ms:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
