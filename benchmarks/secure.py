"""Measures what encryption costs: `python benchmarks/secure.py`.

All-reduce of float32, in place, between engines on loopback, over TCP lanes in the clear and over
the lanes of a secured run; no payload goes through memory in either.  The processes of both kinds
are started and stay, and take turns, A B A B ..., so that a machine's good and bad seconds fall on
both alike.  An iteration's time is that of the rank that took longest; the figure is the median
over all turns.  Every result is compared element by element, after each turn.

With --sealings it compares ways of sealing lanes instead: TLS records, and pieces of several
sizes, by `build/cpp/bench_sealing` (`./dev build` makes it): two engines in one process, by turns.

PCCL_OPENSSL_LIB chooses the OpenSSL; its version and path are printed, because the bar depends on
it: 0.4 of plain, and 0.65 from 3.2 on.

Exit codes: 0 measured, at or above the bar; 1 below it, or a peer failed; 2 asked for wrongly.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import click
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.machine import describe, load
from pccl import _native
from pccl.bench.arithmetic import parse_bytes, show_bytes
from pccl.transport import engine_tls
from pccl.transport.authority import Authority, key_pem, make_ca, pem
from pccl.transport.engine import Engine
from pccl.transport.engine_api import RUNS, STEP_COMMITTED, MemberTuple
from pccl.transport.identity import Role, TlsMaterial, peer_id_of_raw

RUN_ID = b"benchmark secure"
F32, SUM, AUTOMATIC = 1, 0, 0
DISCARD_PORT = 9  # no coordinator is needed while nobody fails
WAIT_S = 60.0
LIFE_S = 3600.0
WARM_UP = 2
SEALINGS = Path(__file__).parents[1] / "build" / "cpp" / "bench_sealing"
PERIOD = 251  # of the pattern that is summed: prime, so that no misplaced slice fits


@dataclass(frozen=True)
class Who:
    """A peer's name, what proves it in a secured run, and whether its lanes go through UCX."""

    peer_id: bytes
    tls: TlsMaterial | None
    ucx: bool = False


