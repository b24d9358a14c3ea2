"""Fuzzes the Python decoders and machines: `./dev fuzz python [NAME ...] [--runs N] [--seconds S]`.

Each target runs in a process of its own under atheris, from its seeds, the corpus that the
repository keeps (tests/fuzz/corpus) and what earlier runs have found (build/fuzz-python/NAME).  An
input that raises is kept there as crash-...; `./dev fuzz python NAME --replay FILE` plays it again,
and it belongs into the corpus or into a regression test.  `--keep` fuzzes nothing: it brings the
repository's corpus up to date with what was found, a few inputs that reach the same lines.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tests.fuzz.targets import KEPT, STORIES, TARGETS, kept, seeds
from tools import corpus as packed

ROOT: Final = Path(__file__).resolve().parents[2]
CORPUS: Final = ROOT / "build" / "fuzz-python"
RUNS: Final = 150_000
STORY_RUNS_PER_RUN: Final = 1 / 50  # a story is a hundred events
INPUT_SECONDS_MAX: Final = 60  # for one input
KEEP_TRIED_MAX: Final = 400  # of what was found, the shortest
BYTES_MAX: Final = {"coordinator": 1200, "member": 1200, "frozen_machine": 4000}


@dataclass(frozen=True)
class Finding:
    name: str
    executions: int
    seconds: float
    covered: int
    trouble: str


def fuzz(name: str, runs: int, seconds: float) -> Finding:
    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in (*seeds(name), *kept(name)):
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    limit = f"-max_total_time={int(seconds)}" if seconds else f"-runs={runs}"
    command = [sys.executable, "-m", "tests.fuzz.child", name, str(corpus), limit]
    command += [f"-timeout={INPUT_SECONDS_MAX}", f"-max_len={BYTES_MAX.get(name, 600)}"]
    command += [f"-artifact_prefix={corpus}/", "-print_final_stats=1", "-rss_limit_mb=2048"]
    began_s = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    executed = re.search(r"number_of_executed_units: *(\d+)", done.stdout)
    covered = re.findall(r"cov: (\d+)", done.stdout)
    return Finding(
        name,
        int(executed[1]) if executed else 0,
        time.monotonic() - began_s,
        int(covered[-1]) if covered else 0,
        "" if done.returncode == 0 and executed else done.stdout[-4000:],
    )


def keep(name: str) -> int:
    """Keeps the shortest of all inputs that reach new lines; returns how many."""
    found = {file.read_bytes() for file in (CORPUS / name).glob("*") if file.is_file()}
    inputs = sorted(found | set(kept(name)), key=lambda data: (len(data), data))
    lines: set[tuple[str, int]] = set()
    chosen = []
    for data in inputs[:KEEP_TRIED_MAX]:
        before = len(lines)
        with _traced(lines):
            TARGETS[name](data)
        if len(lines) > before:
            chosen.append(data)
    return packed.write(KEPT / name, chosen)


@contextlib.contextmanager
def _traced(lines: set[tuple[str, int]]) -> Iterator[None]:
    """Collects the lines of the library that are run."""

    def local(frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return local

    def called(frame: FrameType, event: str, argument: object) -> Any:
        return local if str(frame.f_globals.get("__name__")).startswith("pccl.") else None

    sys.settrace(called)
    try:
        yield
    finally:
        sys.settrace(None)


def line_of(found: Finding) -> str:
    verdict = "FAILED" if found.trouble else "clean"
    figures = f"{found.executions:>12,} {found.seconds:>8.1f} {found.covered:>7}"
    return f"{found.name:<22} {figures}  {verdict}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./dev fuzz python", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TARGETS))
    parser.add_argument("--runs", type=int, default=RUNS, help="per target; stories: a fiftieth")
    parser.add_argument("--seconds", type=float, default=0.0, help="per target, instead of runs")
    parser.add_argument("--replay", type=Path, help="one input, without atheris")
    parser.add_argument("--keep", action="store_true", help="bring the kept corpora up to date")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in TARGETS]:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    names = args.names or list(TARGETS)
    if args.replay is not None:
        TARGETS[names[0]](args.replay.read_bytes())
        return 0
    if args.keep:
        for name in names:
            print(f"{name:<22} {keep(name):>4} inputs kept", flush=True)
        return 0
    print(f"{'target':<22} {'executions':>12} {'seconds':>8} {'covered':>7}", flush=True)
    found = []
    with ThreadPoolExecutor(max(1, args.jobs)) as pool:
        work = []
        for name in names:
            runs = args.runs if name not in STORIES else int(args.runs * STORY_RUNS_PER_RUN)
            work.append(pool.submit(fuzz, name, max(1, runs), args.seconds))
        for future in as_completed(work):
            found.append(future.result())
            print(line_of(found[-1]), flush=True)
            if found[-1].trouble:
                print(found[-1].trouble, flush=True)
    failed = [f.name for f in found if f.trouble]
    print(f"{sum(f.executions for f in found):,} executions, {len(failed)} targets failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
