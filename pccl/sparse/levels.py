"""Values on a table of a few levels.

Invariant: a table entry is the mean of what falls on it, so the sum of all values is kept up to
rounding.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pccl.sparse.blocks import Floats

SIGMAS = 6.0  # the levels span this many standard deviations
Codes = npt.NDArray[np.uint16]


def quantise(values: Floats, bits: int) -> tuple[Floats, Codes]:
    """Returns a table of 2 ** bits f32 values, and each value's place in it.

    Levels are spread over six standard deviations around the mean.  Sums are in f64: the sender
    alone computes them, so their order is its own affair.

    Source: CCLoco and templar's code, as described for SparseLoCo, arXiv:2508.15706.
    """
    levels = 1 << bits
    exact = values.astype(np.float64)
    centred = exact - exact.mean()
    sigma = float(np.linalg.norm(centred)) / math.sqrt(max(1, values.size - 1))
    scale = SIGMAS * sigma / levels
    if math.isfinite(scale) and scale > 0:
        codes = np.rint(centred / scale + levels / 2).clip(0, levels - 1).astype(np.uint16)
    else:  # all alike, or nothing to be done about it
        codes = np.zeros(values.size, np.uint16)
    sums = np.bincount(codes, weights=exact, minlength=levels)
    counts = np.bincount(codes, minlength=levels)
    return (sums / counts.clip(min=1)).astype(np.float32), codes
