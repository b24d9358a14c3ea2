"""What a joiner receives, and the loader whose position is part of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pccl.pytorch import Batches, Mismatch, Misused, Options, State
from tests.torch import exact


def trained_state(steps: int) -> State:
    model = exact.make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=exact.RATE)
    state = State(model=model, optimizer=optimizer, loader=Batches(list(range(10)), 2))
    for step in range(steps):
        optimizer.zero_grad()
        exact.loss_of(model, exact.batch(0, step)).backward()
        optimizer.step()
        state.step += 1
        state.loader.advance(2)
    return state


def test_a_restored_state_is_the_same_bit_by_bit_and_trains_on_alike() -> None:
    one, other = trained_state(3), trained_state(0)
    assert one.digest() != other.digest()
    other.restore(one.snapshot())
    assert other.step == 3 and one.digest() == other.digest()
    assert other.loader.position == one.loader.position == 12
    for state in (one, other):
        model: nn.Module = state.model  # type: ignore[assignment]
        model.zero_grad()
        exact.loss_of(model, exact.batch(0, 9)).backward()
        state.optimizer.step()  # type: ignore[union-attr]
    assert one.digest() == other.digest()


def test_a_state_of_another_model_is_refused_and_nothing_is_written() -> None:
    mine = State(model=exact.make_model(layers=1))
    before = mine.digest()
    with pytest.raises(Mismatch, match="differs in"):
        mine.restore(State(model=exact.make_model(layers=2)).snapshot())
    with pytest.raises(Mismatch, match="has the parts"):
        mine.restore(trained_state(1).snapshot())
    narrow = State(model=nn.Sequential(nn.Linear(4, 4, dtype=torch.float64)))
    with pytest.raises(Mismatch, match=r"0.weight is \(4, 4\)"):
        mine.restore(narrow.snapshot())
    with pytest.raises(Mismatch, match="cannot be read"):
        mine.restore(b"no state at all")
    assert mine.digest() == before and mine.step == 0


def test_a_part_without_a_state_is_refused() -> None:
    with pytest.raises(Misused, match="'sampler' has no state_dict"):
        State(model=exact.make_model(), extra={"sampler": object()})  # type: ignore[dict-item]
    with pytest.raises(Misused, match="has a part 'model' already"):
        State(model=exact.make_model(), extra={"model": exact.make_model()})


def test_ranks_take_each_sample_of_an_epoch_once_whatever_their_number() -> None:
    batches = Batches(torch.arange(60), 5, seed=3)
    seen = []
    for size in (4, 2, 3, 3):
        for rank in range(size):
            seen += batches.batch(rank, size).tolist()
        batches.advance(size)
    assert sorted(seen) == list(range(60)) and seen != sorted(seen)
    again = torch.cat([batches.batch(rank, 4) for rank in range(4)])
    assert again.tolist() != seen[:20]  # another epoch has another order


def test_a_loader_goes_on_where_the_members_are() -> None:
    one, other = Batches(list(range(9)), 2, seed=5), Batches(list(range(9)), 2, seed=1)
    one.advance(7)
    other.load_state_dict(one.state_dict())
    assert other.batch(1, 2).tolist() == one.batch(1, 2).tolist()


def test_empty_data_and_batches_are_refused() -> None:
    with pytest.raises(Misused):
        Batches([], 1)
    with pytest.raises(Misused):
        Batches([1], 0)


def test_options_of_elastic_groups_are_refused_for_others() -> None:
    with pytest.raises(Misused, match="min_world is for elastic groups"):
        Options(min_world=2)
    with pytest.raises(Misused, match="on_loss must be"):
        Options(elastic=True, on_loss="wait")  # type: ignore[arg-type]
    assert Options(elastic=True, min_world=2).min_world == 2


def test_buffers_are_each_members_own_and_positions_are_not() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4))
    state = State(model=model, loader=Batches([1, 2, 3], 1))
    before = state.digest()
    model(torch.randn(8, 4))
    assert state.digest() == before
    state.advance(2)
    assert state.loader.position == 2 and state.digest() != before


def test_a_state_whose_optimizer_has_other_groups_is_refused_and_nothing_is_written() -> None:
    def state(groups: int) -> State:
        model = exact.make_model()
        parameters = list(model.parameters())
        split = [parameters] if groups == 1 else [parameters[:1], parameters[1:]]
        optimizer = torch.optim.SGD([{"params": p} for p in split], lr=0.5, momentum=0.5)
        return State(model=model, optimizer=optimizer)

    mine, theirs = state(2), state(1)
    with torch.no_grad():
        next(iter(theirs.model.parameters())).add_(1)  # type: ignore[attr-defined]
    before = mine.digest()
    with pytest.raises(Mismatch, match="other groups of parameters"):
        mine.restore(theirs.snapshot())
    assert mine.digest() == before


def test_a_part_that_does_not_take_a_state_is_named() -> None:
    class Picky:
        def state_dict(self) -> dict[str, int]:
            return {"a": 1}

        def load_state_dict(self, state_dict: dict[str, int], /) -> None:
            raise KeyError("a")

    def state() -> State:
        return State(model=exact.make_model(), extra={"picky": Picky()})

    with pytest.raises(Mismatch, match="picky does not take"):
        state().restore(state().snapshot())


@pytest.mark.parametrize(
    "named",
    [
        {"job": ""},
        {"peer_group": -1},
        {"straggler_s": 0.0},
        {"drain_on_sigterm_s": float("nan")},
        {"start_world": 0},
    ],
)
def test_options_that_make_no_sense_are_refused(named: dict[str, Any]) -> None:
    with pytest.raises(Misused):
        Options(elastic=True, **named)
