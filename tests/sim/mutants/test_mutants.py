"""Every protocol mutant is found: so the simulation would see such a mistake in the real thing."""

from __future__ import annotations

import pytest

from tests.sim.mutants.catalogue import everyone
from tests.sim.mutants.hunt import hunt

MUTANTS_MIN = 20


@pytest.mark.parametrize("name", list(everyone()))
def test_a_mutant_is_found(name: str) -> None:
    catch = hunt(name)
    assert catch.seed is not None, f"{everyone()[name].says}: nothing failed {catch.failure}"


def test_there_are_enough_of_them() -> None:
    assert len(everyone()) >= MUTANTS_MIN
