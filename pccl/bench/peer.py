"""pccl's rank: `python -m pccl.bench.peer RANK WORLD DOOR ADDRESS LANES`.

It notes what memory the process had before the library did anything, so that what it adds can be
told from what Python and numpy need.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy  # noqa: F401 - its memory is not pccl's

import pccl
from pccl.bench.rank_program import AllReduce, run_as_main, vitals

CONNECT_S = 60.0


class PcclAllReduce(AllReduce):
    """One member; in place, with undo and commit, unless there is an `out`."""

    def __init__(self, rank: int, world: int, address: str, lanes: int) -> None:
        super().__init__(rank, world)
        self._before = vitals()
        self._comm = pccl.connect(address, min_world=world, timeout_s=CONNECT_S, lanes=lanes)
        self._comm.wait_for(world, CONNECT_S)
        self._wire_bytes = 0
        self._retries = 0
        self._operations = 0

    def choose(self, order: Mapping[str, Any]) -> None:
        super().choose(order)
        self._wire_bytes = self._retries = self._operations = 0

    def reduce(self, array: Any, out: Any, op: str) -> None:
        outcome = self._comm.all_reduce(array, op=op, out=out)
        self._wire_bytes += outcome.wire_bytes
        self._retries += outcome.retries
        self._operations += 1

    def notes(self) -> dict[str, Any]:
        return {
            "wire_bytes": self._wire_bytes,
            "retries": self._retries,
            "operations": self._operations,
            "rss_before_bytes": self._before["rss_bytes"],
        }

    def close(self) -> None:
        self._comm.close()


def main() -> None:
    rank, world, door, address, lanes = sys.argv[1:]
    run_as_main(lambda: PcclAllReduce(int(rank), int(world), address, int(lanes)), int(rank), door)


if __name__ == "__main__":
    main()
