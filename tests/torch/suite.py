"""Runs torch's own distributed tests against a backend: `./dev torch-suite`.

Prints one line per test and a sum, and exits with 1 if any failed.  A test that torch skips, as it
is for another backend or wants more ranks or GPUs, counts as skipped.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import re
import sys
import time
import unittest
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

GPU_NAMES = re.compile(r"cuda|nccl|gpu|hip|ucc", re.IGNORECASE)
MODULE = "tests.torch.suite_cases"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one test."""

    name: str
    status: str  # ok, skip or fail
    seconds: float
    text: str


def prepare(backend: str, gate: str, world: int, test_timeout_s: int) -> None:
    """Sets what torch's module reads when it is imported, here and in the fork server."""
    os.environ.update(
        SUITE_BACKEND=backend,
        SUITE_GATE=gate,
        WORLD_SIZE=str(world),
        OMP_NUM_THREADS="1",
        KINETO_LOG_LEVEL="5",  # the profiler's start and stop are no news
        DISTRIBUTED_TESTS_DEFAULT_TIMEOUT=str(test_timeout_s),
        PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
    )
    multiprocessing.get_context("forkserver").set_forkserver_preload([MODULE])


def load() -> type[unittest.TestCase]:
    """Imports torch's tests under the gates that `prepare` chose."""
    from tests.torch.suite_cases import SuiteCase

    return SuiteCase


def selected(case: type[unittest.TestCase], keep: str, exclude: str) -> list[str]:
    """Returns the names of the tests that apply, but for those that want a GPU by their name."""
    names = unittest.TestLoader().getTestCaseNames(case)
    kept = keep.split(",")
    dropped = [part for part in exclude.split(",") if part]
    return [
        name
        for name in names
        if any(part in name for part in kept)
        and not GPU_NAMES.search(name)
        and not any(part in name for part in dropped)
        and not getattr(getattr(case, name), "__unittest_skip__", False)
    ]


def run_one(case: type[unittest.TestCase], name: str) -> Verdict:
    """Runs one test on all its ranks."""
    result = unittest.TestResult()
    began = time.monotonic()
    case(name).run(result)
    seconds = round(time.monotonic() - began, 2)
    wrong = [text for _, text in (*result.failures, *result.errors)]
    if wrong:
        return Verdict(name, "fail", seconds, wrong[0])
    if result.skipped:
        return Verdict(name, "skip", seconds, result.skipped[0][1])
    return Verdict(name, "ok", seconds, "")


def run(case: type[unittest.TestCase], names: list[str], tell: Any) -> list[Verdict]:
    verdicts = []
    for name in names:
        verdict = run_one(case, name)
        tell(verdict)
        verdicts.append(verdict)
    return verdicts


def summary(verdicts: list[Verdict]) -> str:
    counted = Counter(verdict.status for verdict in verdicts)
    seconds = sum(verdict.seconds for verdict in verdicts)
    counts = ", ".join(f"{counted[kind]} {kind}" for kind in ("ok", "skip", "fail"))
    return f"{len(verdicts)} selected: {counts}; {seconds:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev torch-suite", description=__doc__)
    parser.add_argument(
        "-k", dest="keep", default="", help="only tests with one of these (commas) in their name"
    )
    parser.add_argument("--exclude", default="", help="no tests with these (commas) in their name")
    parser.add_argument("--world", type=int, default=2, help="ranks per test (2)")
    parser.add_argument("--backend", default="pccl", help="what the tests run on (pccl)")
    parser.add_argument("--gate-as", default="gloo", help="whose tests apply: gloo or mpi (gloo)")
    parser.add_argument("--test-timeout", type=int, default=60, help="seconds per test (60)")
    parser.add_argument("--json", type=Path, help="write the verdicts here")
    parser.add_argument("--list", action="store_true", help="print the names and run nothing")
    given = parser.parse_args()
    prepare(given.backend, given.gate_as, given.world, given.test_timeout)
    case = load()
    logging.disable(logging.WARNING)  # torch tells of each process that it starts
    names = selected(case, given.keep, given.exclude)
    if given.list:
        print("\n".join(names))
        return 0
    verdicts = run(case, names, _tell)
    print(summary(verdicts))
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=1))
    return any(verdict.status == "fail" for verdict in verdicts)


def _tell(verdict: Verdict) -> None:
    print(f"{verdict.status:4} {verdict.seconds:6.1f} s  {verdict.name}", flush=True)
    if verdict.status == "fail":
        print(verdict.text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
