"""torch's distributed checkpoints, through the group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.torch import exact
from tests.torch.ranks import Rank, run_ranks


def sharded(world: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (world,), backend_override={0: "pccl"})
    model = exact.make_model()
    fully_shard(model, mesh=mesh)
    return model


def saved_and_loaded(me: Rank, folder: str, asynchronous: bool) -> bool:
    import torch.distributed.checkpoint as dcp

    model = sharded(me.world)
    if asynchronous:
        own = dist.new_group()  # for calls that are made beside those of the training
        saving: Any = dcp.async_save(model.state_dict(), checkpoint_id=folder, process_group=own)
        for step in range(exact.STEPS):
            exact.backward(model, exact.batch(me.rank, step))
        saving.result()
    else:
        dcp.save(model.state_dict(), checkpoint_id=folder)
    other = sharded(me.world)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    state = other.state_dict()
    dcp.load(state, checkpoint_id=folder)
    other.load_state_dict(state)
    found = [parameter.full_tensor() for parameter in other.parameters()]
    return exact.same(found, list(exact.make_model().parameters()))


def test_a_sharded_model_is_saved_and_loaded(tmp_path: Path) -> None:
    assert run_ranks(saved_and_loaded, 2, str(tmp_path / "saved"), False) == [True, True]


def test_a_sharded_model_is_saved_while_training_goes_on(tmp_path: Path) -> None:
    assert run_ranks(saved_and_loaded, 2, str(tmp_path / "saved"), True) == [True, True]