def run_peer(rank: int, world: int, count: int, who: Who, pipe: Connection) -> None:
    """Obeys the pipe: the members once, then numbers of iterations; answers with their seconds."""
    engine = Engine(
        peer_id=who.peer_id,
        listen_host="127.0.0.1",
        shared_memory=False,
        ucx=who.ucx,
        tls=who.tls,
    )
    engine.admit(
        run_id=RUN_ID,
        incarnation=rank + 1,
        secret=_secret(rank),
        generation=1,
        host="127.0.0.1",
        port=DISCARD_PORT,
        heartbeat_s=1.0,
        lease_s=60.0,
    )
    pipe.send(engine.port)
    engine.install(1, 1, pipe.recv(), RUNS, 0, [])
    base = (np.arange(count) % PERIOD).astype(np.float32)
    total = base * world + np.float32(world * (world - 1) // 2)
    data = np.empty(count, np.float32)
    while iterations := pipe.recv():
        seconds = []
        for _ in range(iterations):
            np.add(base, np.float32(rank), out=data)
            seconds.append(_sum(engine, data))
        pipe.send((seconds, bool(np.array_equal(data, total))))
    engine.close()


def _sum(engine: Engine, data: np.ndarray) -> float:
    begun = engine.begin_step("step", WAIT_S)
    began_s = time.perf_counter()
    at = data.ctypes.data
    engine.post_all_reduce(begun.step, 0, at, at, data.size, F32, SUM, 1.0, False, AUTOMATIC, True)
    if not engine.wait_step(begun.step, WAIT_S):
        raise TimeoutError(f"no all-reduce within {WAIT_S:g} s")
    seconds = time.perf_counter() - began_s
    assert engine.step_result(begun.step).state == STEP_COMMITTED
    engine.release_step(begun.step)
    return seconds


def _secret(rank: int) -> bytes:
    return bytes([rank + 101]) * 16


@dataclass(frozen=True)
class Group:
    """The peers of one kind, sleeping in a read between their turns."""

    processes: list[BaseProcess]
    pipes: list[Connection]

    def turn(self, iterations: int) -> list[float]:
        """Returns the seconds of each iteration on its slowest rank."""
        for pipe in self.pipes:
            pipe.send(iterations)
        answers = [pipe.recv() for pipe in self.pipes]
        if not all(exact for _, exact in answers):
            raise click.ClickException("a sum is wrong")
        return [max(ranks) for ranks in zip(*(seconds for seconds, _ in answers), strict=True)]

    def end(self) -> None:
        for process in self.processes:
            process.kill()


def start(world: int, count: int, whos: list[Who]) -> Group:
    spawn = multiprocessing.get_context("spawn")
    group = Group([], [])
    for rank in range(world):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(
            target=run_peer, args=(rank, world, count, whos[rank], theirs), daemon=True
        )
        process.start()
        theirs.close()
        group.processes.append(process)
        group.pipes.append(ours)
    members: list[MemberTuple] = [
        (who.peer_id, rank + 1, _secret(rank), "127.0.0.1", pipe.recv(), 1, 0, 0)
        for rank, (who, pipe) in enumerate(zip(whos, group.pipes, strict=True))
    ]
    for pipe in group.pipes:
        pipe.send(members)
    return group


def plain_peers(world: int) -> list[Who]:
    return [Who(bytes([rank + 1]) * 16, None) for rank in range(world)]


def secured_peers(world: int) -> list[Who]:
    now_s = time.time()
    ca_key = Ed25519PrivateKey.generate()
    ca_der = make_ca(ca_key, RUN_ID, bytes(15) + b"\x01", now_s)
    authority = Authority(RUN_ID, ca_der, ca_key)
    whos = []
    for rank in range(world):
        key = Ed25519PrivateKey.generate()
        serial = bytes(15) + bytes([rank + 2])
        leaf = authority.issue_peer(key.public_key(), Role.TRAINER, serial, now_s, LIFE_S)
        name = peer_id_of_raw(key.public_key().public_bytes_raw())
        whos.append(Who(name, TlsMaterial(pem(leaf), key_pem(key), pem(ca_der))))
    return whos


def measure(
    ours: list[Who], theirs: list[Who], count: int, turns: int, iterations: int
) -> tuple[float, float]:
    """Returns the median seconds of an all-reduce among peers of either kind."""
    groups = []
    try:
        for whos in (ours, theirs):
            groups.append(start(len(whos), count, whos))
        found: list[list[float]] = [[], []]
        for group in groups:
            group.turn(WARM_UP)
        for _ in range(turns):
            for seconds, group in zip(found, groups, strict=True):
                seconds += group.turn(1 + iterations)[1:]  # the first brings the ranks together
        return statistics.median(found[0]), statistics.median(found[1])
    finally:
        for group in groups:
            group.end()


def compare_sealings(size: int, turns: int) -> None:
    """Prints what an all-reduce costs by each way of sealing its lanes."""
    if not SEALINGS.exists():
        raise click.ClickException(f"no {SEALINGS}: ./dev build makes it")
    asked = {"PCCL_BENCH_MIB": str(max(1, size >> 20)), "PCCL_BENCH_ROUNDS": str(turns)}
    done = subprocess.run([SEALINGS], env={**os.environ, **asked}, capture_output=True, text=True)
    if done.returncode != 0:
        raise click.ClickException(done.stderr.strip() or "a sum is wrong")
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            said = json.loads(line)
            print(
                f"{said['way']:<18} {said['ms']:6.1f} ms, fastest {said['best_ms']:6.1f} ms, "
                f"{said['of_plain']:.2f} of plain ({said['best_of_plain']:.2f} of the fastest), "
                f"processors {said['cpu_ms']:6.1f} ms"
            )
    print(f"load {load():.1f} after")


def bar_of(version: str) -> float:
    """Returns the least speed of encrypted lanes, as a share of plain ones, with that OpenSSL."""
    return 0.65 if engine_tls.is_recent(version) else 0.4


@click.command()
@click.option("--ranks", default="2,4", show_default=True, help="Numbers of peers, with commas.")
@click.option("--bytes", "size", default="64MiB", show_default=True, help="Of the all-reduce.")
@click.option("--turns", type=click.IntRange(1, 1000), default=8, show_default=True)
@click.option("--iterations", type=click.IntRange(1, 1000), default=4, show_default=True)
@click.option("--sealings", is_flag=True, help="Compare ways of sealing lanes; no bar.")
def main(ranks: str, size: str, turns: int, iterations: int, sealings: bool) -> None:
    """Prints medians of plain and encrypted lanes and their ratio; fails below the bar."""
    try:
        worlds = [int(world) for world in ranks.split(",")]
        count = parse_bytes(size) // 4
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    version, path, problem = _native.tls_library()
    if problem:
        raise click.ClickException(problem)
    library = engine_tls.library(_native)
    assert library is not None
    wide = "wide (VAES)" if library.wide_aes else "one block at a time (AES-NI)"
    about = describe()
    bar = bar_of(version)
    machine = about["machine"]
    print(about["command"])
    print(
        f"{machine['cpus']} x {machine['cpu']}, kernel {machine['kernel']}, commit "
        f"{about['commit']}, load {load():.1f} before"
    )
    print(f"{version} ({path}), AES {wide}")
    print(f"all-reduce of {show_bytes(4 * count)}, float32, exact everywhere")
    if sealings:
        compare_sealings(4 * count, turns)
        return
    missed = False
    for world in worlds:
        plain_s, secured_s = measure(
            plain_peers(world), secured_peers(world), count, turns, iterations
        )
        ratio = plain_s / secured_s
        missed = missed or ratio < bar
        print(
            f"{world} ranks: plain {1e3 * plain_s:.1f} ms, encrypted {1e3 * secured_s:.1f} ms, "
            f"{ratio:.2f} of plain (bar: {bar:g}), load {load():.1f} after",
            flush=True,
        )
    if missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
