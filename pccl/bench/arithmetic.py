"""From seconds and bytes to the figures people compare; pure.

Terms are those of nccl-tests: algbw = tensor bytes / time, what the caller sees; busbw = algbw x
2(n-1)/n, what each peer's wire carries each way.  A peer of n sends 2(n-1)/n of the tensor, all of
them together 2(n-1) tensors: that sum over the time is the aggregate wire rate.

Invariant: rates are GB/s with GB = 1e9 bytes; sizes that people write are binary (64MiB).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

GB: Final = 1e9
BYTES_MAX: Final = 1 << 40
_UNITS: Final = {
    "": 1,
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "k": 1 << 10,
    "m": 1 << 20,
    "g": 1 << 30,
}
_SIZE: Final = re.compile(r"(\d{1,13}(?:\.\d{1,6})?)\s*([a-zA-Z]*)")


def parse_bytes(text: str) -> int:
    """Returns the bytes that `64MiB`, `1.5 GiB`, `4K` or `100000` stands for.

    Raises:
        ValueError: it is none of these, no whole number of bytes, or not within 1 byte to 1 TiB.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = None if match is None else _UNITS.get(match[2].lower())
    if match is None or unit is None:
        raise ValueError(f"{text!r} is not a size; write 4096, 64KiB, 1.5MiB or 1GiB")
    size = float(match[1]) * unit
    if not 1 <= size <= BYTES_MAX or size != int(size):
        raise ValueError(f"{text!r} is not a whole number of bytes within 1 to 1 TiB")
    return int(size)


def show_bytes(size: int) -> str:
    """Returns `64 MiB`: the largest binary unit that keeps the number whole, or two decimals."""
    units = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
    for factor, unit in units:
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    for factor, unit in units:
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size} B"


def quantile(values: Sequence[float], share: float) -> float:
    """Returns the value below which `share` of the values lie, interpolated; 0.5 is the median.

    Raises:
        ValueError: there are no values, or the share is not within 0 to 1.
    """
    if not values or not 0 <= share <= 1:
        raise ValueError(f"no quantile {share} of {len(values)} values")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def median(values: Sequence[float]) -> float:
    return quantile(values, 0.5)


def slowest(by_rank: Sequence[Sequence[float]]) -> list[float]:
    """Returns for each iteration the time of the rank that took longest."""
    return [max(times) for times in zip(*by_rank, strict=True)]


def algbw(size: int, seconds: float) -> float:
    """Returns GB/s of tensor."""
    return size / seconds / GB


def busbw(size: int, seconds: float, world: int) -> float:
    """Returns GB/s that each rank sends, and receives, with an algorithm that moves no byte more
    than it must."""
    return algbw(size, seconds) * 2 * (world - 1) / world


def aggregate_wire(size: int, seconds: float, world: int) -> float:
    """Returns GB/s that all ranks together send."""
    return algbw(size, seconds) * 2 * (world - 1)


def cpu_s_per_gb(cpu_s: Iterable[float], size: int, operations: int) -> float:
    """Returns CPU seconds of all ranks together for each GB of tensor reduced."""
    return sum(cpu_s) / (size * operations / GB)


def show_seconds(seconds: float) -> str:
    """Returns `0.0153 ms`: milliseconds with three significant digits, so that columns compare."""
    ms = seconds * 1e3
    digits = 0 if ms >= 100 else 1 if ms >= 10 else 2 if ms >= 1 else 3 if ms >= 0.1 else 4
    return f"{ms:.{digits}f}"
