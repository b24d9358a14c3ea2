"""The fault campaign in short: the checks are the same, times are only those of "no hang"."""

from __future__ import annotations

from pathlib import Path

from tests.faults import flood
from tests.faults.campaign import run_campaign

COUNT = 1 << 20  # 4 MiB of f32
SEED = 3


def test_kills_stops_joins_and_mass_deaths_leave_exact_sums_and_agreeing_histories(
    tmp_path: Path,
) -> None:
    times = {"kills": 5, "stops": 1, "joins": 2, "mass": 1, "storms": 3}
    figures = run_campaign(tmp_path, times, count=COUNT, seed=SEED)
    assert not figures.violations, "\n".join(figures.violations)
    assert len(figures.kill_gaps_s) == 5 * 3  # one per survivor
    assert len(figures.stop_gaps_s) == 3
    assert len(figures.join_s) == 2
    assert len(figures.mass_s) == 1
    assert len(figures.storm_s) == 3


def test_amid_a_crowd_of_strangers_kills_are_survived_and_newcomers_get_in(tmp_path: Path) -> None:
    result = flood.measure(
        tmp_path, kills=2, silent=300, garbage_per_s=300, hellos_per_s=100, seed=SEED
    )
    assert not result.violations, "\n".join(result.violations)
    assert len(result.crowded_s) == len(result.elsewhere_s) == 2 * 3
    assert int(result.crowd.rpartition(" ")[2]) > 0, "no stranger said hello"
    dropped = result.connections["dropped_by_reason"]
    assert isinstance(dropped, dict) and dropped["protocol"] > 0 and dropped["half_open"] > 0
