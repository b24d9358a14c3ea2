"""A churn run in short, on loopback and without root: the harness and its checks as a whole."""

from __future__ import annotations

from pathlib import Path

from tests.churn.campaign import free_port
from tests.churn.hosts import local_places
from tests.churn.run import Plan, churn

SECONDS = 10.0
SEED = 7


def test_kills_stops_joins_and_a_dying_coordinator_leave_histories_that_agree(
    tmp_path: Path,
) -> None:
    plan = Plan(minutes=SECONDS / 60, least=3, most=5, seed=SEED)
    result = churn(tmp_path, local_places(5, free_port()), None, plan)
    assert not result.violations, "\n".join(result.violations)
    assert result.steps > 0
    assert sum(result.events.values()) > 0
