"""Hosts files, and how commands reach the hosts that they name."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.churn.campaign import main, parse
from tests.churn.hosts import Host, Remote, places_of
from tests.faults import campaign as faults
from tests.sim.command import main as simulate

FILE = """
[coordinator]
address = "10.0.0.1"
port = 5000

[defaults]
folder = "pccl"
python = ".venv/bin/python"

[[host]]
name = "first"
address = "10.0.0.2"
target = "user@first"
sudo = true
filters = true

[[host]]
name = "second"
transport = "local"
address = "127.0.0.1"
"""


def test_a_hosts_file_names_where_everything_runs(tmp_path: Path) -> None:
    path = tmp_path / "hosts.toml"
    path.write_text(FILE)
    places = places_of(path)
    assert (places.coordinator.name, places.port) == ("coord", 5000)
    first, second = places.hosts
    assert isinstance(first, Remote) and first.target == "user@first" and first.filters
    assert type(second) is Host and second.folder == "pccl"


@pytest.mark.parametrize(
    ("was", "becomes", "word"),
    [
        ("[coordinator]", "[other]", "coordinator"),
        ('name = "first"', "", "name"),
        ('name = "first"', 'name = "second"', "differ"),
        ('transport = "local"', 'transport = "pigeon"', "pigeon"),
        ("sudo = true", "sodo = true", "sodo"),
        ('address = "10.0.0.1"', "", r"\[coordinator\] lacks the key 'address'"),
        ('address = "10.0.0.2"', "", r"\[\[host\]\] 1 lacks the key 'address'"),
        ("port = 5000", 'port = "x"', "port in"),
        ("[[host]]", "[[hosts]]", r"lacks the tables \[\[host\]\]"),
        ("sudo = true", "sudo = perhaps", "hosts.toml: "),
    ],
)
def test_a_bad_hosts_file_is_refused_with_what_is_wrong(
    tmp_path: Path, was: str, becomes: str, word: str
) -> None:
    path = tmp_path / "hosts.toml"
    path.write_text(FILE.replace(was, becomes))
    with pytest.raises(ValueError, match=word):
        places_of(path)


def test_a_campaign_on_hosts_that_cannot_be_read_does_not_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hosts.toml"
    assert main(["--hosts", str(path)]) == 2
    path.write_text(FILE.replace("[coordinator]", "[other]"))
    assert main(["--hosts", str(path)]) == 2
    said = capsys.readouterr().out
    assert "cannot be read: No such file" in said and "lacks the table [coordinator]" in said
    assert "seed" not in said and "Traceback" not in said


@pytest.mark.parametrize("parse", [parse, faults.parse])
def test_the_help_of_a_campaign_names_the_command_and_its_defaults(
    parse: Callable[[list[str]], object], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "usage: ./dev " in said and "of the reduced tensor (" in said and "{'" not in said


@pytest.mark.parametrize("options", [["--seeds", "0"], ["--kind", "foo"], ["--jobs", "0"]])
def test_a_simulation_of_nothing_or_of_an_unknown_kind_is_refused(options: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        simulate(options)
    assert ended.value.code == 2


def test_a_command_for_a_remote_host_is_one_quoted_word_of_ssh() -> None:
    host = Remote(name="a", target="user@a", folder="some where", python="python3")
    command = host.command(["python3", "agent.py", '{"a": 1}'])
    assert command[0] == "ssh" and command[-2] == "user@a"
    assert command[-1] == "cd 'some where' && exec python3 agent.py '{\"a\": 1}'"


def test_a_child_takes_orders_and_signals_and_ends_for_certain(tmp_path: Path) -> None:
    program = "import sys\nfor line in sys.stdin: print(line.strip(), flush=True)"
    path = tmp_path / "output"
    with path.open("wb") as output:
        child = Host(name="a").spawn([sys.executable, "-c", program], output, output)
    child.order("some words")
    deadline = time.monotonic() + 30
    while path.read_text() != "some words\n" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.read_text() == "some words\n"
    child.signal(signal.SIGSTOP)
    child.discard()
    assert child.code == -signal.SIGKILL
    child.discard()  # once more does no harm
