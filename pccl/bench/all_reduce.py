"""One measurement of pccl on this machine: `measure(Setting(...)) -> Figures`.

Starts a coordinator in this process and peers as processes of their own, checks one result, and
times operations back to back.  An iteration's time is that of the rank that took longest.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pccl.base.errors import UsageError
from pccl.bench.arithmetic import algbw, busbw, cpu_s_per_gb, median, quantile, slowest
from pccl.bench.contributions import WORLD_MAX
from pccl.bench.rank_program import DTYPES
from pccl.bench.ranks import RankGroup, start_pccl
from pccl.collectives.dtypes import ITEM_BYTES, Dtype
from pccl.membership.service import CoordinatorThread

SECONDS: Final = 2.0  # what a run takes when the caller does not say how many iterations
ITERATIONS_MAX: Final = 2000
CALIBRATION: Final = 3
WARMUPS: Final = 2
START_S: Final = 90.0
ORDER_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What to measure."""

    world: int
    byte_count: int
    dtype: str = "f32"
    op: str = "sum"
    lanes: int = 0
    in_place: bool = True
    iterations: int | None = None  # None: as many as fit into about two seconds

    def __post_init__(self) -> None:
        if not 1 <= self.world <= WORLD_MAX:
            raise UsageError(f"the world must be within 1 to {WORLD_MAX}, not {self.world}")
        if self.dtype not in DTYPES:
            raise UsageError(f"no such dtype: {self.dtype!r}; one of {', '.join(DTYPES)}")
        if self.byte_count % self.item_bytes:
            raise UsageError(f"{self.byte_count} bytes are no whole number of {self.dtype}")

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES[Dtype[self.dtype.upper()]]

    @property
    def count(self) -> int:
        return self.byte_count // self.item_bytes


@dataclass(frozen=True, slots=True)
class Figures:
    """What came out.  Times in seconds, rates in GB/s, bytes and CPU time of all peers together."""

    iterations: int
    median_s: float
    p99_s: float
    best_s: float
    algbw: float
    busbw: float
    wire_bytes: float
    ideal_wire_bytes: int
    retries: int
    cpu_s_per_gb: float

    def as_document(self, setting: Setting) -> dict[str, Any]:
        return {"operation": "all-reduce", **asdict(setting), "checked": True, **asdict(self)}


def figures(setting: Setting, answers: list[dict[str, Any]]) -> Figures:
    """Makes figures of what the ranks answered to one order to run."""
    times = slowest([answer["times"] for answer in answers])
    middle_s = median(times)
    size, world = setting.byte_count, setting.world
    return Figures(
        iterations=len(times),
        median_s=middle_s,
        p99_s=quantile(times, 0.99),
        best_s=min(times),
        algbw=algbw(size, middle_s),
        busbw=busbw(size, middle_s, world),
        wire_bytes=sum(answer["wire_bytes"] / answer["operations"] for answer in answers),
        ideal_wire_bytes=2 * (world - 1) * size,
        retries=max(answer["retries"] for answer in answers),
        cpu_s_per_gb=cpu_s_per_gb((answer["cpu_s"] for answer in answers), size, len(times)),
    )


def measure(setting: Setting, tell: Callable[[str], None] = lambda text: None) -> Figures:
    """Runs it.

    Raises:
        UsageError: pccl does not know such an operation.
        RankFailed: a peer failed; the text says how.
    """
    with (
        tempfile.TemporaryDirectory(prefix="pccl-bench-") as folder,
        CoordinatorThread() as coordinator,
        RankGroup("pccl", Path(folder), setting.world) as peers,
    ):
        tell(f"starting {setting.world} peers")
        start_pccl(peers, coordinator.address, setting.lanes, START_S)
        tell("checking a result")
        peers.ask(
            "prepare",
            timeout_s=ORDER_S,
            dtype=setting.dtype,
            count=setting.count,
            op=setting.op,
            in_place=[setting.in_place],
        )
        iterations = setting.iterations or _calibrate(peers, setting.in_place)
        tell(f"timing {iterations} iterations")
        begin_s = time.monotonic()
        answers = peers.ask(
            "run",
            timeout_s=ORDER_S + 2 * iterations,
            in_place=setting.in_place,
            warmups=WARMUPS,
            iterations=iterations,
        )
        tell(f"done in {time.monotonic() - begin_s:.1f} s")
        return figures(setting, answers)


def _calibrate(peers: RankGroup, in_place: bool) -> int:
    answers = peers.ask(
        "run", timeout_s=ORDER_S, in_place=in_place, warmups=WARMUPS, iterations=CALIBRATION
    )
    once_s = median(slowest([answer["times"] for answer in answers]))
    return max(CALIBRATION, min(ITERATIONS_MAX, int(SECONDS / once_s)))
