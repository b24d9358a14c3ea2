"""Seeded runs with faults: agreement after every event, and life after the calm."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.batch import run_range
from tests.sim.run import run
from tests.sim.script import Fault, Script, draw

ROOT = Path(__file__).resolve().parents[2]
BATCH = 50


def check(first: int, count: int, kind: str = "") -> None:
    summary = run_range((first, first + count), kind=kind)
    told = [f"{text}\n  again: ./dev sim --seed {seed}" for seed, text in summary.failures]
    assert not told, "\n".join(told)
    assert summary.commits > 5 * count


@pytest.mark.parametrize("first", range(0, 300, BATCH))
def test_faults_never_split_the_outcome_of_a_step_and_never_stop_the_run_for_good(
    first: int,
) -> None:
    check(first, BATCH)


def test_joiners_abort_nothing_and_evict_nobody() -> None:
    check(10_000, BATCH, kind="joins")


def test_members_that_leave_by_a_plan_abort_nothing_and_are_never_evicted() -> None:
    check(30_000, BATCH, kind="drains")


def test_stragglers_are_left_out_and_come_in_again_under_every_policy() -> None:
    check(40_000, BATCH, kind="excludes")


def test_a_coordinator_that_fails_alone_aborts_nothing_and_evicts_nobody() -> None:
    check(20_000, BATCH, kind="coordinator")


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100_000, 110_000, 1000))
def test_many_more_seeds_find_nothing(first: int) -> None:
    check(first, 1000)


def test_the_same_seed_is_the_same_run_under_another_hash_seed() -> None:
    program = "from tests.sim.test_seeds import fingerprint; print(fingerprint(range(40, 52)))"
    told = []
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        told.append(done.stdout.strip())
    assert told[0] == told[1] != ""


def fingerprint(seeds: range) -> str:
    """The hash of all that happened in these runs."""
    digest = hashlib.sha256()
    for seed in seeds:
        digest.update("\n".join(run(draw(seed), traced=True).trace).encode())
    return digest.hexdigest()


def test_a_script_is_the_same_after_a_trip_through_json() -> None:
    script = draw(11)
    assert Script.from_json(script.to_json()) == script
    assert eval(str(script), {"Script": Script, "Fault": Fault}) == script
