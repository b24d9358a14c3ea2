"""The group itself: how it is made, what it says of itself, subgroups, meshes and objects."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import pccl.pytorch as pt
from pccl.membership.service import CoordinatorOptions, CoordinatorThread
from pccl.pytorch import Misused, Options, PeerLost, errors
from tests.torch.ranks import Rank, run_ranks, started


def test_tracebacks_name_an_error_as_programs_import_it() -> None:
    kinds = [one for one in vars(errors).values() if isinstance(one, type)]
    ours = [one for one in kinds if issubclass(one, pt.PcclDistError)]
    assert len(ours) == 7
    for error in ours:
        assert f"{error.__module__}.{error.__qualname__}" == f"pccl.pytorch.{error.__name__}"
        assert getattr(pt, error.__name__) is error and error.__name__ in pt.__all__


def first_slice(me: Rank) -> list[float]:
    total = torch.arange(4.0) + me.rank
    dist.all_reduce(total)
    told = torch.full((3,), float(me.rank))
    dist.broadcast(told, 1)
    dist.barrier()
    return [*total.tolist(), *told.tolist()]


def test_a_group_reduces_broadcasts_and_meets() -> None:
    assert run_ranks(first_slice, 2) == [[1.0, 3.0, 5.0, 7.0, 1.0, 1.0, 1.0]] * 2


def told(me: Rank) -> dict[str, Any]:
    world: Any = dist.group.WORLD
    sizes = torch.tensor([1.0])
    dist.all_reduce(sizes)
    return {
        "rank": (dist.get_rank(), world.rank(), world.getRank()),
        "size": (dist.get_world_size(), world.size(), world.getSize(), int(sizes.item())),
        "backend": (dist.get_backend(), world.name(), world._get_backend_name()),
        "devices": [str(device) for device in world._device_types],
        "error": str(world.get_error()),
    }


@pytest.mark.parametrize("world", [1, 3])
def test_a_group_knows_who_it_is(world: int) -> None:
    for rank, found in enumerate(run_ranks(told, world)):
        assert found["rank"] == (rank,) * 3 and found["size"] == (world,) * 4
        assert found["backend"] == ("pccl",) * 3 and found["devices"][0] == "cpu"
        assert "SUCCESS" in found["error"]


def subgroups(me: Rank) -> list[Any]:
    pairs = [dist.new_group([0, 1]), dist.new_group([1, 2, 3])]
    found: list[Any] = []
    for group in pairs:
        if dist.get_rank(group) < 0:
            found.append(None)
            continue
        total = torch.tensor([float(me.rank)])
        dist.all_reduce(total, group=group)
        told_by_last = torch.tensor([float(me.rank)])
        dist.broadcast(told_by_last, src=dist.get_global_rank(group, 1), group=group)
        found.append((total.item(), told_by_last.item(), dist.get_rank(group)))
    mine, _ = dist.new_subgroups(2)
    total = torch.tensor([float(me.rank)])
    dist.all_reduce(total, group=mine)
    dist.destroy_process_group(pairs[0]) if me.rank < 2 else None
    everybody = torch.ones(1)
    dist.all_reduce(everybody)
    return [*found, total.item(), everybody.item()]


def test_subgroups_have_ranks_and_an_order_of_their_own() -> None:
    assert run_ranks(subgroups, 4) == [
        [(1.0, 1.0, 0), None, 1.0, 4.0],
        [(1.0, 1.0, 1), (6.0, 2.0, 0), 1.0, 4.0],
        [None, (6.0, 2.0, 1), 5.0, 4.0],
        [None, (6.0, 2.0, 2), 5.0, 4.0],
    ]


def lost_in_one_group(me: Rank) -> list[float]:
    """A rank leaves one group; the world goes on."""
    pair = dist.new_group([0, 1])
    if me.rank == 1:
        pair.abort()
    if me.rank == 0:
        with pytest.raises(dist.DistNetworkError):
            dist.all_reduce(torch.ones(1), group=pair)
    total = torch.ones(1)
    dist.all_reduce(total)
    return total.tolist()


def test_what_one_group_loses_concerns_no_other() -> None:
    assert run_ranks(lost_in_one_group, 2) == [[2.0], [2.0]]


def meshes(me: Rank) -> list[float]:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(
        "cpu",
        (2, 2),
        mesh_dim_names=("rows", "columns"),
        backend_override={"rows": "pccl", "columns": "pccl"},
    )
    found = []
    for name in ("rows", "columns"):
        total = torch.tensor([float(me.rank)])
        dist.all_reduce(total, group=mesh.get_group(name))
        found.append(total.item())
    return found


def test_the_dimensions_of_a_mesh_are_groups() -> None:
    assert run_ranks(meshes, 4) == [[2.0, 1.0], [4.0, 1.0], [2.0, 5.0], [4.0, 5.0]]


def mixed(me: Rank) -> list[float]:
    other = dist.new_group(backend="gloo")
    total, gloo = torch.ones(1), torch.ones(1)
    works = [
        dist.all_reduce(total, async_op=True),
        dist.all_reduce(gloo, group=other, async_op=True),
    ]
    for work in works:
        assert work is not None
        work.wait()
    return [total.item(), gloo.item()]


def test_groups_of_two_backends_live_side_by_side() -> None:
    assert run_ranks(mixed, 2) == [[2.0, 2.0]] * 2


def objects(me: Rank) -> list[Any]:
    mine = {"rank": me.rank, "data": list(range(me.rank))}
    everything: list[Any] = [None] * me.world
    dist.all_gather_object(everything, mine)
    shared: list[Any] = [mine, "x"] if me.rank == 1 else [None, None]
    dist.broadcast_object_list(shared, src=1)
    at_root: list[Any] | None = [None] * me.world if me.rank == 0 else None
    dist.gather_object(mine, at_root, dst=0)
    part: list[Any] = [None]
    dist.scatter_object_list(part, ["a", "bb"] if me.rank == 0 else None, src=0)
    return [everything, shared, at_root, part]


def test_objects_travel() -> None:
    first, second = run_ranks(objects, 2)
    both = [{"rank": 0, "data": []}, {"rank": 1, "data": [0]}]
    assert first == [both, [both[1], "x"], both, ["a"]]
    assert second == [both, [both[1], "x"], None, ["bb"]]


# ---- making a group


def again(me: Rank) -> list[float]:
    """The same store and prefix, time after time."""
    found = []
    for _ in range(3):
        total = torch.ones(1)
        dist.all_reduce(total)
        found.append(total.item())
        dist.destroy_process_group()
        dist.init_process_group(
            "pccl",
            store=dist.FileStore(me.setting.store, me.world),
            rank=me.rank,
            world_size=me.world,
        )
    return found


def test_a_group_can_be_destroyed_and_made_again_on_the_same_store() -> None:
    assert run_ranks(again, 2) == [[2.0] * 3] * 2


def chosen(me: Rank) -> list[float]:
    group = dist.new_group(pg_options=Options(deterministic=True, lanes=2, host="127.0.0.1"))
    total = torch.full((1 << 16,), 0.5)
    dist.all_reduce(total, group=group)
    with pytest.raises(Misused):
        dist.new_group(pg_options=object())
    return total[:1].tolist()


def test_options_are_taken_and_those_of_another_backend_are_refused() -> None:
    assert run_ranks(chosen, 2) == [[1.0]] * 2
    with pytest.raises(Misused, match=r"\[pccl:MISUSED\] lanes"):
        Options(lanes=1000)


def alone(me: Rank) -> str:
    dist.destroy_process_group()
    if me.rank == 1:
        return ""
    try:
        dist.init_process_group(
            "pccl",
            store=dist.FileStore(me.setting.store + "2", 2),
            rank=1,
            world_size=2,
            timeout=timedelta(seconds=1),
        )
    except dist.DistError as error:
        return str(error)
    return "made"


def test_a_rank_that_nobody_meets_is_told_whom_it_waited_for() -> None:
    text = run_ranks(alone, 2)[0]
    assert text.startswith("[pccl:TIMED_OUT op=init_process_group]") and "rank 0" in text, text


def by_address(me: Rank, address: str) -> list[Any]:
    dist.destroy_process_group()
    dist.init_process_group("pccl", init_method=f"pccl://{address}/a-job?min=2&max=4")
    total = torch.tensor([1.0 + dist.get_rank()])
    dist.all_reduce(total)
    part = dist.new_group([0, 1])
    dist.barrier(group=part)
    return [dist.get_rank(), dist.get_world_size(), total.item()]


def test_ranks_come_from_a_coordinator_that_runs_by_itself() -> None:
    with CoordinatorThread(CoordinatorOptions()) as coordinator:
        found = run_ranks(by_address, 2, coordinator.address)
    assert sorted(found) == [[0, 2, 3.0], [1, 2, 3.0]]


def lose_the_other(me: Rank, address: str) -> tuple[int, str]:
    dist.destroy_process_group()
    dist.init_process_group("pccl", init_method=f"pccl://{address}/a-job?min=2")
    dist.barrier()
    me.say("ready")
    try:
        while True:
            dist.all_reduce(torch.ones(1))
    except PeerLost as error:
        return dist.get_rank(), str(error)


@pytest.mark.parametrize("victim", [0, 1])
def test_no_rank_of_such_a_group_is_taken_for_the_coordinator(victim: int) -> None:
    with (
        CoordinatorThread(CoordinatorOptions()) as coordinator,
        started(lose_the_other, 2, coordinator.address) as ranks,
    ):
        assert [ranks.hear(rank) for rank in range(2)] == ["ready"] * 2
        ranks.kill(victim)
        rank, text = ranks.hear(1 - victim)
    assert f"rank {1 - rank} of 2 is gone" in text and "ran the coordinator" not in text, text


@pytest.mark.parametrize(
    "url",
    [
        "pccl://",
        "pccl://h:1/j?min=0",
        "pccl://h:1/j?size=3",
        "pccl://h:1?min=x",
        "pccl://h:1/j",
        "pccl://h:1/j?min=2&start=2",
    ],
)
def test_an_address_that_says_nothing_clear_is_refused(url: str) -> None:
    with pytest.raises(Misused, match=r"\[pccl:MISUSED\]"):
        dist.init_process_group("pccl", init_method=url)


def in_detail(me: Rank) -> list[float]:
    total = torch.ones(1)
    dist.all_reduce(total, group=dist.new_group())
    return total.tolist()


def test_torchs_debug_mode_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", "DETAIL")
    assert run_ranks(detailed, 2) == [[2.0], [2.0]]


def detailed(me: Rank) -> list[float]:
    dist.set_debug_level(dist.DebugLevel.DETAIL)
    return in_detail(me)


def no_threads_left(me: Rank) -> list[str]:
    work = dist.all_reduce(torch.ones(4), async_op=True)
    assert work is not None
    work.get_future().wait()
    dist.destroy_process_group()
    patience = threading.Event()
    for _ in range(100):  # rank 0's coordinator stays until the other has gone
        names = sorted(t.name for t in threading.enumerate() if t.name.startswith("pccl"))
        if not names:
            break
        patience.wait(0.1)
    return names


def test_no_thread_is_left_when_the_groups_are_destroyed() -> None:
    assert run_ranks(no_threads_left, 2) == [[], []]


def test_importing_pccl_loads_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "import sys, pccl, pccl.pytorch; assert 'torch' not in sys.modules\n"
        "sys.modules['torch'] = None\n"
        "try: pccl.pytorch.Options\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and "pip install 'pccl[torch]'" in done.stdout, done
