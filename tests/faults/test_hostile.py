"""The short form of `./dev hostile`: some enemies of each kind at all ports of a secured run."""

from __future__ import annotations

from pathlib import Path

from tests.faults.hostile import measure
from tests.faults.mob import KINDS

EACH = 12


def test_nobody_gets_in_and_nobody_is_put_out_while_enemies_of_every_kind_come(
    tmp_path: Path,
) -> None:
    result = measure(tmp_path, connections=EACH * len(KINDS), turns=1, calm_s=0.5, joins=False)

    assert result.violations == []
    assert set(result.made) == set(KINDS)
    assert result.connections["dropped"] > 0
    assert all(result.steps_s.values())
    assert all(result.pulls.get(kind, 0) > 0 for kind in result.steps_s), (
        "weights came all the while"
    )
    assert result.fetch_s.keys() == result.steps_s.keys()
