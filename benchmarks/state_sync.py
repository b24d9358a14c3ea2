"""Measures shared state: `python benchmarks/state_sync.py [--bytes 1GiB] [--rounds 3]`.

    hashing   a pass of the hash tree over the state, against reading the same memory
    transfer  a state to one member that holds another, against one-way loopback in the same run
    change    1 % of the pieces changed: the bytes that come
    paced     members' steps while a newcomer fetches, against while it does not,
              beside the same among the times in which it does not

Several donors, and the death of one, are measured on slow links by `state_donors.py`.

Peers are processes of their own on loopback.  Every figure is the median of the rounds, in which
what is compared takes turns.  Exit codes: 0 measured, and within the bars; 1 a bar was missed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import click
import numpy as np

import pccl
from benchmarks.machine import describe, load
from benchmarks.state_newcomer import paced
from pccl.bench.arithmetic import median, parse_bytes, show_bytes
from pccl.membership.service import CoordinatorThread

WAIT_S = 120.0
CHUNK = 1 << 20
BARS = {"hashing": 0.8, "transfer": 0.6, "change": 1.5, "paced": 10.0}
P99_PERCENT = 25.0
PACED_STEPS = 2000
PACED_BYTES = 64 << 20


# ---- a peer


def run_peer(address: str, index: int, world: int, size: int, pipe: Connection) -> None:
    """Obeys: each order is (name, argument), each answer its figures."""
    content = np.arange(size // 8, dtype=np.uint64)
    state = pccl.SharedState({"state": content}, pace=1.0)
    with pccl.connect(address, min_world=1, step_timeout_s=WAIT_S) as comm:
        comm.wait_for(world)
        comm.sync(state)
        pipe.send(comm.rank)
        while True:
            name, argument = pipe.recv()
            if name == "end":
                break
            if name == "spoil":  # a part of the pieces, evenly spread
                every = max(1, round(1 / argument))
                for leaf in range(0, size // CHUNK, every):
                    content[leaf * CHUNK // 8] ^= np.uint64(1)
                pipe.send(-(-(size // CHUNK) // every))
                continue
            began_s = time.perf_counter()
            result = comm.sync()
            took_s = time.perf_counter() - began_s
            pipe.send((took_s, result.byte_count, len(result.lost)))
        assert (content == np.arange(size // 8, dtype=np.uint64)).all()


def loopback_sink(port: int, size: int) -> None:
    buffer = bytearray(CHUNK)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        left = size
        while left:
            left -= sock.recv_into(buffer, min(CHUNK, left))
        sock.sendall(b"!")


def loopback_rate(size: int) -> float:
    """Bytes a second from one process to another, by plain sockets."""
    context = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sink = context.Process(target=loopback_sink, args=(listener.getsockname()[1], size))
        sink.start()
        sock, _ = listener.accept()
        content = np.ones(size, np.uint8).data
        began_s = time.perf_counter()
        with sock:
            for at in range(0, size, CHUNK):
                sock.sendall(content[at : at + CHUNK])
            sock.recv(1)
        took_s = time.perf_counter() - began_s
        sink.join(WAIT_S)
    return size / took_s


class Peers:
    def __init__(self, count: int, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.coordinator = CoordinatorThread()
        self.coordinator.start()
        self.pipes: list[Connection] = []
        self.processes: list[SpawnProcess] = []
        for index in range(count):
            ours, theirs = context.Pipe()
            arguments = (self.coordinator.address, index, count, size, theirs)
            process = context.Process(target=run_peer, args=arguments)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)
        by_rank = sorted(range(count), key=lambda i: int(_answer(self.pipes[i])))
        self.pipes = [self.pipes[i] for i in by_rank]
        self.processes = [self.processes[i] for i in by_rank]

    def spoil(self, rank: int, part: float) -> None:
        self.pipes[rank].send(("spoil", part))
        _answer(self.pipes[rank])

    def sync(self) -> list[Any]:
        for pipe in self.pipes:
            pipe.send(("sync", None))
        return [_answer(pipe) for pipe in self.pipes]

    def end(self) -> None:
        for pipe in self.pipes:
            try:
                pipe.send(("end", None))
            except (BrokenPipeError, OSError):
                continue
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()
        self.coordinator.stop()


def _answer(pipe: Connection) -> Any:
    if not pipe.poll(WAIT_S):
        raise SystemExit("a peer does not answer")
    return pipe.recv()


# ---- the figures


def hashing(size: int, rounds: int) -> dict[str, float]:
    content = np.ones(size // 8, np.uint64)
    state = pccl.SharedState({"state": content})
    reads, hashes = [], []
    for _ in range(rounds + 1):
        began_s = time.perf_counter()
        np.bitwise_or.reduce(content)
        read_s = time.perf_counter() - began_s
        began_s = time.perf_counter()
        state.root()
        reads.append(size / read_s)
        hashes.append(size / (time.perf_counter() - began_s))
    read, rate = median(reads[1:]), median(hashes[1:])
    return {"read_gb_s": read / 1e9, "hash_gb_s": rate / 1e9, "ratio": rate / read}


def transfer(size: int, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    peers = Peers(2, size)
    loops, rates, shares = [], [], []
    try:
        for _ in range(rounds):
            loops.append(loopback_rate(size))
            peers.spoil(1, 1.0)
            took_s, byte_count, _ = peers.sync()[1]
            assert byte_count == size
            rates.append(size / took_s)
            peers.spoil(1, 0.01)
            _, byte_count, _ = peers.sync()[1]
            shares.append(100 * byte_count / size)
    finally:
        peers.end()
    loop, rate = median(loops), median(rates)
    moved = {"loopback_gb_s": loop / 1e9, "sync_gb_s": rate / 1e9, "ratio": rate / loop}
    return moved, {"percent_of_bytes": median(shares)}


FIGURES = ("hashing", "transfer", "paced")


@click.command()
@click.option("--bytes", "size_text", default="1GiB", show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(FIGURES))
@click.option("--json", "file", type=click.Path(dir_okay=False), help="Write figures there.")
def main(size_text: str, rounds: int, only: tuple[str, ...], file: str | None) -> None:
    """Prints the figures of shared state beside their bars."""
    size = parse_bytes(size_text) // CHUNK * CHUNK
    wanted = only or FIGURES
    found: dict[str, Any] = {"bytes": size, **describe()}
    click.echo(f"{show_bytes(size)}, {rounds} rounds, load {load():.1f}, {os.cpu_count()} CPUs")
    missed = False
    if "hashing" in wanted:
        found["hashing"] = hashing(size, rounds)
        missed |= _show("hashing", found["hashing"], found["hashing"]["ratio"] >= BARS["hashing"])
    if "transfer" in wanted:
        moved, change = found["transfer"], found["change"] = transfer(size, rounds)
        missed |= _show("transfer", moved, moved["ratio"] >= BARS["transfer"])
        missed |= _show("change", change, change["percent_of_bytes"] <= BARS["change"])
    if "paced" in wanted:
        found["paced"] = steps = paced(PACED_BYTES, PACED_STEPS)
        holds = steps["median_percent"] <= BARS["paced"] and steps["p99_percent"] <= P99_PERCENT
        missed |= _show("paced", steps, holds)
    if file is not None:
        with open(file, "w", encoding="utf-8") as out:
            json.dump(found, out, indent=1)
    sys.exit(missed)


def _show(name: str, figures: dict[str, float], holds: bool) -> bool:
    text = ", ".join(f"{key} {value:.3g}" for key, value in figures.items())
    click.echo(f"{name:10} {text}   bar {BARS[name]:g}: {'held' if holds else 'MISSED'}")
    return not holds


if __name__ == "__main__":
    main()
