"""Every collective, by torch's public functions, with exact results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.torch.ranks import Rank, run_ranks

DTYPES = {
    "moved": [
        torch.bool,
        torch.complex64,
        torch.complex128,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2fnuz,
        torch.float8_e8m0fnu,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    ],
    "counted": [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int8,
        torch.uint8,
        torch.int16,
        torch.int32,
        torch.int64,
    ],
}


def filled(value: float, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, value, dtype=torch.float32).to(dtype)


def is_all(tensor: torch.Tensor, value: float) -> bool:
    return torch.equal(tensor, filled(value, tuple(tensor.shape), tensor.dtype))


# ---- copies, of any dtype


def copies(me: Rank) -> list[str]:
    wrong = []
    for dtype in [*DTYPES["moved"], *DTYPES["counted"]]:
        for name, check in COPIES.items():
            if not check(me, dtype):
                wrong.append(f"{name} {dtype}")
    return wrong


def _value(me: Rank, dtype: torch.dtype, rank: int | None = None) -> float:
    return float(((me.rank if rank is None else rank) + 1) % (2 if dtype is torch.bool else 9))


def check_broadcast(me: Rank, dtype: torch.dtype) -> bool:
    tensor = filled(_value(me, dtype), (3, 2), dtype)
    dist.broadcast(tensor, src=1)
    return is_all(tensor, _value(me, dtype, 1))


def check_all_gather(me: Rank, dtype: torch.dtype) -> bool:
    outputs = [torch.empty(5, dtype=dtype) for _ in range(me.world)]
    dist.all_gather(outputs, filled(_value(me, dtype), (5,), dtype))
    return all(is_all(out, _value(me, dtype, rank)) for rank, out in enumerate(outputs))


def check_all_gather_into(me: Rank, dtype: torch.dtype) -> bool:
    output = torch.empty(me.world, 4, dtype=dtype)
    dist.all_gather_into_tensor(output, filled(_value(me, dtype), (1, 4), dtype))
    return all(is_all(output[rank], _value(me, dtype, rank)) for rank in range(me.world))


def check_gather(me: Rank, dtype: torch.dtype) -> bool:
    at_root = me.rank == 1
    outputs = [torch.empty(4, dtype=dtype) for _ in range(me.world)] if at_root else None
    dist.gather(filled(_value(me, dtype), (4,), dtype), outputs, dst=1)
    return outputs is None or all(
        is_all(out, _value(me, dtype, rank)) for rank, out in enumerate(outputs)
    )


def check_scatter(me: Rank, dtype: torch.dtype) -> bool:
    output = torch.empty(3, dtype=dtype)
    parts = [filled(_value(me, dtype, rank), (3,), dtype) for rank in range(me.world)]
    dist.scatter(output, parts if me.rank == 0 else None, src=0)
    return is_all(output, _value(me, dtype))


def check_all_to_all(me: Rank, dtype: torch.dtype) -> bool:
    """Rank p sends q + 1 elements to rank q."""
    inputs = [filled(_value(me, dtype), (q + 1,), dtype) for q in range(me.world)]
    outputs = [torch.empty(me.rank + 1, dtype=dtype) for _ in range(me.world)]
    dist.all_to_all(outputs, inputs)
    return all(is_all(out, _value(me, dtype, rank)) for rank, out in enumerate(outputs))


def check_all_to_all_single(me: Rank, dtype: torch.dtype) -> bool:
    splits = [q + 1 for q in range(me.world)]
    output = torch.empty(me.world * (me.rank + 1), 2, dtype=dtype)
    source = filled(_value(me, dtype), (sum(splits), 2), dtype)
    dist.all_to_all_single(output, source, [me.rank + 1] * me.world, splits)
    even = torch.empty(me.world, dtype=dtype)
    dist.all_to_all_single(even, filled(_value(me, dtype), (me.world,), dtype))
    parts = output.view(me.world, -1)
    return all(
        is_all(parts[r], _value(me, dtype, r)) and is_all(even[r], _value(me, dtype, r))
        for r in range(me.world)
    )


COPIES: dict[str, Callable[[Rank, torch.dtype], bool]] = {
    "broadcast": check_broadcast,
    "all_gather": check_all_gather,
    "all_gather_into_tensor": check_all_gather_into,
    "gather": check_gather,
    "scatter": check_scatter,
    "all_to_all": check_all_to_all,
    "all_to_all_single": check_all_to_all_single,
}


@pytest.mark.parametrize("world", [2, 3])
def test_copies_are_exact_for_every_dtype(world: int) -> None:
    assert run_ranks(copies, world) == [[]] * world


# ---- reductions


def reductions(me: Rank) -> list[str]:
    wrong = []
    values = [rank + 1 for rank in range(me.world)]
    expected = {
        dist.ReduceOp.SUM: sum(values),
        dist.ReduceOp.PRODUCT: torch.tensor(values).prod().item(),
        dist.ReduceOp.MIN: min(values),
        dist.ReduceOp.MAX: max(values),
        dist.ReduceOp.AVG: 2.0,
    }
    for dtype in DTYPES["counted"]:
        for op, wanted in expected.items():
            mine = filled(me.rank + 1 if op != dist.ReduceOp.AVG else 2.0, (4,), dtype)
            tensor = mine.clone()
            dist.all_reduce(tensor, op)
            at_root = mine.clone()
            dist.reduce(at_root, 0, op)
            part = torch.empty(4, dtype=dtype)
            dist.reduce_scatter_tensor(part, mine.repeat(me.world), op)
            listed = torch.empty(4, dtype=dtype)
            dist.reduce_scatter(listed, [mine] * me.world, op)
            good = [is_all(tensor, wanted), is_all(part, wanted), is_all(listed, wanted)]
            if not all(good) or (me.rank == 0 and not is_all(at_root, wanted)):
                wrong.append(f"{op} {dtype} {good}")
    return wrong


@pytest.mark.parametrize("world", [2, 3])
def test_reductions_are_exact_for_every_dtype_with_arithmetic(world: int) -> None:
    assert run_ranks(reductions, world) == [[]] * world


def average(me: Rank) -> list[float]:
    tensor = torch.tensor([float(me.rank), 4.0 * me.rank])
    dist.all_reduce(tensor, dist.ReduceOp.AVG)
    scaled = torch.tensor([8.0 * (me.rank + 1)])
    dist.all_reduce(scaled, dist._make_nccl_premul_sum(0.25))
    counted = torch.tensor([me.rank + 1])
    dist.all_reduce(counted, dist._make_nccl_premul_sum(2.0))
    return [*tensor.tolist(), *scaled.tolist(), *counted.tolist()]


def test_the_mean_divides_and_a_premultiplied_sum_multiplies_first() -> None:
    assert run_ranks(average, 2) == [[0.5, 2.0, 6.0, 6]] * 2


def by_rank_and_place(me: Rank) -> list[str]:
    """Means, and sums of halves, where every rank and place has another input."""
    wrong = []
    count = 3
    places = torch.arange(1.0, count * me.world + 1, dtype=torch.float64)
    inputs = [2 * me.world * (places + 5 * rank) for rank in range(me.world)]  # 256 at most in all
    total = torch.stack(inputs).sum(0)
    own = slice(count * me.rank, count * (me.rank + 1))
    kinds = [(dist.ReduceOp.AVG, 1 / me.world), (dist._make_nccl_premul_sum(0.5), 0.5)]
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for number, (op, factor) in enumerate(kinds):
            wanted = (total * factor).round().to(dtype)
            mine = inputs[me.rank].to(dtype)
            everywhere, at_root = mine.clone(), mine.clone()
            dist.all_reduce(everywhere, op)
            dist.reduce(at_root, 1, op)
            part, listed = torch.empty(count, dtype=dtype), torch.empty(count, dtype=dtype)
            dist.reduce_scatter_tensor(part, mine, op)
            dist.reduce_scatter(listed, list(mine.clone().split(count)), op)
            found = {
                "all_reduce": torch.equal(everywhere, wanted),
                "reduce": torch.equal(at_root, wanted if me.rank == 1 else mine),
                "reduce_scatter_tensor": torch.equal(part, wanted[own]),
                "reduce_scatter": torch.equal(listed, wanted[own]),
            }
            wrong += [f"{name} {number} {dtype}" for name, good in found.items() if not good]
    return wrong


@pytest.mark.parametrize("world", [2, 3])
def test_means_and_premultiplied_sums_are_exact_in_every_place(world: int) -> None:
    assert run_ranks(by_rank_and_place, world) == [[]] * world


def bitwise(me: Rank) -> list[list[int]]:
    found = []
    for op in (dist.ReduceOp.BAND, dist.ReduceOp.BOR, dist.ReduceOp.BXOR):
        tensor = torch.tensor([0b0110, 0b1010], dtype=torch.int32) << me.rank
        dist.all_reduce(tensor, op)
        truth = torch.tensor([me.rank == 0, True])
        dist.all_reduce(truth, op)
        found.append([*tensor.tolist(), *truth.int().tolist()])
    return found


def test_bitwise_reductions_are_exact_for_integers_and_bool() -> None:
    wanted = [
        [0b0110 & 0b1100, 0b1010 & 0b10100, 0, 1],
        [0b0110 | 0b1100, 0b1010 | 0b10100, 1, 1],
        [0b0110 ^ 0b1100, 0b1010 ^ 0b10100, 1, 0],
    ]
    assert run_ranks(bitwise, 2) == [wanted] * 2


def complex_sum(me: Rank) -> list[complex]:
    tensor = torch.tensor([1 + 2j, -3j]) * (me.rank + 1)
    dist.all_reduce(tensor)
    part = torch.empty(1, dtype=torch.complex64)
    dist.reduce_scatter_tensor(part, torch.tensor([1j, 2 + 0j]) * (me.rank + 1))
    return [*tensor.tolist(), *part.tolist()]


def test_complex_numbers_are_summed() -> None:
    first, second = run_ranks(complex_sum, 2)
    assert first == [3 + 6j, -9j, 3j] and second == [3 + 6j, -9j, 6 + 0j]


# ---- layouts


def layouts(me: Rank) -> list[bool]:
    base = torch.zeros(4, 6)
    column = base[:, 1]
    column.fill_(me.rank + 1.0)
    dist.all_reduce(column)
    turned = torch.full((2, 3), float(me.rank)).t()
    dist.broadcast(turned, 1)
    rows = torch.zeros(3, me.world)
    outputs = [rows[:, rank] for rank in range(me.world)]
    dist.all_gather(outputs, torch.full((3,), me.rank + 1.0))
    whole = torch.zeros(me.world * 2)
    dist.all_gather(list(whole.view(me.world, 2)), torch.full((2,), me.rank + 1.0))
    in_place = torch.zeros(me.world)
    in_place[me.rank] = me.rank + 1.0
    dist.all_gather_into_tensor(in_place, in_place[me.rank : me.rank + 1])
    empty = torch.empty(0)
    dist.all_reduce(empty)
    scalar = torch.tensor(me.rank + 1.0)
    dist.all_reduce(scalar)
    return [
        base.sum().item() == 12.0 and torch.equal(column, torch.full((4,), 3.0)),
        torch.equal(turned, torch.ones(3, 2)),
        torch.equal(rows, torch.tensor([[1.0, 2.0]] * 3)),
        torch.equal(whole, torch.tensor([1.0, 1.0, 2.0, 2.0])),
        torch.equal(in_place, torch.tensor([1.0, 2.0])),
        scalar.item() == 3.0,
    ]


def test_views_columns_and_scalars_are_read_and_written_where_they_lie() -> None:
    assert run_ranks(layouts, 2) == [[True] * 6] * 2


def uneven(me: Rank) -> list[list[float]]:
    outputs = [torch.empty(rank + 1) for rank in range(me.world)]
    dist.all_gather(outputs, torch.full((me.rank + 1,), float(me.rank)))
    part = torch.empty(me.rank + 1)
    dist.reduce_scatter(part, [torch.full((r + 1,), 10.0 * r + me.rank) for r in range(me.world)])
    return [*(out.tolist() for out in outputs), part.tolist()]


def test_parts_may_differ_in_size() -> None:
    first, second = run_ranks(uneven, 2)
    assert first == [[0.0], [1.0, 1.0], [1.0]]
    assert second == [[0.0], [1.0, 1.0], [21.0, 21.0]]


def refused(me: Rank) -> list[str]:
    told = []
    shared = torch.zeros(2)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: dist.all_gather([shared, shared], torch.zeros(2)),
        lambda: dist.all_reduce(torch.zeros(1).expand(3)),
        lambda: dist.all_to_all_single(shared, shared),
        lambda: dist.all_reduce(torch.zeros(2).to(torch.float8_e5m2)),
        lambda: dist.all_reduce(torch.zeros(2), dist.ReduceOp.BAND),
        lambda: dist.all_gather_into_tensor(torch.zeros(3), torch.zeros(2)),
        lambda: dist.all_reduce(torch.tensor([3]), dist._make_nccl_premul_sum(0.5)),
        lambda: dist.all_reduce(torch.tensor([True]), dist.ReduceOp.AVG),
        lambda: dist.reduce(torch.tensor([3]), 0, dist.ReduceOp.BOR),
        lambda: dist.reduce_scatter_tensor(torch.ones(1), torch.ones(2), dist.ReduceOp.BAND),
        lambda: dist.broadcast(torch.empty(2, dtype=torch.float4_e2m1fn_x2), 0),
    )
    for call in calls:
        try:
            call()
        except ValueError as error:
            told.append(str(error))
    dist.barrier()  # nothing was sent, so the group goes on
    return told


def test_what_cannot_be_done_is_refused_here_and_the_group_goes_on() -> None:
    for told in run_ranks(refused, 2):
        assert len(told) == 11 and all(text.startswith("[pccl:MISUSED") for text in told), told
        assert "share memory" in told[0] and "share memory" in told[1] and "overlaps" in told[2]
        assert "by 0.5: whole numbers are multiplied by whole numbers" in told[6]


# ---- coalescing and asynchronous calls


def coalesced(me: Rank) -> list[list[float]]:
    reduced = [torch.full((2,), me.rank + number + 1.0) for number in range(3)]
    with dist._coalescing_manager() as manager:
        for tensor in reduced:
            dist.all_reduce(tensor)
    mixed = torch.tensor([float(me.rank)])
    part = torch.empty(1)
    with dist._coalescing_manager(device=torch.device("cpu"), async_ops=True) as manager:
        dist.broadcast(mixed, 1)
        dist.reduce_scatter(part, [torch.ones(1), torch.ones(1)])
    manager.wait()
    gathered = [torch.empty(me.world) for _ in range(2)]
    with dist._coalescing_manager():
        for output in gathered:
            dist.all_gather_into_tensor(output, torch.tensor([float(me.rank)]))
    return [tensor.tolist() for tensor in (*reduced, mixed, part, *gathered)]


def test_a_coalescing_block_does_all_that_is_in_it() -> None:
    wanted = [[3.0, 3.0], [5.0, 5.0], [7.0, 7.0], [1.0], [2.0], [0.0, 1.0], [0.0, 1.0]]
    assert run_ranks(coalesced, 2) == [wanted] * 2


def asynchronous(me: Rank) -> list[float]:
    tensors = [torch.tensor([float(number)]) for number in range(40)]  # more than fly at once
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    again = dist.all_reduce(tensors[0], async_op=True)  # the same memory: after the first
    told = []
    for work in (*works, again):
        assert work is not None
        told.append(work)
    future = told[1].get_future()
    seen = future.then(lambda done: done.value()[0].item()).wait()
    for work in reversed(told):
        work.wait()
    assert all(work.is_completed() and work.exception() is None for work in told)
    return [seen, *(tensor.item() for tensor in tensors[:4])]


def test_asynchronous_calls_run_in_order_and_complete_their_futures() -> None:
    assert run_ranks(asynchronous, 2) == [[2.0, 0.0, 2.0, 4.0, 6.0]] * 2
