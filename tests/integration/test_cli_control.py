"""`pccl coordinator` and `pccl status` as a person or a script meets them."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pccl.cli.main import COMMANDS, main
from pccl.membership.service import CoordinatorThread

WAIT_S = 30.0
COORDINATOR = [sys.executable, "-m", "pccl", "coordinator", "--listen", "127.0.0.1:0"]


@contextmanager
def coordinator_process(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A coordinator and the line it printed."""
    process = subprocess.Popen(
        [*COORDINATOR, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    guard = threading.Timer(WAIT_S, process.kill)
    guard.start()
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()
        guard.cancel()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_coordinator_says_where_it_is_and_ends_cleanly_when_told_to(
    number: signal.Signals, tmp_path: Path
) -> None:
    with coordinator_process("--journal", str(tmp_path / "j"), "--min-world", "2") as (
        process,
        line,
    ):
        address = line.split("listening on ")[1].split(";")[0]
        assert f'pccl.connect("{address}")' in line
        assert main(["status", address, "--timeout", "10"]) == 0
        process.send_signal(number)
        output, errors = process.communicate(timeout=WAIT_S)
        assert (process.returncode, output, errors) == (0, "", "")


def test_a_status_is_a_table_for_people_and_json_for_programs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with CoordinatorThread() as coordinator:
        assert main(["status", coordinator.address]) == 0
        shown = capsys.readouterr().out
        assert "0 members" in shown
        assert "generation 1" in shown
        assert main(["status", coordinator.address, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["generation"], document["members"]) == (1, [])


def test_a_port_in_use_is_a_readable_error(capfd: pytest.CaptureFixture[str]) -> None:
    with CoordinatorThread() as coordinator:
        done = subprocess.run(
            [*COORDINATOR[:-1], coordinator.address],
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
    assert done.returncode == 2
    assert "address already in use" in done.stderr
    assert "--listen" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["coordinator", "--listen", "0.0.0.0:0"], 2, "--insecure"),
        (["coordinator", "--listen", "nonsense"], 2, "is not an address"),
        (["coordinator", "--min-world", "0"], 2, "min-world"),
        (["coordinator", "--listen", "127.0.0.1:0", "--journal", "/dev/null/x"], 2, "journal"),
        (["coordinator", "--listen", "127.0.0.1:0", "--record", "/nope/x"], 2, "--record"),
        (["status", "host:99999"], 2, "is not within 1 to 65535"),
        (["status"], 2, "give the coordinator's address, or a join ticket"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_a_mistake_on_the_command_line_says_what_to_do(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    assert words in capsys.readouterr().err


def test_a_status_of_nobody_fails_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound but not listening: the kernel refuses
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        assert main(["status", address, "--timeout", "2"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "connection refused" in captured.err
    assert "is `pccl coordinator` running" in captured.err


def test_help_lists_every_command_without_importing_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_a_command_whose_dependencies_are_missing_breaks_no_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COMMANDS, "broken", ("pccl.cli.no_such_module", "Is not there."))
    assert main(["broken"]) == 2
    assert "needs something that is not installed" in capsys.readouterr().err
    assert main(["--help"]) == 0
