"""DistributedDataParallel on the backend, bit by bit against one process."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.torch import exact
from tests.torch.ranks import Rank, run_ranks

OVERLAP_S = 30.0  # what does not overlap would not be there however long backward took
TINY_MB = 1e-4  # a hundred bytes: every parameter is a bucket of its own

WAYS: dict[str, dict[str, Any]] = {
    "one bucket": {},
    "many buckets": {"bucket_cap_mb": TINY_MB},
    "gradients in buckets": {"gradient_as_bucket_view": True, "bucket_cap_mb": TINY_MB},
    "a static graph": {"static_graph": True},
    "a search for unused parameters": {"find_unused_parameters": True},
}


def trained(me: Rank, way: str) -> bool:
    model = DDP(exact.make_model(layers=4), **WAYS[way])
    found = exact.train(model, me.rank)
    return exact.same(found, exact.reference(me.world, make=lambda: exact.make_model(layers=4)))


@pytest.mark.parametrize("way", list(WAYS))
def test_training_is_that_of_one_process_with_all_batches(way: str) -> None:
    assert run_ranks(trained, 2, way) == [True, True]


def trained_by_four(me: Rank) -> bool:
    return exact.same(exact.train(DDP(exact.make_model()), me.rank), exact.reference(me.world))


def test_four_ranks_train_as_one_process() -> None:
    assert run_ranks(trained_by_four, 4) == [True] * 4


def accumulated(me: Rank) -> list[bool]:
    model = DDP(exact.make_model())
    with model.no_sync():
        exact.backward(model, exact.batch(me.rank, 0))
    alone = exact.make_model()
    exact.backward(alone, exact.batch(me.rank, 0))
    own = exact.same(_gradients(model), _gradients(alone))
    exact.backward(model, exact.batch(me.rank, 1))
    both = exact.make_model()
    for rank in range(me.world):
        for step in range(2):
            exact.backward(both, exact.batch(rank, step))
    mean = [gradient / me.world for gradient in _gradients(both)]
    return [own, exact.same(_gradients(model), mean)]


def _gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_no_sync_keeps_gradients_apart_until_the_next_backward() -> None:
    assert run_ranks(accumulated, 2) == [[True, True]] * 2


class PartlyUsed(nn.Module):
    """Rank 1 leaves the second branch out."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Linear(exact.WIDTH, exact.WIDTH, dtype=torch.float64)
        self.sometimes = nn.Linear(exact.WIDTH, exact.WIDTH, dtype=torch.float64)
        exact.fill(self)

    def forward(self, inputs: torch.Tensor, both: bool) -> torch.Tensor:
        hidden: torch.Tensor = self.always(inputs)
        return self.sometimes(hidden) if both else hidden


def partly_used(me: Rank) -> bool:
    model = DDP(PartlyUsed(), find_unused_parameters=True)
    model(exact.batch(me.rank, 0), me.rank == 0).sum().backward()
    alone = PartlyUsed()
    for rank in range(me.world):
        alone(exact.batch(rank, 0), rank == 0).sum().backward()
    return exact.same(_gradients(model), [g / me.world for g in _gradients(alone)])


def test_a_parameter_that_one_rank_does_not_use_counts_as_zero_there() -> None:
    assert run_ranks(partly_used, 2) == [True, True]


def buffers(me: Rank) -> list[float]:
    model = nn.BatchNorm1d(exact.WIDTH, dtype=torch.float64)
    model.running_mean = torch.full((exact.WIDTH,), float(me.rank), dtype=torch.float64)
    wrapped = DDP(model)
    wrapped.eval()
    wrapped(exact.batch(me.rank, 0))
    assert model.running_mean is not None
    return model.running_mean.tolist()


def test_buffers_are_those_of_rank_0() -> None:
    assert run_ranks(buffers, 2) == [[0.0] * exact.WIDTH] * 2


def overlapped(me: Rank) -> tuple[bool, bool]:
    """Returns whether the last layer's mean was there before backward; and whether it was there by
    the first layer's turn, and all means at the end."""
    model = DDP(exact.make_model(), bucket_cap_mb=TINY_MB, gradient_as_bucket_view=True)
    exact.backward(model, exact.batch(me.rank, 0))  # DDP arranges its buckets after a first pass
    model.zero_grad()
    alone = exact.make_model()
    for rank in range(me.world):
        share = exact.make_model()
        exact.backward(share, exact.batch(rank, 1))
        assert _gradients(share)[-1].any(), "the mean could not be told from the other's share"
        exact.backward(alone, exact.batch(rank, 1))
    parameters, wanted = list(model.parameters()), [g / me.world for g in _gradients(alone)]
    seen = []

    def there() -> bool:
        gradient = parameters[-1].grad
        return gradient is not None and torch.equal(gradient, wanted[-1])

    def amid_backward(gradient: torch.Tensor) -> None:
        """Holds up the first layer's weight until the last layer's bias has been reduced."""
        until = time.monotonic() + OVERLAP_S
        while not there() and time.monotonic() < until:
            time.sleep(0.001)
        seen.append(there())

    before = there()
    parameters[0].register_hook(amid_backward)
    exact.backward(model, exact.batch(me.rank, 1))
    return before, seen == [True] and exact.same(_gradients(model), wanted)


