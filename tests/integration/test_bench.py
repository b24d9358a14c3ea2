"""`pccl bench` as people call it: real peers, short runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pccl.bench.ranks import RankFailed, RankGroup

ROOT = Path(__file__).resolve().parent.parent.parent
RUN_S = 120.0


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pccl", "bench", "all-reduce", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, cwd=ROOT)


def test_two_peers_are_measured_checked_and_told_as_json() -> None:
    done = bench("--world", "2", "--bytes", "64KiB", "--iterations", "20", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["world"], found["byte_count"], found["dtype"]) == (2, 65536, "f32")
    assert (found["iterations"], found["checked"], found["retries"]) == (20, True, 0)
    assert 0 < found["best_s"] <= found["median_s"] <= found["p99_s"]
    assert found["algbw"] == pytest.approx(65536 / found["median_s"] / 1e9)
    assert found["ideal_wire_bytes"] == 131072
    assert 131072 <= found["wire_bytes"] < 131072 * 1.1  # headers, and nothing sent twice


def test_people_get_a_table() -> None:
    done = bench("--bytes", "30006", "--dtype", "i16", "--op", "max", "--out-of-place")
    assert done.returncode == 0, done.stderr
    assert "all-reduce max of 29.30 KiB i16, out of place, 2 peers over loopback" in done.stdout
    for name in ("time, median", "time, p99", "algbw", "busbw", "wire bytes", "retries"):
        assert name in done.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--bytes", "5XiB"), "'5XiB' is not a size"),
        (("--bytes", "4099"), "4099 bytes are no whole number of f32"),
        (("--world", "0"), "0 is not in the range"),
        (("--op", "xor"), "'xor' is not one of"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(
    arguments: tuple[str, ...], text: str
) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


DIES = "import sys; sys.exit('out of luck')"
SAYS_WHY = """
import json, socket, sys
parent = socket.socket(socket.AF_UNIX)
parent.connect(sys.argv[1])
parent.sendall(b'{"rank": 0}\\n')
parent.recv(1000)
parent.sendall(json.dumps({"error": "WrongResult: 1 is 2"}).encode() + b"\\n")
"""
HANGS = SAYS_WHY.replace("parent.recv(1000)", "import time; time.sleep(3600)")


def started(group: RankGroup, program: str) -> RankGroup:
    group.start([[sys.executable, "-c", program, group.door]], start_s=RUN_S)
    return group


def test_a_rank_that_dies_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with (
        RankGroup("luckless", tmp_path, 1) as group,
        pytest.raises(RankFailed, match=r"luckless: a process ended with exit code 1\nout of luck"),
    ):
        started(group, DIES)


def test_a_wrong_result_is_told_by_the_rank_that_saw_it(tmp_path: Path) -> None:
    with (
        RankGroup("wrong", tmp_path, 1) as group,
        pytest.raises(RankFailed, match="wrong: WrongResult: 1 is 2"),
    ):
        started(group, SAYS_WHY).ask("prepare", timeout_s=RUN_S)


def test_a_rank_that_hangs_is_given_up_and_ended(tmp_path: Path) -> None:
    with RankGroup("slow", tmp_path, 1) as group:
        with pytest.raises(RankFailed, match="slow: the ranks did not answer in time"):
            started(group, HANGS).ask("run", timeout_s=0.3)
        group.end_s = 0.1
        pids = group.pids
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
