"""FSDP2 replicas of two processes each, on an elastic group: replicas die and join.

Numbers of members are 10 r + j: process j of replica r.
"""

from __future__ import annotations

import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import FileStore
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from pccl.membership.service_status import fetch_status_now
from pccl.pytorch import Misused, Options, State, elastic_fsdp, steps
from pccl.transport.address import parse_addresses
from tests.torch import exact
from tests.torch.members import Member, Members, Trained, same
from tests.torch.places import settle
from tests.torch.test_elastic import TIMEOUT_S, strike, trained

PARTS = 2
STEPS = 6


def enter(me: Member, folder: str, start: int, peer_group: int, after: int = 0) -> tuple[Any, Any]:
    """Returns this replica's static group and the elastic one, in which `after` come before."""
    replica, part = divmod(me.number, 10)
    timeout = timedelta(seconds=TIMEOUT_S)
    store = FileStore(str(Path(folder) / f"replica-{replica}"), PARTS)
    dist.init_process_group("pccl", store=store, rank=part, world_size=PARTS, timeout=timeout)
    options = Options(
        elastic=True, coordinator=me.address, job="fsdp", start_world=start, peer_group=peer_group
    )
    while after and admitted(me.address) < after:
        time.sleep(0.02)
    group = dist.new_group(list(range(PARTS)), backend="pccl", timeout=timeout, pg_options=options)
    return dist.group.WORLD, group


def admitted(address: str) -> int:
    return int(fetch_status_now(parse_addresses(address), timeout_s=TIMEOUT_S)["admitted"])


def sharded(shards: Any, device: str = "cpu") -> exact.Gated:
    model = exact.Gated().to(device)
    mesh = DeviceMesh.from_group(shards, device)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def train(
    me: Member,
    folder: str,
    start: int = 1,
    until: int = STEPS,
    doom: str = "",
    doomed_at: int = -1,
    delay_s: float = 0.0,
    hold_at: int = -1,
    pause_s: float = 0.0,
    place: str = "cpu",
) -> Trained:
    """Trains as one process of a replica; `doom` says where in which step it kills itself.

    Args:
        delay_s: so long after it called `commit`, where that is the place.
        hold_at: the step in the middle of which it waits for `release`.
    """
    shards, group = enter(me, folder, start, me.number % 10)
    device = settle(group, place)
    model = sharded(shards, device.type)
    elastic_fsdp(model, group, shards)
    optimizer = torch.optim.SGD(model.parameters(), lr=exact.RATE)
    state = State(model=model, optimizer=optimizer)

    def amid_backward(_: torch.Tensor) -> None:
        """The last layer's gradients are on their way, those of the first are not."""
        assert group.run.alone or group.run.transaction.posted
        if state.step == doomed_at:
            strike(doom, "backward")
        if state.step == hold_at:
            await_release(folder)

    def reached(_: nn.Module, __: Any, output: torch.Tensor) -> None:
        output.register_hook(amid_backward)

    model.layers[1].register_forward_hook(reached)
    me.introduce(bytes(group.run.communicator.peer_id))
    me.say(state.step)
    for step in steps(state, until, group=group):
        optimizer.zero_grad()
        if step == doomed_at:
            strike(doom, "begin")
        exact.backward(model, exact.batch(me.number, step).to(device))
        if step == doomed_at and doom == "commit":
            threading.Timer(delay_s, strike, (doom, "commit")).start()
        if group.commit():
            if step == doomed_at:
                strike(doom, "between")
            optimizer.step()
        me.say(state.step)
        time.sleep(pause_s)
    found = trained(me, group, nn.Module())  # shards are not what is compared
    whole = [p.full_tensor() for p in model.parameters()]  # type: ignore[attr-defined]
    found.parameters[:] = [tensor.detach().cpu().numpy() for tensor in whole]
    return found


def release(folder: str) -> None:
    """Lets those go on that wait at `hold_at`."""
    (Path(folder) / "released").touch()


def await_release(folder: str) -> None:
    until = time.monotonic() + TIMEOUT_S
    while not (Path(folder) / "released").exists():
        assert time.monotonic() < until
        time.sleep(0.01)


def checked(
    found: list[Trained], numbers: dict[bytes, int], until: int = STEPS
) -> dict[int, list[int]]:
    """Joins the histories of both peer groups, and checks as if they were one.

    Returns which replicas' gradients are in each step.
    """
    replicas: dict[int, list[int]] = {}
    for one in found:
        for step, members, _ in one.history:
            # Each peer group ranks its members by itself: which replicas count, not their order.
            named = sorted(numbers[peer] // 10 for peer in members)
            assert replicas.setdefault(step, named) == named, f"step {step}: parts differ"
    expected = exact.reference(
        0,
        until,
        exact.Gated,
        ranks_at=lambda step: [10 * r + j for r in replicas[step + 1] for j in range(PARTS)],
    )
    assert sorted(replicas) == list(range(1, until + 1)), sorted(replicas)
    for one in found:
        assert same(one, expected), f"member {one.number} differs"
    return replicas


def test_two_replicas_train_as_one_process_would() -> None:
    with tempfile.TemporaryDirectory() as folder, Members(train, folder) as members:
        members.start(0, 1, 10, 11, start=2)
        found = [members.result(number) for number in (0, 1, 10, 11)]
        replicas = checked(found, members.numbers())
    assert all(sorted(who) == [0, 1] for who in replicas.values())


def test_a_replica_comes_in_process_by_process() -> None:
    with tempfile.TemporaryDirectory() as folder, Members(train, folder) as members:
        members.start(0, 1, pause_s=1.0)
        members.await_step(0, 1)
        members.start(10, 11, pause_s=1.0)
        found = [members.result(number) for number in (0, 1, 10, 11)]
        replicas = checked(found, members.numbers())
    assert replicas[1] == [0] and sorted(replicas[STEPS]) == [0, 1]
    assert all(not one.rolled_back for one in found)


def share(
    me: Member, folder: str, until: int, after: int
) -> tuple[int, list[tuple[int, int, int]]]:
    """Returns the rank, and what this process is offered at each step."""
    shards, group = enter(me, folder, 2, me.number % 10, after)
    model = sharded(shards)
    elastic_fsdp(model, group, shards)
    state = State(model=model, loader=lambda step, rank, size: (step, rank, size))
    offered = []
    for batch in steps(state, until, group=group):
        offered.append(batch)
        assert group.commit()
    return group.rank(), offered


def test_all_parts_of_a_replica_are_offered_the_same_whatever_order_they_came_in() -> None:
    with tempfile.TemporaryDirectory() as folder, Members(share, folder, 5) as members:
        for number, after in {0: 0, 1: 3, 10: 1, 11: 1}.items():
            members.start(number, after=after)
        found = {number: members.result(number) for number in (0, 1, 10, 11)}
    ranks = {number: rank for number, (rank, _) in found.items()}
    assert ranks[0] != ranks[1], "not the case that is to be tested"
    assert found[0][1] == found[1][1] and found[10][1] == found[11][1]
    assert {found[0][1][0], found[10][1][0]} == {(0, 0, 2), (0, 1, 2)}


def wrong_part(me: Member, folder: str) -> str:
    shards, group = enter(me, folder, 1, 1 - me.number % 10)
    try:
        elastic_fsdp(sharded(shards), group, shards)
    except Misused as error:
        return str(error)
    return "nothing"


def test_a_peer_group_that_is_not_the_rank_in_the_replica_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder, Members(wrong_part, folder) as members:
        members.start(0, 1)
        assert "Options(peer_group=1)" in members.result(1)
        assert "Options(peer_group=0)" in members.result(0)
