"""What is decided about tensors of a device: buffers, twins, roles of arguments, order of calls."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pccl.base.clock import system_clock
from pccl.base.errors import DeadlineExceeded, UsageError
from pccl.pytorch import PcclDistError
from pccl.pytorch.launcher import Launcher, Pending
from pccl.pytorch.staged import ROLES, HostGroup, alike, flat, positional, roles_of
from pccl.pytorch.staging import BLOCK_BYTES_MIN, Pool, block_bytes, carve
from tests.torch.fake_device import FakeMark

Tensor = torch.Tensor


def plain(size_bytes: int) -> Tensor:
    return torch.empty(size_bytes, dtype=torch.uint8)


# ---- buffers


def test_sizes_are_rounded_up_by_a_quarter_at_most_and_to_few_sizes() -> None:
    sizes = range(1, 1 << 16, 37)
    rounded = [block_bytes(size) for size in sizes]
    assert all(got >= size for size, got in zip(sizes, rounded, strict=True))
    bounds = [max(size * 1.25, BLOCK_BYTES_MIN) for size in sizes]
    assert all(got <= bound for got, bound in zip(rounded, bounds, strict=True))
    assert len(set(rounded)) < 20
    assert block_bytes(0) == BLOCK_BYTES_MIN and block_bytes(1 << 20) == 1 << 20


def test_a_buffer_is_lent_again_when_the_copy_from_it_is_over() -> None:
    pool = Pool(plain)
    first = pool.take(5000)
    copying = FakeMark()
    pool.give(first, [copying])
    second = pool.take(5000)
    assert second.data_ptr() != first.data_ptr() and pool.free_bytes == 0
    copying.set()
    assert pool.free_bytes == first.numel()
    assert pool.take(5001).data_ptr() == first.data_ptr()


def test_the_pool_keeps_no_more_than_its_limit_and_lets_the_oldest_go() -> None:
    pool = Pool(plain, free_bytes_max=3 << 20)
    blocks = [pool.take(1 << 20) for _ in range(5)]
    for block in blocks:
        pool.give(block)
    assert pool.free_bytes == 3 << 20
    kept = {pool.take(1 << 20).data_ptr() for _ in range(3)}
    assert kept == {block.data_ptr() for block in blocks[2:]}


def test_twins_of_one_dtype_lie_in_one_piece_and_others_are_aligned() -> None:
    tensors = [torch.ones(3), torch.ones(2, 2), torch.ones(1, dtype=torch.int8), torch.ones(())]
    twins, block = carve(tensors, plain)
    assert [(t.shape, t.dtype) for t in twins] == [(t.shape, t.dtype) for t in tensors]
    at = [twin.data_ptr() - block.data_ptr() for twin in twins]
    assert at == [0, 12, 64, 128]


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.complex64, torch.int64])
def test_any_dtype_has_twins_also_of_no_elements(dtype: torch.dtype) -> None:
    twins, _ = carve([torch.zeros(0, dtype=dtype), torch.zeros(2, 0, dtype=dtype)], plain)
    assert [twin.shape for twin in twins] == [(0,), (2, 0)]
    (twin,), _ = carve([torch.ones(3, dtype=dtype)], plain)
    assert twin.copy_(torch.ones(3, dtype=dtype)).sum() == 3


# ---- what the arguments are


def test_every_call_of_a_group_that_moves_tensors_has_its_roles() -> None:
    calls = {
        name
        for kind in HostGroup.__mro__[1:3]
        for name in vars(kind)
        if callable(getattr(kind, name)) and not name.startswith(("__", "_s", "_e", "_l"))
    }
    inner = {name for name in calls if name.startswith("_") and not name.endswith("_base")}
    assert calls - inner - {"monitored_barrier"} == set(ROLES)


@pytest.mark.parametrize(
    ("name", "rank", "roles"),
    [
        ("reduce", 1, "u"),
        ("reduce", 0, "i"),
        ("broadcast", 1, "i"),
        ("broadcast", 0, "o"),
        ("allgather", 0, "oi"),
        ("send", 0, "i"),
        ("barrier", 0, ""),
    ],
)
def test_what_an_argument_is_depends_on_the_root(name: str, rank: int, roles: str) -> None:
    opts = dist.BroadcastOptions()
    opts.rootRank = 1
    assert roles_of(name, ([torch.ones(1)], opts), rank) == roles


def test_arguments_keep_their_form_when_their_tensors_are_replaced() -> None:
    a, b, c = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    nested = [[a, b], [c]]
    assert [t.item() for t in flat(nested)] == [0, 1, 2]
    replaced = alike(nested, iter([c, a, b]))
    assert [[t.item() for t in row] for row in replaced] == [[2, 0], [1]]
    assert alike(None, iter([])) is None
    assert positional("send", ([a],), {"dstRank": 3}) == ([a], 3, 0)


# ---- the order of calls


class StubPending:
    """A call that takes its time to be launched."""

    def __init__(self, log: list[int], number: int, gate: threading.Event) -> None:
        self._log, self._number, self._gate = log, number, gate

    def launch(self) -> None:
        assert self._gate.wait(10)
        self._log.append(self._number)


def test_calls_are_launched_in_their_order_and_the_thread_ends_with_the_launcher() -> None:
    log: list[int] = []
    gates = [threading.Event() for _ in range(4)]
    launcher = Launcher("test")
    assert launcher.idle
    for number, gate in enumerate(gates):
        launcher.submit(StubPending(log, number, gate))  # type: ignore[arg-type]
    for gate in reversed(gates):
        assert not launcher.idle
        gate.set()
    launcher.drain(10)
    assert launcher.idle and log == [0, 1, 2, 3]
    launcher.close()
    assert not any("pccl-launch" in thread.name for thread in threading.enumerate())


def stuck() -> Pending:
    """A call whose device never gets there, and that fails when it does."""

    def make() -> Any:
        raise ValueError("of no use")

    def translate(error: BaseException, op: str) -> PcclDistError:
        return PcclDistError(str(error), op=op)

    return Pending("all_reduce", [], make, translate, 0.05)


def test_a_call_that_is_not_launched_is_waited_for_within_its_time() -> None:
    pending = stuck()
    for timeout_s in (0.01, None):
        with pytest.raises(DeadlineExceeded, match="all_reduce still waits for its device"):
            pending.wait(timeout_s)
    assert not pending.done() and pending.deadline_s() > system_clock()
    with pytest.raises(UsageError, match="yet to be launched"):
        _ = pending.peer


def test_a_call_that_cannot_be_made_has_failed_for_who_waits_and_who_is_told() -> None:
    pending, told = stuck(), []
    pending.when_done(lambda: told.append("before"))
    pending.launch()
    pending.when_done(lambda: told.append("after"))
    assert told == ["before", "after"] and pending.done()
    for wait in (pending.wait, pending.settle):
        with pytest.raises(PcclDistError, match=r"\[pccl:FAILED op=all_reduce\] of no use"):
            wait()
