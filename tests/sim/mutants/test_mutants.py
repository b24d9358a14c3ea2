"""Every protocol mutant is found: so the simulation would see such a mistake in the real thing."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from tests.sim.mutants.catalogue import everyone
from tests.sim.mutants.hunt import Catch, hunt

MUTANTS_MIN = 20
pytestmark = pytest.mark.timeout(1200)  # the first one waits for the hunt of all


@pytest.fixture(scope="module")
def catches() -> dict[str, Catch]:
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        return {catch.name: catch for catch in pool.map(hunt, everyone(), chunksize=1)}


@pytest.mark.parametrize("name", list(everyone()))
def test_a_mutant_is_found(name: str, catches: dict[str, Catch]) -> None:
    says = everyone()[name].says
    assert catches[name].seed is not None, f"{says}: nothing failed {catches[name].failure}"


def test_there_are_enough_of_them() -> None:
    assert len(everyone()) >= MUTANTS_MIN
