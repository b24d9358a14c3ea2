"""Exact top-k against the speed of reading the array: 64 of 4096, 64 MiB of f32, one core.

    ./dev run python -m benchmarks.top_k [--rounds 15]

Passes take turns; medians.  Reading is one pass of the core's simplest kernel, which counts
elements that are not finite.  torch.topk over the same blocks, on one thread, is for comparison.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from pccl.collectives.buffers import describe
from pccl.collectives.nonfinite import NonFinite, count_not_finite
from pccl.collectives.sparse import TopK

COUNT = 1 << 24
BAR = 0.25


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = machine.describe()
    print(f"commit {report['commit']}, load {machine.load():.1f}, {report['command']}")
    top = TopK()
    passed = True
    for name, array in (
        ("normal", np.random.default_rng(1).standard_normal(COUNT).astype(np.float32)),
        ("heavy-tailed", np.random.default_rng(2).standard_t(2, COUNT).astype(np.float32)),
    ):
        places = np.empty(top.kept(COUNT), np.uint16)
        coded = np.empty(top.coded_bytes_max(COUNT), np.uint8)
        blocks = torch.from_numpy(array).view(-1, top.block)
        rates = measure(
            {
                "reading": partial(count_not_finite, describe(array), NonFinite.ALLOW),
                "top-k": partial(top.select, array, places),
                "index code": partial(top.encode, places, COUNT, coded),
                "torch.topk": partial(torch_top_k, blocks, top.k),
            },
            options.rounds,
        )
        size = top.encode(places, COUNT, coded)
        ratio = rates["top-k"] / rates["reading"]
        passed = passed and ratio >= BAR
        print(f"{name}: " + ", ".join(f"{what} {rate:.2f} GB/s" for what, rate in rates.items()))
        print(f"  top-k / reading {ratio:.2f} (at least {BAR}), "
              f"{8 * size / len(places):.3f} bits a place")  # fmt: skip
    return 0 if passed else 1


def torch_top_k(blocks: torch.Tensor, k: int) -> torch.Tensor:
    return blocks.abs().topk(k, dim=1).indices


def measure(passes: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Returns bytes of the array a second, in GB."""
    times: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(rounds + 1):
        for name, run in passes.items():
            begun_s = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - begun_s)
    return {name: 4e-9 * COUNT / statistics.median(seen) for name, seen in times.items()}


if __name__ == "__main__":
    raise SystemExit(main())
