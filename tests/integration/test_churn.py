"""A churn run in short, on loopback and without root: the harness and its checks as a whole."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.churn.campaign import free_port
from tests.churn.hosts import ROOT, local_places, places_of
from tests.churn.lessons import METHODS
from tests.churn.run import Plan, churn
from tests.churn.world import Settings

SECONDS = 8.0
GAP_BAR_S = 40.0  # times are those of whatever machine runs the tests, busy or not
# What ssh does, without the network: it runs its last argument in a shell, and passes its own input
# and output through; the process there has another pid than ssh here.
SSH = f"""#!{sys.executable}
import subprocess, sys
code = subprocess.call(["sh", "-c", sys.argv[-1]])
sys.exit(code if code >= 0 else 255)
"""
SEED = 7
OTHER_METHODS = [method for method in METHODS if method != "async-diloco"]  # ./dev churn has all


def test_kills_stops_joins_and_a_dying_coordinator_leave_histories_that_agree(
    tmp_path: Path,
) -> None:
    plan = Plan(minutes=SECONDS / 60, least=3, most=5, seed=SEED, gap_bar_s=GAP_BAR_S)
    result = churn(tmp_path, local_places(5, free_port()), None, plan)
    assert not result.violations, "\n".join(result.violations)
    assert result.steps > 0
    assert sum(result.events.values()) > 0


@pytest.mark.parametrize(
    "method",
    ["async-diloco", *(pytest.param(m, marks=pytest.mark.slow) for m in OTHER_METHODS)],
)
def test_low_communication_training_keeps_parameters_momentum_and_residuals(
    tmp_path: Path, method: str
) -> None:
    settings = Settings(method=method, connect=(("straggler", 3.0),))
    plan = Plan(
        minutes=SECONDS / 60,
        least=3,
        most=4,
        seed=SEED,
        gap_bar_s=GAP_BAR_S,
        settings=settings,
    )
    result = churn(tmp_path, local_places(4, free_port()), None, plan)
    assert not result.violations, "\n".join(result.violations)
    assert result.outer_steps > 0
    assert sum(result.events.values()) > 0


def test_real_hosts_are_driven_by_the_same_harness_over_ssh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(SSH)
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
    hosts = tmp_path / "hosts.toml"
    hosts.write_text(
        f'[coordinator]\naddress = "127.0.0.1"\nport = {free_port()}\n'
        f'[defaults]\nfolder = "{ROOT}"\npython = "{sys.executable}"\n'
        + "".join(f'[[host]]\nname = "h{i}"\naddress = "127.0.0.1"\n' for i in range(4))
    )
    plan = Plan(minutes=SECONDS / 60, least=3, most=4, seed=SEED, gap_bar_s=GAP_BAR_S)
    there = set(Path("/tmp").glob("pccl-churn-??????/journal"))
    result = churn(tmp_path, places_of(hosts), None, plan)
    assert not result.violations, "\n".join(result.violations)
    assert result.steps > 0
    assert (tmp_path / "journal").stat().st_size > 0
    assert set(Path("/tmp").glob("pccl-churn-??????/journal")) <= there
