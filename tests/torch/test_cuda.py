"""CUDA tensors on groups; skipped where there is no GPU.  Ranks share the GPUs that there are.

The same programs run on a fake device in test_staged.py, on any machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP

from pccl.pytorch import Misused, PeerLost
from tests.torch import exact, test_staged
from tests.torch.ranks import Rank, run_ranks, started

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

CUDA: Any = torch.cuda
SLEEP_CYCLES = 2_000_000_000  # about a second
QUICK_S = 0.5


def device_of(me: Rank) -> torch.device:
    device = torch.device("cuda", me.rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


class CudaDevice:
    """A device as the programs of test_staged know it: kernels go to the current stream."""

    def __init__(self, me: Rank) -> None:
        self._device = device_of(me)

    def tensor(self, data: torch.Tensor) -> torch.Tensor:
        return data.to(self._device)

    def compute(self, act: Callable[[], object]) -> None:
        CUDA._sleep(1_000_000)
        act()

    def synchronize(self) -> None:
        torch.cuda.synchronize()


def reducing(me: Rank) -> dict[str, Any]:
    return test_staged.reducing(me, CudaDevice(me))


def moving(me: Rank) -> dict[str, Any]:
    return test_staged.moving(me, CudaDevice(me))


def test_every_collective_is_exact_on_cuda() -> None:
    assert run_ranks(reducing, 2) == [test_staged.reduced(0), test_staged.reduced(1)]
    assert run_ranks(moving, 2) == [test_staged.moved(0), test_staged.moved(1)]


def ahead(me: Rank) -> list[Any]:
    """The copy waits for the kernel that writes the input, the program does not."""
    device = device_of(me)
    seconds, early = 0.0, True
    for cycles in (1, SLEEP_CYCLES):  # kernels and buffers are made once, and that waits
        torch.cuda.synchronize()
        tensor = torch.zeros(1 << 16, device=device)
        began_s = time.monotonic()
        CUDA._sleep(cycles)
        tensor += 1
        work = dist.all_reduce(tensor, async_op=True)
        seconds = time.monotonic() - began_s
        assert work is not None
        early = work.is_completed()
        work.wait()
        tensor *= 2  # on the program's stream, which waits for the result
    return [seconds < QUICK_S, early, sorted(set(tensor.tolist()))]


def test_a_call_returns_before_its_input_is_computed() -> None:
    assert run_ranks(ahead, 2) == [[True, False, [4.0]]] * 2


def streams(me: Rank) -> list[float]:
    """Operations on a stream of the program's own, whose memory is used again at once."""
    device = device_of(me)
    side = CUDA.Stream(device)
    found = []
    with torch.cuda.stream(side):
        for number in range(20):
            tensor = torch.full((1 << 18,), float(number), device=device)
            work = dist.all_reduce(tensor, async_op=True)
            assert work is not None
            work.wait()
            found.append(tensor[-1].item())
            del tensor
    return found


def test_operations_follow_the_stream_that_they_are_called_on() -> None:
    assert run_ranks(streams, 2) == [[2.0 * number for number in range(20)]] * 2


def train(me: Rank, how: str) -> list[Any]:
    device = device_of(me)
    model = exact.make_model().to(device)
    if how == "ddp":
        trained: Any = DDP(model, bucket_cap_mb=1e-4)
    else:
        trained = fully_shard(model, mesh=init_device_mesh("cuda", (me.world,)))
    optimizer = torch.optim.SGD(trained.parameters(), lr=exact.RATE)
    for step in range(exact.STEPS):
        optimizer.zero_grad()
        loss: Any = exact.loss_of(trained, exact.batch(me.rank, step).to(device))
        loss.backward()
        optimizer.step()
    full = [getattr(p, "full_tensor", lambda p=p: p)() for p in trained.parameters()]
    return [parameter.detach().cpu().tolist() for parameter in full]


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_training_on_cuda_has_the_exact_parameters(how: str) -> None:
    wanted = [parameter.tolist() for parameter in exact.reference(2)]
    assert run_ranks(train, 2, how) == [wanted] * 2


def captured(me: Rank) -> None:
    tensor = torch.zeros(4, device=device_of(me))
    dist.all_reduce(tensor)
    graph = CUDA.CUDAGraph()
    with (
        pytest.raises(Misused, match="CUDA graph"),
        torch.cuda.graph(graph),
    ):
        dist.all_reduce(tensor)


def test_a_graph_cannot_capture_an_operation() -> None:
    run_ranks(captured, 1)


def lost(me: Rank) -> list[float]:
    tensor = torch.full((4,), 5.0, device=device_of(me))
    dist.all_reduce(tensor)
    torch.cuda.synchronize()
    me.say("ready")
    if me.rank == 1:
        time.sleep(60)
    with pytest.raises(PeerLost, match="rank 1"):
        dist.all_reduce(tensor)
    return tensor.tolist()


def test_a_lost_rank_leaves_cuda_tensors_as_they_were() -> None:
    with started(lost, 2) as ranks:
        assert [ranks.hear(rank) for rank in range(2)] == ["ready"] * 2
        ranks.kill(1)
        assert ranks.hear(0) == [10.0] * 4
