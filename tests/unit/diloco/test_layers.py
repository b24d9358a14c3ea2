"""Fragments and their schedule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from pccl.base.errors import UsageError
from pccl.diloco.layers import Schedule, layer_of, strided_fragments


def gpt(layers: int) -> list[tuple[str, int]]:
    inner = [(f"blocks.{n}.{part}", 10) for n in range(layers) for part in ("w", "norm.b")]
    return [("embed.weight", 50), *inner, ("norm.weight", 1), ("norm.bias", 1), ("head.w", 7)]


def of_layers(*layers: int) -> list[str]:
    return [f"blocks.{n}.{part}" for n in layers for part in ("w", "norm.b")]


def test_layers_are_dealt_out_in_turn_and_the_rest_goes_where_least_is() -> None:
    assert strided_fragments(gpt(5), 2) == [
        [*of_layers(0, 2, 4), "norm.weight", "norm.bias", "head.w"],
        [*of_layers(1, 3), "embed.weight"],
    ]


def test_a_layer_is_known_by_the_first_number_in_a_name() -> None:
    assert layer_of("model.blocks.11.experts.3.w") == "model.blocks.11"
    assert layer_of("0.weight") == "0"
    assert layer_of("embed.weight") is None


@given(st.integers(0, 9), st.integers(1, 6))
def test_every_parameter_is_in_exactly_one_fragment(layers: int, fragments: int) -> None:
    sizes = gpt(layers)
    if fragments > layers + 3:  # three modules besides
        return
    try:
        found = strided_fragments(sizes, fragments)
    except UsageError:
        assert layers < fragments  # the others went together
        return
    assert sorted(n for names in found for n in names) == sorted(name for name, _ in sizes)


def test_more_fragments_than_there_are_layers_are_refused() -> None:
    with pytest.raises(UsageError, match="9 fragments need"):
        strided_fragments(gpt(2), 9)


@given(st.integers(1, 8), st.integers(1, 8))
def test_in_every_h_steps_each_fragment_starts_once_in_order(fragments: int, distance: int) -> None:
    schedule = Schedule(fragments * distance, fragments, overlap=distance - 1)
    starts = [
        (step, fragment)
        for step in range(3 * schedule.inner_steps + 1)
        if (fragment := schedule.starts_at(step)) is not None
    ]
    assert [step for step, _ in starts] == [distance * n for n in range(1, 3 * fragments + 1)]
    assert [fragment for _, fragment in starts] == [
        n % fragments for n in range(1, 3 * fragments + 1)
    ]


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((100, 3, 5), "multiple"),
        ((100, 4, 25), "overlap"),
        ((100, 4, -1), "overlap"),
        ((0, 1, 0), "at least 1"),
    ],
)
def test_a_schedule_that_would_have_two_fragments_in_flight_is_refused(
    numbers: tuple[int, int, int], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        Schedule(*numbers)
