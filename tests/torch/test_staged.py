"""Groups with tensors of a device, which is a fake one: every collective, order, failures.

What a real device does with the same calls is in test_cuda.py, which needs one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d
from torch.distributed.distributed_c10d import _coalescing_manager

from pccl.pytorch import Aborted, Mismatch, Misused, PeerLost
from pccl.pytorch.staged import Staging
from pccl.pytorch.staging import Pool
from tests.torch.fake_device import FakeDevice
from tests.torch.ranks import Rank, run_ranks, started

Tensor = torch.Tensor
QUICK_S = 2.0


def world() -> Any:
    return dist.group.WORLD


def on_device() -> FakeDevice:
    device = FakeDevice()
    run = world().run
    run.queues.clear()
    world()._staging = Staging(run, device, Pool(device.page_locked))
    return device


class OnDevice:
    """One rank's program: rank r's tensors hold r + 1, written by kernels that run late."""

    def __init__(self, me: Rank, device: Any = None) -> None:
        self.device = device or on_device()
        self.own, self.rank, self.world = float(me.rank + 1), me.rank, me.world
        self.found: dict[str, Any] = {}

    def full(self, *shape: int, value: float | None = None) -> Tensor:
        tensor = self.device.tensor(torch.zeros(shape))
        self.device.compute(lambda: threading.Event().wait(0.005))
        self.device.compute(lambda: tensor.fill_(self.own if value is None else value))
        return tensor

    def row(self, start: float) -> Tensor:
        tensor = self.device.tensor(torch.zeros(self.world))
        self.device.compute(lambda: tensor.copy_(torch.arange(start, start + self.world)))
        return tensor

    def each(self) -> list[Tensor]:
        return [self.full(1) for _ in range(self.world)]

    def keep(self, name: str, work: Any, *results: Tensor) -> None:
        """Waits for a Work, if there is one, and looks at the results by a kernel."""
        if work is not None:
            work.wait()
        seen: list[Any] = []
        self.device.compute(lambda: seen.extend(r.tolist() for r in results))
        self.device.synchronize()
        self.found[name] = seen


def reducing(me: Rank, device: Any = None) -> dict[str, Any]:
    p = OnDevice(me, device)
    one = p.full(2)
    p.keep("all_reduce", dist.all_reduce(one), one)
    one = p.full(2)
    p.keep("premul_sum", dist.all_reduce(one, c10d._make_nccl_premul_sum(0.5)), one)
    one = p.full(2)
    p.keep("a work", dist.all_reduce(one, async_op=True), one)
    wide = p.full(2, 4)
    p.keep("strided", dist.all_reduce(wide[:, ::2]), wide)
    one = p.full(1)
    p.keep("reduce", dist.reduce(one, 1), one)
    out = p.full(1)
    p.keep("reduce_scatter", dist.reduce_scatter(out, p.each()), out)
    out = p.full(1)
    p.keep("reduce_scatter_tensor", dist.reduce_scatter_tensor(out, p.row(p.own)), out)
    two = [p.full(1), p.full(3)]
    with _coalescing_manager(async_ops=True) as block:
        for tensor in two:
            dist.all_reduce(tensor)
    p.keep("coalesced", block, *two)
    one = p.full(1)
    work = dist.all_reduce(one, async_op=True)
    assert work is not None
    (value,) = work.get_future().wait()
    assert value is one
    p.keep("a future", work, one)
    return p.found


def reduced(rank: int) -> dict[str, Any]:
    return {
        "all_reduce": [[3, 3]],
        "premul_sum": [[1.5, 1.5]],
        "a work": [[3, 3]],
        "strided": [[[3, rank + 1, 3, rank + 1]] * 2],
        "reduce": [[3]] if rank == 1 else [[1]],
        "reduce_scatter": [[3]],
        "reduce_scatter_tensor": [[3 + 2 * rank]],
        "coalesced": [[3], [3, 3, 3]],
        "a future": [[3]],
    }


def test_reductions_of_a_devices_tensors_are_exact() -> None:
    assert run_ranks(reducing, 2) == [reduced(0), reduced(1)]


def moving(me: Rank, device: Any = None) -> dict[str, Any]:
    p = OnDevice(me, device)
    root, ours, n = me.rank == 1, p.own, me.world
    one = p.full(1)
    p.keep("broadcast", dist.broadcast(one, 1), one)
    outs = p.each()
    p.keep("all_gather", dist.all_gather(outs, p.full(1)), *outs)
    out = p.full(n)
    p.keep("all_gather_into_tensor", dist.all_gather_into_tensor(out, p.full(1)), out)
    out, other = p.row(0), 1 - me.rank  # the input is a part of the output, and of the other's
    p.keep("in place", dist.all_gather_into_tensor(out, out[other : other + 1]), out)
    outs = p.each() if root else []
    p.keep("gather", dist.gather(p.full(1), outs or None, 1), *outs)
    ins = [p.full(1, value=10.0 + r) for r in range(n)] if root else None
    out = p.full(1)
    p.keep("scatter", dist.scatter(out, ins, 1), out)
    out = p.full(n)
    p.keep("all_to_all_single", dist.all_to_all_single(out, p.row(10 * ours)), out)
    outs, ins = p.each(), [p.full(1, value=10 * ours + r) for r in range(n)]
    p.keep("all_to_all", dist.all_to_all(outs, ins), *outs)
    p.keep("barrier", dist.barrier())
    got = p.full(1)
    sending = dist.isend(p.full(1), (me.rank + 1) % n, tag=2)
    p.keep("recv", dist.irecv(got, (me.rank - 1) % n, tag=2), got)
    assert sending is not None
    sending.wait()
    assert dist.recv(got, tag=3) == 0 if root else dist.send(got, 1, tag=3) is None
    host = torch.zeros(n)
    p.keep("to the host", dist.all_gather_into_tensor(host, p.full(1)), host)
    return p.found


def moved(rank: int) -> dict[str, Any]:
    return {
        "broadcast": [[2]],
        "all_gather": [[1], [2]],
        "all_gather_into_tensor": [[1, 2]],
        "in place": [[1, 0]],
        "gather": [[1], [2]] if rank == 1 else [],
        "scatter": [[10 + rank]],
        "all_to_all_single": [[10 + rank, 20 + rank]],
        "all_to_all": [[10 + rank], [20 + rank]],
        "barrier": [],
        "recv": [[2 - rank]],
        "to the host": [[1, 2]],
    }


def test_collectives_and_messages_that_move_a_devices_tensors_are_exact() -> None:
    assert run_ranks(moving, 2) == [moved(0), moved(1)]


def ahead(me: Rank) -> list[Any]:
    """The program runs ahead of its device, as in a backward pass."""
    device = on_device()
    gate = device.hold()
    ones = [device.tensor(torch.zeros(4)) for _ in range(3)]
    began_s = time.monotonic()
    works = []
    for number, tensor in enumerate(ones):
        device.compute(partial(tensor.fill_, number + me.rank))
        works.append(dist.all_reduce(tensor, async_op=True))
    on_host = torch.ones(2)
    works.append(dist.all_reduce(on_host, async_op=True))  # behind them
    works.append(dist.barrier(async_op=True))
    seconds = time.monotonic() - began_s
    early = [work.is_completed() for work in works if work is not None]
    me.meet("ahead")
    gate.set()
    for work in works:
        assert work is not None
        work.wait()
    device.synchronize()
    return [seconds < QUICK_S, any(early), [one[0].item() for one in ones], on_host.tolist()]


def test_no_call_waits_for_the_device_and_what_follows_keeps_its_place() -> None:
    assert run_ranks(ahead, 2) == [[True, False, [1, 3, 5], [2, 2]]] * 2


def buffers(me: Rank) -> list[int]:
    device = on_device()
    tensor = device.tensor(torch.ones(1 << 16))
    for _ in range(20):
        dist.all_reduce(tensor)
        device.synchronize()
    return [len(device.allocated), max(device.allocated)]


def test_one_buffer_serves_call_after_call() -> None:
    assert run_ranks(buffers, 2) == [[1, 1 << 18]] * 2


def fails(call: Callable[[], Any], kind: type[BaseException], text: str) -> None:
    with pytest.raises(kind, match=text):
        call()


def failing(me: Rank) -> list[float]:
    device = on_device()
    tensor = device.tensor(torch.full((4 + me.rank,), 7.0))
    fails(lambda: dist.all_reduce(tensor), Mismatch, "MISMATCH")
    work = dist.all_reduce(tensor, async_op=True)
    assert work is not None
    fails(lambda: work.get_future().wait(), RuntimeError, r"\[pccl:MISMATCH")
    device.synchronize()
    assert tensor.tolist() == [7.0] * (4 + me.rank)
    fails(lambda: dist.all_reduce(tensor, dist.ReduceOp.BAND), Misused, "bitwise")
    wide = device.tensor(torch.zeros(1)).expand(3)
    fails(lambda: dist.all_reduce(wide), Misused, "share memory")
    same = device.tensor(torch.zeros(2))
    fails(lambda: dist.all_gather([same for _ in range(me.world)], same), Misused, "share memory")
    odd = device.tensor(torch.zeros(2, dtype=torch.complex64)).conj()
    fails(lambda: world().broadcast([odd], root(0)).wait(), Misused, "view") if me.rank else None
    dist.barrier()
    good = device.tensor(torch.ones(1))
    dist.all_reduce(good)
    device.synchronize()
    return good.tolist()


def root(rank: int) -> dist.BroadcastOptions:
    opts = dist.BroadcastOptions()
    opts.rootRank = rank
    return opts


def test_a_call_that_fails_leaves_the_devices_memory_alone() -> None:
    assert run_ranks(failing, 2) == [[2.0]] * 2


def ended(me: Rank) -> list[Any]:
    device = on_device()
    gate = device.hold()
    tensor = device.tensor(torch.zeros(4))
    work = dist.all_reduce(tensor, async_op=True)
    behind = dist.barrier(async_op=True)
    assert work is not None and behind is not None
    future = work.get_future()
    threading.Timer(0.3, gate.set).start()
    world().abort()
    fails(work.wait, Aborted, "aborted")
    fails(behind.wait, Aborted, "aborted")
    fails(future.wait, RuntimeError, r"\[pccl:ABORTED")
    fails(lambda: dist.all_reduce(tensor), Aborted, "aborted")
    dist.destroy_process_group()
    return [t.name for t in threading.enumerate() if t.name.startswith("pccl-launch")]


def test_abort_ends_what_is_queued_and_leaves_no_thread() -> None:
    assert run_ranks(ended, 2) == [[], []]


def lost(me: Rank) -> float:
    device = on_device()
    tensor = device.tensor(torch.full((4,), 5.0))
    dist.all_reduce(tensor)
    me.say("ready")
    if me.rank == 1:
        time.sleep(60)
    fails(lambda: dist.all_reduce(tensor), PeerLost, "rank 1")
    fails(lambda: dist.all_reduce(tensor), PeerLost, "STALE_VIEW")
    device.synchronize()
    return tensor[0].item()


def test_a_lost_rank_is_told_to_who_waits_for_a_device_too() -> None:
    with started(lost, 2) as ranks:
        assert [ranks.hear(rank) for rank in range(2)] == ["ready"] * 2
        ranks.kill(1)
        assert ranks.hear(0) == 10.0
