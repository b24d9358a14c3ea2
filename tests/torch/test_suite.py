"""torch's own distributed tests on the backend: some of them here, all of them when slow ones run.

Where gloo passes, pccl does: but for `monitored_barrier`, which torch 2.13 gives to gloo alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# One or two of every kind: what is left out differs in its dtype, its group or its profiler.
SOME = (
    "test_all_reduce_sum,test_all_reduce_product,test_all_reduce_coalesced_sum,"
    "test_sparse_all_reduce,test_all_gather_coalesced_simple,test_all_gather_complex,"
    "test_all_gather_object_default,test_gather_checks,test_scatter_checks,"
    "test_scatter_object_list,test_broadcast_full,test_barrier_full,"
    "test_barrier_timeout_full,test_reduce_max,test_get_future,test_destroy_group,"
    "test_send_recv_with_tag,test_send_recv_any_source,test_batch_isend_irecv_gloo,"
    "test_accumulate_gradients_no_sync_allreduce,test_DistributedDataParallelCPU,"
    "test_static_graph_api_cpu,test_ddp_logging_data_cpu"
)


def run_suite(folder: Path, *arguments: str, limit_s: int) -> tuple[Counter[str], list[str]]:
    """Returns how many tests ended how, and the names of those that failed."""
    report = folder / "suite.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.torch.suite", "--json", str(report), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=limit_s,
    )
    assert report.exists(), done.stderr[-4000:]
    verdicts = json.loads(report.read_text())
    failed = [f"{v['name']}\n{v['text']}" for v in verdicts if v["status"] == "fail"]
    return Counter(verdict["status"] for verdict in verdicts), failed


@pytest.mark.timeout(600)
def test_some_of_torchs_own_tests_pass(tmp_path: Path) -> None:
    counted, failed = run_suite(tmp_path, "-k", SOME, "--exclude", "profiler,_torch_", limit_s=590)
    assert not failed, "\n".join(failed)
    assert counted["ok"] >= 25, counted


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("arguments", "least"),
    [
        (["--exclude", "monitored_barrier"], 87),
        (["--world", "8", "-k", "group", "--exclude", "monitored_barrier"], 43),
        (["--world", "4", "--gate-as", "mpi", "-k", "all_to_all"], 12),
    ],
    ids=["two ranks", "groups of eight", "all to all"],
)
def test_torchs_own_tests_pass(arguments: list[str], least: int, tmp_path: Path) -> None:
    counted, failed = run_suite(tmp_path, *arguments, limit_s=3500)
    assert not failed, "\n".join(failed)
    assert counted["ok"] >= least, counted