def test_the_last_layers_gradients_are_reduced_while_backward_is_still_at_the_first() -> None:
    assert run_ranks(overlapped, 2) == [(False, True)] * 2


# ---- comm hooks


def chained(group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[Any]:
    """A hook of the program's own: a mean by `then`."""
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    assert work is not None
    size, future = group.size(), work.get_future()
    mean: torch.futures.Future[Any] = future.then(lambda done: done.value()[0] / size)
    return mean


# DDP compares annotations as objects, not as the text that they are in this file.
chained.__annotations__ = {"bucket": dist.GradBucket, "return": torch.futures.Future[torch.Tensor]}


def hooked(me: Rank, hook: str) -> bool:
    model = DDP(exact.make_model(), bucket_cap_mb=TINY_MB)
    match hook:
        case "chained":
            model.register_comm_hook(dist.group.WORLD, chained)
        case "all-reduce":
            model.register_comm_hook(dist.group.WORLD, default_hooks.allreduce_hook)
        case "fp16":
            model.register_comm_hook(dist.group.WORLD, default_hooks.fp16_compress_hook)
        case "builtin":
            model._register_builtin_comm_hook(dist.BuiltinCommHookType.ALLREDUCE)
    exact.backward(model, exact.batch(me.rank, 0, rows=1))
    alone = exact.make_model()
    for rank in range(me.world):
        loss = exact.loss_of(alone, exact.batch(rank, 0, rows=1))
        loss.backward()
    return exact.same(_gradients(model), [g / me.world for g in _gradients(alone)])


# (torch gives the bf16 hook to builds with NCCL alone.)
@pytest.mark.parametrize("hook", ["chained", "all-reduce", "fp16", "builtin"])
def test_a_hook_gives_the_exact_mean(hook: str) -> None:
    assert run_ranks(hooked, 2, hook) == [True, True]


def compressed(me: Rank) -> list[list[list[float]]]:
    """The gradients on this backend, and on gloo: with two ranks sums are the same bit by bit."""
    found = []
    for group in (dist.group.WORLD, dist.new_group(backend="gloo")):
        torch.manual_seed(0)
        model = DDP(nn.Linear(16, 16), process_group=group)
        state = power.PowerSGDState(group, matrix_approximation_rank=1, start_powerSGD_iter=2)
        model.register_comm_hook(state, power.powerSGD_hook)
        for step in range(4):
            model(torch.full((2, 16), float(me.rank + step))).sum().backward()
        found.append([p.grad.flatten().tolist() for p in model.parameters() if p.grad is not None])
    return found


# The hook synchronises a CUDA device wherever there is one, also for gradients on the CPU.
@pytest.mark.skipif(torch.cuda.is_available(), reason="torch's hook is for CUDA tensors here")
def test_power_sgd_gives_all_ranks_the_gradients_that_gloo_gives() -> None:
    first, second = run_ranks(compressed, 2)
    assert first[0] == first[1] == second[0] == second[1]
    assert any(value != 0 for gradient in first[0] for value in gradient)


# ---- uneven inputs, sharded optimizers


def uneven(me: Rank) -> bool:
    model = DDP(exact.make_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=exact.RATE)
    with model.join(divide_by_initial_world_size=False):
        for step in range(1 + me.rank):
            optimizer.zero_grad()
            exact.backward(model, exact.batch(me.rank, step))
            optimizer.step()
    wanted = exact.reference(me.world, steps=2, ranks_at=lambda step: [0, 1][step:])
    return exact.same([p.detach() for p in model.parameters()], wanted)


def test_join_lets_a_rank_run_out_of_batches_first() -> None:
    assert run_ranks(uneven, 2) == [True, True]


def zero(me: Rank, uneven_inputs: bool) -> bool:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns of torch.jit as it loads

    model = DDP(exact.make_model())
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), optimizer_class=torch.optim.SGD, lr=exact.RATE
    )
    steps = 2
    with Join([model, optimizer], enable=uneven_inputs, divide_by_initial_world_size=False):
        for step in range(steps - (uneven_inputs and me.rank == 0)):
            model.zero_grad()
            exact.backward(model, exact.batch(me.rank, step))
            optimizer.step()
    wanted = joined() if uneven_inputs else exact.reference(me.world, steps=steps)
    return exact.same([p.detach() for p in model.parameters()], wanted)


def joined() -> list[torch.Tensor]:
    """What torch makes of it, on any backend: DDP hands a rank that has joined no gradients, so its
    optimizer takes those of its last step again for the parameters that are its own (the first
    layer's)."""
    begun = [p.detach() for p in exact.make_model().parameters()]
    once = exact.reference(2, steps=1)
    again = [after + (after - before) for before, after in zip(begun, once, strict=True)]
    return again[:2] + exact.reference(2, steps=2, ranks_at=lambda step: [0, 1][step:])[2:]


@pytest.mark.parametrize("uneven_inputs", [False, True], ids=["even", "joined"])
def test_the_zero_optimizer_steps_as_the_plain_one(uneven_inputs: bool) -> None:
    assert run_ranks(zero, 2, uneven_inputs) == [True, True]
