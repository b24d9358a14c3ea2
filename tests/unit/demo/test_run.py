"""Children are heard, and end with their parent whatever its end."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pccl.demo.events import GO, Admitted, Exited, format_event
from pccl.demo.run import Children

WATCHING = "from pccl.demo.child import end_with_parent; go = end_with_parent(); "


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    (tmp_path / "logs").mkdir()
    found = Children(tmp_path / "logs")
    yield found
    found.end_all()


def start_script(children: Children, folder: Path, text: str) -> None:
    """Starts a child that runs `text`; -m wants a module, so it is put on the path."""
    (folder / "scripted_child.py").write_text(text)
    os.environ["PYTHONPATH"] = str(folder)
    children.start("peer 0", ["scripted_child"], reports=True)


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))


def test_events_and_the_exit_arrive_in_order_and_noise_goes_to_the_log(
    children: Children, tmp_path: Path
) -> None:
    script = """print('noise'); print('{"event":"Admitted","id":"ab"}'); raise SystemExit(7)"""
    start_script(children, tmp_path, script)

    assert children.inbox.get(timeout=20.0) == ("peer 0", Admitted("ab"))
    assert children.inbox.get(timeout=20.0) == ("peer 0", Exited(7))
    assert "noise" in children.log_tail("peer 0")


def test_a_child_that_ignores_the_request_to_end_is_killed(
    children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pccl.demo.run.ASKED_TO_END_WAIT_S", 0.2)
    script = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        """print('{"event":"Admitted","id":"ab"}', flush=True); time.sleep(60)"""
    )
    start_script(children, tmp_path, script)
    children.inbox.get(timeout=20.0)

    children.end_all()

    assert children.exit_code("peer 0") == -9
    assert children.inbox.get(timeout=20.0) == ("peer 0", Exited(-9))


def test_a_child_whose_parent_is_killed_ends_by_itself() -> None:
    sleeper = f"{WATCHING}print('here', flush=True); import time; time.sleep(60)"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time; "
            f"subprocess.Popen([sys.executable, '-c', {sleeper!r}], stdin=subprocess.PIPE); "
            "time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    with parent.stdout as pipe:
        assert pipe.readline() == b"here\n"
        parent.kill()
        parent.wait(10.0)
        # The child holds the pipe's other end; it closes when the child is gone.
        closed, _, _ = select.select([pipe], [], [], 20.0)
        assert closed
        assert pipe.read() == b""


def test_the_word_to_go_on_is_heard(children: Children, tmp_path: Path) -> None:
    heard = format_event(Admitted("heard"))
    script = f"{WATCHING}go.wait(20.0) and print({heard!r}, flush=True); go.clear(); go.wait(20.0)"
    start_script(children, tmp_path, script)

    children.tell("peer 0", GO)

    assert children.inbox.get(timeout=30.0) == ("peer 0", Admitted("heard"))


def test_pids_are_of_children_that_were_started(children: Children, tmp_path: Path) -> None:
    assert children.pid("peer 0") is None
    start_script(children, tmp_path, "import time; time.sleep(60)")

    assert isinstance(children.pid("peer 0"), int)
    begin_s = time.monotonic()
    children.end_all()
    assert children.exit_code("peer 0") == -15
    assert time.monotonic() - begin_s < 10.0
