"""FSDP, HSDP, DTensor, tensor parallelism and functional collectives, exact to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.torch import exact
from tests.torch.ranks import Rank, run_ranks


def full(parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    return [p.full_tensor() if hasattr(p, "full_tensor") else p for p in parameters]


def fsdp2(me: Rank, way: str) -> bool:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = exact.make_model()
    shape = (me.world,) if way == "fsdp" else (2, me.world // 2)
    names = ("shard",) if way == "fsdp" else ("replicate", "shard")
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names, backend_override=_override(names))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=exact.RATE)
    for step in range(exact.STEPS):
        optimizer.zero_grad()
        exact.backward(model, exact.batch(me.rank, step))
        optimizer.step()
    found = full([parameter.detach() for parameter in model.parameters()])
    return exact.same(found, exact.reference(me.world))


def _override(names: tuple[str, ...]) -> Any:
    return dict.fromkeys(names, "pccl")


def test_fsdp2_trains_as_one_process() -> None:
    assert run_ranks(fsdp2, 2, "fsdp") == [True, True]


def test_hsdp_on_four_ranks_trains_as_one_process() -> None:
    assert run_ranks(fsdp2, 4, "hsdp") == [True] * 4


def fsdp2_in_float32(me: Rank, factor: float | None) -> list[bool]:
    """torch averages 32-bit gradients by ReduceOp.AVG, or divides by a factor by PREMUL_SUM."""
    from torch.distributed.fsdp import fully_shard

    model: Any = exact.make_model().float()
    fully_shard(model)
    if factor is not None:
        sharded: Any = model
        sharded.set_gradient_divide_factor(factor)
    exact.backward(model, exact.batch(me.rank, 0).float())
    alone = summed_alone(me.world)
    for parameter in alone.parameters():
        assert parameter.grad is not None
        parameter.grad /= factor or me.world
    gradients: list[Any] = [parameter.grad for parameter in model.parameters()]
    wanted: list[Any] = [parameter.grad for parameter in alone.parameters()]
    norm: Any = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    total = torch.nn.utils.get_total_norm(wanted)
    return [exact.same(full(gradients), wanted), torch.allclose(norm.full_tensor(), total)]


def summed_alone(world: int) -> nn.Module:
    """What one process has that takes the batches of all ranks."""
    model = exact.make_model().float()
    for rank in range(world):
        exact.backward(model, exact.batch(rank, 0).float())
    return model


@pytest.mark.parametrize("factor", [None, 8.0])
def test_fsdp2_divides_float32_gradients_as_one_process_does(factor: float | None) -> None:
    assert run_ranks(fsdp2_in_float32, 2, factor) == [[True, True]] * 2


def fsdp2_clipped(me: Rank) -> list[float]:
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        set_model_state_dict,
    )
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model = exact.make_model().float()
    fully_shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    exact.backward(model, exact.batch(me.rank, 0, 1).float())
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    everything = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    zeros: Any = {
        name: torch.zeros_like(v) for name, v in exact.make_model().float().state_dict().items()
    }
    set_model_state_dict(model, zeros if me.rank == 0 else {}, options=everything)
    state: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    total = sum(value.abs().sum().item() for value in state.values())
    return [norm.full_tensor().item(), total]  # type: ignore[attr-defined]


def test_fsdp2_clips_and_loads_a_state_that_only_rank_0_has() -> None:
    first, second = run_ranks(fsdp2_clipped, 2)
    alone = exact.make_model().to(torch.bfloat16)  # small whole numbers: as exact as the shards
    gradients: list[torch.Tensor] = []
    for rank in range(2):
        exact.backward(alone, exact.batch(rank, 0, 1).to(torch.bfloat16))
    for parameter in alone.parameters():
        assert parameter.grad is not None
        gradients.append(parameter.grad.float() / 2)
    wanted = torch.nn.utils.get_total_norm(gradients).item()
    assert first == second and first == [pytest.approx(wanted), 0.0] and wanted > 0


def fsdp1(me: Rank, strategy: str) -> bool:
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    model = FullyShardedDataParallel(
        exact.make_model(),
        sharding_strategy=ShardingStrategy[strategy],
        device_id=torch.device("cpu"),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=exact.RATE)
    for step in range(exact.STEPS):
        optimizer.zero_grad()
        exact.backward(model, exact.batch(me.rank, step))
        optimizer.step()
    with FullyShardedDataParallel.summon_full_params(model):
        found = [parameter.detach().clone() for parameter in model.parameters()]
    return exact.same(found, exact.reference(me.world))


@pytest.mark.parametrize("strategy", ["FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD"])
def test_fsdp1_trains_as_one_process(strategy: str) -> None:
    assert run_ranks(fsdp1, 2, strategy) == [True, True]


def dtensors(me: Rank) -> list[bool]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (me.world,), backend_override={0: "pccl"})
    whole = torch.arange(24.0).view(4, 6)
    rows = distribute_tensor(whole, mesh, [Shard(0)])
    columns = rows.redistribute(placements=[Shard(1)])
    back = columns.redistribute(placements=[Replicate()])
    summed = torch.distributed.tensor.DTensor.from_local(whole.clone(), mesh, [Partial()])
    total = summed.redistribute(placements=[Replicate()]).to_local()
    scattered = summed.redistribute(placements=[Shard(0)]).to_local()
    product: Any = rows @ rows.T
    half = whole.shape[0] // me.world
    mine = slice(me.rank * half, (me.rank + 1) * half)
    return [
        torch.equal(rows.to_local(), whole[mine]),
        torch.equal(columns.to_local(), whole.chunk(me.world, 1)[me.rank]),
        torch.equal(back.to_local(), whole),
        torch.equal(total, whole * me.world),
        torch.equal(scattered, whole[mine] * me.world),
        torch.equal(product.full_tensor(), whole @ whole.T),
    ]


def test_dtensors_are_distributed_and_brought_together() -> None:
    assert run_ranks(dtensors, 2) == [[True] * 6] * 2


def tensor_parallel(me: Rank) -> list[bool]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cpu", (me.world,), backend_override={0: "pccl"})
    model = exact.make_model()
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallelize_module(model, mesh, plan)
    alone = exact.make_model()
    inputs = exact.batch(0, 0)
    out, wanted = model(inputs), alone(inputs)
    out.sum().backward()
    wanted.sum().backward()
    found: list[Any] = [parameter.grad for parameter in model.parameters()]
    whole: list[Any] = [parameter.grad for parameter in alone.parameters()]
    return [torch.equal(out, wanted), exact.same([part.full_tensor() for part in found], whole)]


def test_a_layer_split_over_the_ranks_computes_what_the_whole_one_does() -> None:
    assert run_ranks(tensor_parallel, 2) == [[True, True]] * 2


def functional(me: Rank) -> list[list[float]]:
    import torch.distributed._functional_collectives as funcol

    world = dist.group.WORLD
    assert world is not None
    x = torch.tensor([1.0, 2.0]) * (me.rank + 1)
    found = [
        funcol.all_reduce(x, "sum", world),
        funcol.all_gather_tensor(x, 0, world),
        funcol.reduce_scatter_tensor(x, "sum", 0, world),
        funcol.all_to_all_single(x, None, None, world),
        funcol.broadcast(x, 1, world),
        funcol.all_reduce(x, "avg", world.group_name),
        *funcol.all_reduce_coalesced([x, 2 * x], "sum", world),
        *funcol.all_gather_into_tensor_coalesced([x], world),
    ]
    return [tensor.tolist() for tensor in found]


def test_functional_collectives_by_group_and_by_name() -> None:
    common = [[3.0, 6.0], [1.0, 2.0, 2.0, 4.0]]
    for rank, found in enumerate(run_ranks(functional, 2)):
        part, swapped = ([3.0], [1.0, 2.0]) if rank == 0 else ([6.0], [2.0, 4.0])
        assert found[:2] == common and found[2] == part and found[3] == swapped
        assert found[4:] == [[2.0, 4.0], [1.5, 3.0], [3.0, 6.0], [6.0, 12.0], [1.0, 2.0, 2.0, 4.0]]


def compiled(me: Rank, backend: str) -> list[list[float]]:
    import torch.distributed._functional_collectives as funcol

    world = dist.group.WORLD
    assert world is not None
    options: Any = {"compile_threads": 1} if backend == "inductor" else None

    @torch.compile(backend=backend, fullgraph=True, options=options)
    def body(x: torch.Tensor) -> torch.Tensor:
        doubled = funcol.all_reduce(x * 2, "sum", world)
        gathered = funcol.all_gather_tensor(doubled + 1, 0, world)
        out: torch.Tensor = funcol.reduce_scatter_tensor(gathered, "sum", 0, world)
        return out

    @torch.compile(backend=backend, options=options)
    def plain(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        dist.all_reduce(y)
        return y + 1

    x = torch.tensor([1.0, 2.0]) * (me.rank + 1)
    return [body(x).tolist(), plain(x).tolist()]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_functions_communicate_as_written(backend: str) -> None:
    assert run_ranks(compiled, 2, backend) == [[[14.0, 26.0], [4.0, 7.0]]] * 2


def compiled_ddp(me: Rank) -> bool:
    from torch.nn.parallel import DistributedDataParallel as DDP

    model: Any = torch.compile(DDP(exact.make_model()), backend="aot_eager")
    return exact.same(exact.train(model, me.rank, 2), exact.reference(me.world, 2))


def test_a_compiled_ddp_model_trains_as_one_process() -> None:
    assert run_ranks(compiled_ddp, 2) == [True, True]
