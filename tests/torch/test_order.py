"""Calls on memory that another one in flight still uses give what they would give in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.torch.ranks import Rank, run_ranks
from tests.torch.test_staged import OnDevice

WORLD = 2


def reduced_twice(_: Rank) -> tuple[torch.Tensor, list[Any]]:
    view = torch.ones(3, 4).t()
    return view, [dist.all_reduce(view, async_op=True), dist.all_reduce(view, async_op=True)]


def reduced_as_it_lies_and_then_as_a_view(_: Rank) -> tuple[torch.Tensor, list[Any]]:
    whole = torch.ones(300, 400)
    first = dist.all_reduce(whole, async_op=True)
    return whole, [first, dist.all_reduce(whole.t(), async_op=True)]


def gathered_and_then_reduced(me: Rank) -> tuple[torch.Tensor, list[Any]]:
    rows = [torch.zeros(5) for _ in range(WORLD)]
    first = dist.all_gather(rows, torch.full((5,), me.rank + 1.0), async_op=True)
    return rows[1], [first, dist.all_reduce(rows[1], async_op=True)]


def given_by_one_and_then_by_the_other(me: Rank) -> tuple[torch.Tensor, list[Any]]:
    column = torch.full((4, 3), me.rank + 3.0)[:, 1]
    return column, [dist.broadcast(column, root, async_op=True) for root in (1, 0)]


def read_and_then_written(me: Rank) -> tuple[torch.Tensor, list[Any]]:
    """An input that the engine may still read when a later result is copied there."""
    whole = torch.full((300, 400), me.rank + 1.0)
    parts = torch.zeros(2 * 300, 400)
    first = dist.all_gather_into_tensor(parts, whole, async_op=True)
    second = dist.broadcast(whole.t(), 1, async_op=True)
    assert first is not None and second is not None
    second.wait()
    return parts, [first]


def scaled_after_a_sum(_: Rank) -> tuple[torch.Tensor, list[Any]]:
    values = torch.ones(70_000)
    twice = dist._make_nccl_premul_sum(2.0)
    return values, [
        dist.all_reduce(values, async_op=True),
        dist.all_reduce(values, op=twice, async_op=True),
    ]


EXPECTED: dict[Callable[[Rank], tuple[torch.Tensor, list[Any]]], set[float]] = {
    reduced_twice: {4.0},
    reduced_as_it_lies_and_then_as_a_view: {4.0},
    gathered_and_then_reduced: {4.0},
    given_by_one_and_then_by_the_other: {4.0},
    read_and_then_written: {1.0, 2.0},
    scaled_after_a_sum: {8.0},
}


def in_turn(me: Rank, name: str, backwards: bool) -> set[float]:
    call = next(call for call in EXPECTED if call.__name__ == name)
    tensor, works = call(me)
    for work in reversed(works) if backwards else works:
        work.wait()
    return set(tensor.flatten().tolist())


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", [call.__name__ for call in EXPECTED])
def test_calls_on_the_same_memory_are_as_if_made_in_turn(name: str, backwards: bool) -> None:
    expected = next(values for call, values in EXPECTED.items() if call.__name__ == name)
    assert run_ranks(in_turn, WORLD, name, backwards) == [expected] * WORLD


def on_a_device(me: Rank, backwards: bool) -> list[float]:
    here = OnDevice(me)
    tensor = here.full(3)
    works: list[Any] = [dist.all_reduce(tensor, async_op=True) for _ in range(3)]
    rows = [here.full(3, value=0.0) for _ in range(WORLD)]
    works.append(dist.all_gather(rows, tensor, async_op=True))
    works.append(dist.all_reduce(rows[0], async_op=True))
    for work in reversed(works) if backwards else works:
        work.wait()
    here.device.synchronize()
    return [*tensor.tolist(), *rows[0].tolist()]


@pytest.mark.parametrize("backwards", [False, True])
def test_calls_on_the_same_memory_of_a_device_are_as_if_made_in_turn(backwards: bool) -> None:
    expected = [3.0 * 4] * 3 + [3.0 * 8] * 3  # (1 + 2) * 2 * 2, and that from each of two
    assert run_ranks(on_a_device, WORLD, backwards) == [expected] * WORLD


def many(_: Rank) -> list[float]:
    """More unfinished works than are kept, none of which is ever waited for."""
    views = [torch.ones(2, 3).t() for _ in range(300)]
    works = [dist.all_reduce(view, async_op=True) for view in views]
    dist.barrier()
    done = [work.is_completed() for work in works if work is not None]
    assert all(done)
    return [view.sum().item() for view in views]


def test_works_that_nobody_waits_for_write_their_results() -> None:
    assert run_ranks(many, WORLD) == [[12.0] * 300] * WORLD


# ---- outputs that share memory


def shared(me: Rank) -> tuple[list[str], list[float]]:
    matrix = torch.zeros(4, 2)
    odd = torch.zeros(8).as_strided((2, 4), (2, 1))
    own = torch.ones(4)
    square = torch.ones(2, 2)
    told = []
    calls: tuple[Callable[[], object], ...] = (
        lambda: dist.all_gather([matrix[:, 0], matrix[:, 0]], own),
        lambda: dist.all_gather_into_tensor(odd, own),
        lambda: dist.all_reduce_coalesced([square.t(), square.t()]),
        lambda: dist.all_reduce_coalesced([square.t(), square[:, 0]]),
    )
    for call in calls:
        try:
            call()
        except ValueError as error:
            told.append(str(error))
    dist.all_gather([matrix[:, 0], matrix[:, 1]], own * (me.rank + 1))  # apart: columns
    return told, matrix.flatten().tolist()


def test_outputs_with_gaps_that_share_memory_are_refused_and_those_apart_are_not() -> None:
    for told, gathered in run_ranks(shared, WORLD):
        assert len(told) == 4 and all("share memory" in text for text in told), told
        assert gathered == [1.0, 2.0] * 4
