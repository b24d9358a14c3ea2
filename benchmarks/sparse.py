"""Sparse contributions: how many bytes they take, and how fast they are made and averaged.

    ./dev run python benchmarks/sparse.py [--side 8192] [--repeats 7]

Bars: 140 times smaller than f32 at SparseLoCo's defaults (64 of 4096, 2 bits), 200 with coded
places; top-k at a quarter of the speed of reading memory.  Speeds are of processor time, the best
of the repeats, which take turns: on a shared machine what is interrupted is not the code's speed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.machine import describe
from pccl.sparse.blocks import Blocks
from pccl.sparse.code import SparseCode

SHAPES = [(64, 64), (768, 768), (768, 3072), (4096, 4096), (50304, 768), (65, 3), (768,)]


def sizes() -> None:
    print("shape           bytes f32      bytes sent   times smaller   bits per value")
    for shape in SHAPES:
        code = SparseCode([shape], 64, 2)
        dense, sent = 4 * sum(code.sizes), code.encoded_bytes
        bits = 8 * sent / code.tensors[0].sent
        print(f"{shape!s:14} {dense:11,} {sent:15,} {dense / sent:15.1f} {bits:16.2f}")


def speeds(side: int, repeats: int) -> None:
    matrix = np.random.default_rng(1).standard_normal((side, side), np.float32)
    flat, words = matrix.reshape(-1), matrix.reshape(-1).view(np.int64)
    code, blocks = SparseCode([matrix.shape], 64, 2), Blocks.of(matrix.shape)
    data = code.encode([flat])
    parts = code.decode(data)
    cases: dict[str, Callable[[], Any]] = {
        "read": words.max,  # as fast as numpy goes through memory
        "top_k": lambda: blocks.top(flat, 64),
        "encode": lambda: code.encode([flat]),
        "decode": lambda: code.decode(data),
        "mean of 4": lambda: code.mean([parts] * 4, [1.0] * 4),
    }
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(repeats):
        for name, run in cases.items():
            began_s = time.thread_time()
            run()
            best[name] = min(best[name], time.thread_time() - began_s)
    print(f"\nof a matrix of {side} x {side}, {matrix.nbytes / 1e6:.0f} MB:")
    for name, taken_s in best.items():
        rate = matrix.nbytes / taken_s
        print(f"{name:10} {rate / 1e9:7.2f} GB/s   {best['read'] / taken_s:5.2f} of reading")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--side", type=int, default=8192, help="of the matrix (8192)")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each case (7)")
    given = parser.parse_args()
    where = describe()
    print(f"{where['machine']['cpu']}, commit {where['commit']}, {where['command']}")
    sizes()
    speeds(given.side, given.repeats)


if __name__ == "__main__":
    main()
