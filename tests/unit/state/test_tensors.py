"""What can be shared, and how values that are no memory of their own come and go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pccl.base.errors import UsageError
from pccl.state.shared import SharedState
from pccl.state.tensors import cells_of

torch = pytest.importorskip("torch")


def copy_into(source: SharedState, target: SharedState) -> None:
    """As a fetch does."""
    source.survey()
    assert source.layout == target.layout
    with target.writing():
        target.pull()
        for leaf in source.layout.leaves:
            target.memory_of(leaf)[:] = source.memory_of(leaf)
        target.push()
    assert target.root() == source.root()


def names(tree: Any) -> list[str]:
    return [cell.entry.name for cell in cells_of(tree)[0]]


def test_nested_values_are_named_by_their_way() -> None:
    tree = {"b": {"x": np.zeros(2), "y": [1, 2.5]}, "a": torch.zeros(3, 2), "none": None, "s": "x"}
    assert names(tree) == ["b.x", "b.y.0", "b.y.1", "a"]


def test_numbers_in_dicts_lists_and_tuples_are_received() -> None:
    def tree(k: int) -> Any:
        return {"n": k, "l": [k, True], "t": (0.5 * k, (k, 2)), "x": np.full(3, k)}

    one, other = tree(1), tree(2)
    copy_into(SharedState(one), SharedState(other))
    assert other["n"] == 1 and other["l"] == [1, True] and other["t"] == (0.5, (1, 2))
    assert (other["x"] == 1).all() and type(other["l"][1]) is bool


def test_tensors_that_do_not_lie_in_one_piece_are_shared_through_a_twin() -> None:
    def tree(k: int) -> Any:
        return {"t": torch.arange(12.0).reshape(3, 4).t() * k, "h": torch.full((5,), k).bfloat16()}

    one, other = tree(1), tree(2)
    assert not other["t"].is_contiguous()
    copy_into(SharedState(one), SharedState(other))
    assert torch.equal(other["t"], one["t"]) and torch.equal(other["h"], one["h"])


def model_of(seed: int) -> tuple[Any, Any, Any]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 * seed, weight_decay=0.1)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2)


def step(model: Any, optimizer: Any, scheduler: Any) -> None:
    optimizer.zero_grad()
    model(torch.ones(4, 5)).square().sum().backward()
    optimizer.step()
    scheduler.step()


def test_a_newcomer_with_a_fresh_optimizer_receives_all_of_the_members() -> None:
    ours, theirs = model_of(1), model_of(2)
    for _ in range(3):
        step(*ours)
    keys = ("model", "optimizer", "scheduler")
    one = SharedState(dict(zip(keys, ours, strict=True)))
    other = SharedState(dict(zip(keys, theirs, strict=True)))
    copy_into(one, other)
    assert theirs[1].param_groups[0]["lr"] == ours[1].param_groups[0]["lr"]
    assert theirs[2].last_epoch == 3
    for _ in range(2):  # and both go on alike
        step(*ours)
        step(*theirs)
    assert one.root() == other.root()
    for a, b in zip(ours[0].state_dict().values(), theirs[0].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_making_an_optimizers_state_changes_no_parameter_and_no_later_step() -> None:
    plain, shared = model_of(3), model_of(3)
    before = [p.clone() for p in shared[0].parameters()]
    SharedState({"optimizer": shared[1]})
    after = list(shared[0].parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in after)
    for _ in range(3):
        step(*plain)
        step(*shared)
    for a, b in zip(plain[0].parameters(), shared[0].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({}, "at least one"),
        ([np.zeros(1)], "mapping"),
        ({"a": object()}, "'a'"),
        ({"a": {"b": np.array(["text"])}}, "'a.b'"),
        ({"a": np.zeros(4)[::2]}, "contiguous"),
    ],
)
def test_what_cannot_be_shared_is_named(tree: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SharedState(tree)


def test_a_read_only_array_is_refused() -> None:
    array = np.zeros(3)
    array.flags.writeable = False
    with pytest.raises(UsageError, match="read-only"):
        SharedState({"a": array})


def test_a_number_that_became_something_else_is_named() -> None:
    tree: dict[str, Any] = {"n": 1}
    state = SharedState(tree)
    tree["n"] = 1.5
    with pytest.raises(UsageError, match="'n' was a int"):
        state.root()
