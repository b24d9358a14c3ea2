"""Measures weight sync: `python benchmarks/weight_sync.py`.

*Bytes.* A state of bf16 elements of which 1 % (`--changed`) get new bits, in two kinds: weights
drawn from a normal distribution whose changed elements move by a few per cent, as training moves
them, and noise, in which the new bits are anything; the latter is the worst case.  The result is
compared bit for bit.

*Speed.* What `publish` does to find and code the difference, and what `pull` does to prove and
apply it, in bytes of state per second, beside the rate at which memory is read (a sum of 64-bit
words), measured in turn.

*Receivers.* Time until N receivers, processes of their own, hold an anchor, when the trainer's
uplink takes `--uplink` bytes a second (a proxy in front of it) and receivers reach each other at
loopback speed: passed on with a fan-out of 2, and sent N times by the trainer (fan-out 64).

Exit codes: 0 all bars met; 1 one was missed or a bit was wrong; 2 asked for wrongly.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import click
import numpy as np

from benchmarks.machine import describe, load
from pccl.bench.arithmetic import parse_bytes, show_bytes
from pccl.weights import Publisher, Receiver
from pccl.weights.applying import apply_updates, digest_of
from pccl.weights.layout import Tensor, tensor_digest, tensors_of
from pccl.weights.update import encode_anchor, encode_delta, parse
from tests.integration.slow_link import SlowLink

RATIO_BAR = 60.0
SENT_BAR = 2.5  # times an update, with fan-out 2
WAIT_S = 120.0
TENSOR_ELEMENTS = 8 << 20  # a matrix of 4096 by 2048
State = dict[str, Any]


def bf16(values: Any) -> Any:
    """Rounds to the nearest bf16, as bits."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def make_state(byte_count: int, dice: np.random.Generator, kind: str) -> State:
    elements = byte_count // 2
    sizes = [TENSOR_ELEMENTS] * (elements // TENSOR_ELEMENTS)
    sizes += [elements % TENSOR_ELEMENTS] if elements % TENSOR_ELEMENTS else []
    if kind == "noise":
        return {f"layer.{n}": dice.integers(0, 1 << 16, s, np.uint16) for n, s in enumerate(sizes)}
    return {
        f"layer.{n}": bf16(dice.standard_normal(s, np.float32) * 0.02) for n, s in enumerate(sizes)
    }


def change(state: State, share: float, dice: np.random.Generator, kind: str) -> State:
    """Returns the state with that share of each tensor's elements changed, all of them really."""
    changed = {}
    for name, old in state.items():
        new = old.copy()
        at = dice.choice(old.size, int(old.size * share), replace=False)
        if kind == "noise":
            new[at] ^= dice.integers(1, 1 << 16, at.size, np.uint16)
        else:
            new[at] = old[at] + dice.integers(1, 4, at.size).astype(np.uint16)
        changed[name] = new
    return changed


# ---- bytes and speed


def seconds(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def read_all(tensors: tuple[Tensor, ...]) -> int:
    return sum(int(t.memory[: t.memory.size // 8 * 8].view(np.uint64).sum()) for t in tensors)


def measure_codec(byte_count: int, share: float, repeats: int, kind: str) -> bool:
    dice = np.random.default_rng(1)
    old = make_state(byte_count, dice, kind)
    new = change(old, share, dice, kind)
    before, after = tensors_of(old), tensors_of(new)
    size = sum(t.memory.size for t in before)
    digests = [tensor_digest(t.memory) for t in before]
    base = digest_of(before)
    memory = [t.memory for t in before]
    anchor = encode_anchor(before, digests, 1)
    payload = encode_delta(after, memory, digests, 2, base).payload
    update = parse(memoryview(payload), state_bytes_max=size)
    target = {name: tensor.copy() for name, tensor in old.items()}
    held = tensors_of(target, writable=True)
    threads = len(os.sched_getaffinity(0))
    pool = ThreadPoolExecutor(threads)
    works: dict[str, Callable[[], object]] = {
        "read memory (sum of words)": lambda: read_all(before),
        "digest (XXH3-128)": lambda: digest_of(before),
        "find and code a delta": lambda: encode_delta(after, memory, digests, 2, base),
        f"the same, {threads} threads": lambda: encode_delta(
            after, memory, digests, 2, base, pool.map
        ),
        "code an anchor": lambda: encode_anchor(before, digests, 1),
        "prove and apply a delta": lambda: apply_updates(held, [update]),
        "copy memory": lambda: [t.memory.copy() for t in before],
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    exact = True
    for _ in range(repeats):
        for name, work in works.items():
            if "apply" in name:
                for key, tensor in old.items():
                    target[key][:] = tensor
            times[name].append(seconds(work))
        exact = exact and all((target[name] == new[name]).all() for name in new)
    ratio = size / len(payload)
    print(
        f"{kind}: {show_bytes(size)} of bf16, {100 * share:g} % changed: delta {len(payload)} "
        f"bytes, {ratio:.1f} x less than the state ({8 * len(payload) / (size / 2 * share):.1f} "
        f"bits per changed element), anchor {len(anchor)} bytes, exact: {exact}"
    )
    read_s = statistics.median(times["read memory (sum of words)"])
    for name, measured in times.items():
        median_s = statistics.median(measured)
        print(
            f"  {name:<28} {median_s / size * 1e9:6.3f} s/GB  {size / median_s / 1e9:6.2f} GB/s"
            f"  {read_s / median_s:5.2f} x the read rate"
        )
    return exact and (ratio >= RATIO_BAR or share > 0.01)


# ---- receivers


def run_receiver(address: str, byte_count: int, pipe: Connection) -> None:
    state = {"w": np.zeros(byte_count, np.uint8)}
    with Receiver(address) as receiver:
        pipe.send("started")
        while (at_least := pipe.recv()) is not None:
            receiver.pull(state, at_least=at_least, timeout_s=WAIT_S)
            pipe.send((time.monotonic(), digest_of(tensors_of(state))))


def measure_receivers(
    byte_count: int, count: int, fan_out: int, uplink: float
) -> tuple[float, float]:
    """Returns the seconds until all hold an anchor, and what the trainer sent, in anchors."""
    state = {"w": np.random.default_rng(2).integers(0, 256, byte_count).astype(np.uint8)}
    spawn = multiprocessing.get_context("spawn")
    with Publisher(fan_out=fan_out) as publisher, SlowLink(publisher.address, uplink) as link:
        pipes, processes = [], []
        for _ in range(count):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(
                target=run_receiver, args=(link.address, byte_count, theirs), daemon=True
            )
            process.start()
            pipes.append(ours)
            processes.append(process)
        try:
            for pipe in pipes:
                pipe.recv()
                pipe.send(1)
            time.sleep(0.5)  # all are connected and wait
            began_s = time.monotonic()
            done = publisher.publish(state)
            ends = []
            for pipe in pipes:
                if not pipe.poll(WAIT_S):
                    raise SystemExit("a receiver did not end in time")
                at_s, digest = pipe.recv()
                ends.append(at_s)
                if digest != done.digest:
                    raise SystemExit("a receiver holds other bits")
            return max(ends) - began_s, publisher.sent_bytes / done.anchor_bytes
        finally:
            for process in processes:
                process.kill()


@click.command()
@click.option("--bytes", "size", default="512MiB", show_default=True, help="Of the state.")
@click.option("--changed", type=click.FloatRange(0, 1), default=0.01, show_default=True)
@click.option("--repeats", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--receivers", type=click.IntRange(0, 32), default=6, show_default=True)
@click.option("--anchor", default="32MiB", show_default=True, help="Given to the receivers.")
@click.option("--uplink", default="25MB", show_default=True, help="Of the trainer, per second.")
def main(size: str, changed: float, repeats: int, receivers: int, anchor: str, uplink: str) -> None:
    """Prints what a delta costs, and how long N receivers take; fails if a bar is missed."""
    try:
        byte_count, anchor_bytes = parse_bytes(size), parse_bytes(anchor)
        uplink_bytes = float(parse_bytes(uplink))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    about: dict[str, Any] = describe()
    machine = about["machine"]
    print(f"{about['command']}")
    print(
        f"{machine['cpus']} x {machine['cpu']}, kernel {machine['kernel']}, commit "
        f"{about['commit']}, load {load():.1f}"
    )
    good = all([measure_codec(byte_count, changed, repeats, kind) for kind in ("normal", "noise")])
    if receivers:
        passed_on_s, sent = measure_receivers(anchor_bytes, receivers, 2, uplink_bytes)
        each_s, sent_each = measure_receivers(anchor_bytes, receivers, 64, uplink_bytes)
        print(
            f"{receivers} receivers, anchor of {show_bytes(anchor_bytes)}, uplink "
            f"{uplink_bytes / 1e6:g} MB/s: passed on {passed_on_s:.2f} s (the trainer sent "
            f"{sent:.2f} anchors), sent to each {each_s:.2f} s ({sent_each:.2f}): "
            f"{each_s / passed_on_s:.2f} x"
        )
        good = good and sent <= SENT_BAR
    print(f"load {load():.1f} at the end")
    if not good:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
