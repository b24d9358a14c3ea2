"""The examples with torch, on real text, as a user starts them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pccl.membership.service import CoordinatorOptions, CoordinatorThread
from pccl.transport.address import Address

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_ddp_example_learns_and_all_ranks_hold_the_same_bits() -> None:
    said = run(*TORCHRUN, str(EXAMPLES / "ddp.py"), "--steps=60")
    losses = [float(loss) for loss in re.findall(r"loss ([0-9.]+)", said)]
    assert losses[-1] < losses[0] - 1.5, said
    assert "all ranks hold the same bits" in said


def run(*command: str, timeout_s: float = 200.0) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_the_elastic_example_loses_a_worker_takes_one_in_and_learns() -> None:
    said = run(str(EXAMPLES / "elastic_ddp.py"), "--local=3")
    losses = [float(loss) for loss in re.findall(r"loss ([0-9.]+)", said)]
    assert losses[-1] < losses[0] - 0.5, said
    sizes = re.findall(r"on: ([0-9]) workers", said)
    assert "2" in sizes and sizes[-1] == "3", said
    digests = re.findall(r"done at step 1500: parameters ([0-9a-f]{12})", said)
    assert len(digests) == 3 and len(set(digests)) == 1, said


def test_the_elastic_example_ends_though_its_run_is_over_before_the_spare_worker_comes() -> None:
    said = run(str(EXAMPLES / "elastic_ddp.py"), "--local=3", "--until=101", timeout_s=100.0)
    digests = re.findall(r"done at step 101: parameters ([0-9a-f]{12})", said)
    assert len(digests) in (2, 3) and len(set(digests)) == 1, said


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def test_the_fsdp2_example_learns() -> None:
    said = run(*TORCHRUN, str(EXAMPLES / "fsdp2.py"), "--until=150")
    losses = [float(loss) for loss in re.findall(r"loss ([0-9.]+)", said)]
    assert len(losses) == 3 and losses[-1] < losses[0], said


def test_two_replicas_of_the_fsdp2_example_hold_the_same_shards() -> None:
    options = CoordinatorOptions(listen=Address("127.0.0.1", 0))
    with CoordinatorThread(options) as coordinator, ThreadPoolExecutor(2) as both:
        line = (*TORCHRUN, str(EXAMPLES / "fsdp2.py"), coordinator.address, "--until=400")
        said = list(both.map(lambda _: run(*line), range(2)))
    assert any("on 2 replicas" in text for text in said), said
    found = [sorted(re.findall(r"shard ([01]) is ([0-9a-f]{12})", text)) for text in said]
    assert found[0] == found[1] and [shard for shard, _ in found[0]] == ["0", "1"], said


@pytest.mark.parametrize(
    ("example", "options"),
    [
        ("diloco", ["--until=12"]),
        ("diloco", ["--until=12", "--delayed"]),
        ("streaming_diloco", ["--until=32"]),
        ("sparse_loco", ["--until=12"]),
    ],
)
def test_a_low_communication_example_learns(example: str, options: list[str]) -> None:
    said = run(str(EXAMPLES / f"{example}.py"), "--local=2", *options)
    losses = [float(loss) for loss in re.findall(r"loss ([0-9.]+)", said)]
    assert losses[-1] < min(losses[0], 4.0), said
    states = re.findall(r"state ([0-9a-f]{16})", said)
    assert len(states) == 2 and states[0] == states[1], said
