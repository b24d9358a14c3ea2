"""The main job in small: real processes, a real kill, a real newcomer, exactly equal parameters."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

SMALL = ["--layers", "1", "--width", "32", "--context", "32", "--batch", "8"]
STEPS = ["--steps", "60", "--kill-at", "15", "--join-at", "20", "--least-step-s", "0.05"]


def start(folder: Path, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "pccl", "demo", "--plain", "--out", str(folder), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def children_of(process: int) -> list[int]:
    stats = [stat_of(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [child for child, _, parent in stats if parent == process]


def lives(process: int) -> bool:
    return stat_of(process)[1] not in "ZX"


def stat_of(process: int) -> tuple[int, str, int]:
    """Returns the process, its state and its parent; state X if there is none."""
    try:
        _, _, fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")
    except OSError:
        return process, "X", 0
    state, parent = fields.split()[:2]
    return process, state, int(parent)


def test_survivors_of_a_kill_and_a_newcomer_end_with_the_same_parameters(tmp_path: Path) -> None:
    demo = start(tmp_path, *SMALL, *STEPS)
    try:
        said, _ = demo.communicate(timeout=170.0)
    finally:
        demo.kill()
        demo.wait(10.0)

    assert demo.returncode == 0, said
    record = json.loads((tmp_path / "demo.json").read_text())
    peers = {peer["name"]: peer for peer in record["peers"]}
    assert {name: peer["state"] for name, peer in peers.items()} == {
        "peer 0": "done",
        "peer 1": "killed",
        "peer 2": "done",
        "peer 3": "done",
        "peer 4": "done",
    }
    digests = {peer["digest"] for peer in record["peers"] if peer["state"] == "done"}
    assert len(digests) == 1
    assert len(digests.pop()) == 64
    for name in ("peer 0", "peer 2", "peer 3"):
        assert [step["step"] for step in peers[name]["steps"]] == list(range(1, 61))
    assert peers["peer 4"]["steps"][-1]["world_size"] == 4
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("method", ["diloco", "async-diloco", "streaming", "sparse-loco"])
def test_a_kill_and_a_join_under_each_low_communication_method(method: str, tmp_path: Path) -> None:
    small = ["--layers", "2", "--width", "32", "--context", "32", "--batch", "8"]
    demo = start(tmp_path, "--method", method, *small, "--steps", "200", "--least-step-s", "0.02")
    try:
        said, _ = demo.communicate(timeout=170.0)
    finally:
        demo.kill()
        demo.wait(10.0)

    assert demo.returncode == 0, said
    record = json.loads((tmp_path / "demo.json").read_text())
    assert record["settings"]["method"] == method
    states = [peer["state"] for peer in record["peers"]]
    assert sorted(states) == ["done"] * 4 + ["killed"], said
    assert len({peer["digest"] for peer in record["peers"] if peer["state"] == "done"}) == 1


@pytest.mark.parametrize("method", ["diloco", "async-diloco"])
def test_in_a_run_of_hardly_any_reductions_the_newcomer_still_has_a_part(
    method: str, tmp_path: Path
) -> None:
    small = ["--layers", "2", "--width", "32", "--context", "32", "--batch", "8"]
    demo = start(tmp_path, "--method", method, *small, "--steps", "40")
    try:
        said, _ = demo.communicate(timeout=170.0)
    finally:
        demo.kill()
        demo.wait(10.0)

    checks = json.loads((tmp_path / "demo.json").read_text())["checks"]
    assert len(checks) == 7, said
    bad = [check["name"] for check in checks if not check["good"] and "loss" not in check["name"]]
    assert bad == [], said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind_when_the_demo_is_ended(
    tmp_path: Path, number: signal.Signals
) -> None:
    demo = start(tmp_path, *SMALL, "--steps", "100000")
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "epoch 1" in line:
                break
        children = children_of(demo.pid)
        assert len(children) == 5  # the coordinator and four peers
        demo.send_signal(number)
        demo.wait(20.0)
        deadline_s = time.monotonic() + 10.0
        while any(map(lives, children)) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert [child for child in children if lives(child)] == []
    finally:
        demo.kill()
        demo.communicate(timeout=10.0)

    assert demo.returncode == (130 if number is signal.SIGINT else -signal.SIGKILL)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--kill-at", "500"], "--kill-at is 500"),
        (["--peers", "0"], "--peers is 0"),
        (["--method", "diloco", "--steps", "10"], "more --steps or --no-join"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--out", "/dev/null/demo"], "cannot write to /dev/null/demo"),
    ],
)
def test_what_cannot_begin_ends_with_code_2_and_the_reason(
    tmp_path: Path, options: list[str], reason: str
) -> None:
    demo = start(tmp_path, *options)
    said, _ = demo.communicate(timeout=30.0)

    assert demo.returncode == 2
    assert reason in said
