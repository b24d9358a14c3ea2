"""Low-communication training of models that FSDP2 shards: a peer group for each shard.

Numbers of members are 10 r + j: process j of replica r.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

import pccl
from pccl.diloco import DiLoCo
from tests.torch.members import Member, Members
from tests.torch.outer_members import change, make, make_model

PARTS = 2
TOKENS = (1, 3, 4, 3)  # of an inner step of each replica


def shard_model(folder: str, replica: int, part: int) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """Returns this part of a replica, and the whole shapes of its parameters."""
    store = dist.FileStore(str(Path(folder) / f"replica-{replica}"), PARTS)
    dist.init_process_group(
        "gloo", store=store, rank=part, world_size=PARTS, timeout=timedelta(seconds=40)
    )
    model = make_model()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    mesh = DeviceMesh("cpu", list(range(PARTS)))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, shapes


def learn_shard(model: Any, shapes: dict[str, tuple[int, ...]], number: int, inner: int) -> None:
    """What process j of replica r learns in an inner step: its rows of what the replica does."""
    replica, part = divmod(number, 10)
    with torch.no_grad():
        for place, (name, parameter) in enumerate(model.named_parameters()):
            full = change(replica, inner, place, shapes[name])
            local = parameter.to_local()
            rows = local.shape[0]
            local.sub_(torch.from_numpy(full[part * rows : (part + 1) * rows]))


def sharded(
    me: Member,
    folder: str,
    until: int,
    doomed_at: int,
    pause_s: float = 0.0,
    seat: int | None = None,
    dawdles_s: float = 0.0,
    patience_s: float = 60.0,
) -> Any:
    """Trains one shard of one replica; replica 1 dies as a whole before an outer step."""
    replica, part = divmod(me.number, 10)
    model, shapes = shard_model(folder, replica, part)
    time.sleep(dawdles_s)
    with pccl.connect(me.address, peer_group=part, seat=seat, step_timeout_s=patience_s) as comm:
        if replica < 2:
            comm.wait_for(2 * PARTS)
        try:
            outer = DiLoCo(comm, model, inner_steps=2, deterministic=True)
        except (pccl.UsageError, pccl.DeadlineExceeded) as error:
            return str(error), comm.closed
        contributors = []
        while outer.outer_step < until:
            if replica == 1 and outer.inner_step == doomed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(pause_s)
            learn_shard(model, shapes, me.number, outer.inner_step)
            report = outer.step(tokens=TOKENS[replica])
            if report is not None:
                contributors.append(len(report.contributors))
                me.say(report.outer_step)
        outer.finish()
        return contributors, [whole_local(p) for p in model.parameters()]


def whole_local(parameter: Any) -> Any:
    return parameter.to_local().detach().numpy().copy()


def unsharded(history: Sequence[tuple[int, ...]]) -> list[Any]:
    """The same run in numpy, of whole models; the replicas that took part in each outer step."""
    f32, inner_step = np.float32, 0
    theta = [p.detach().numpy().copy() for p in make_model().parameters()]
    velocity = [np.zeros_like(t) for t in theta]
    for replicas in history:
        weights = {replica: f32(2 * TOKENS[replica]) for replica in replicas}
        for number, held in enumerate(theta):
            total = np.zeros_like(held)
            for replica, weight in weights.items():
                local = held.copy()
                for step in (inner_step, inner_step + 1):
                    local -= change(replica, step, number, held.shape)
                total = total + (held - local) * weight
            mean = total / f32(sum(weights.values()))
            velocity[number] = velocity[number] * f32(0.9) + mean
            theta[number] = held - f32(0.7) * (velocity[number] * f32(0.9) + mean)
        inner_step += 2
    return theta


def assert_exact(found: dict[int, Any], history: Sequence[tuple[int, ...]]) -> None:
    """Each part holds its rows of the model that these replicas have trained, to the bit."""
    expected = unsharded(history)
    for number, (contributors, shards) in found.items():
        taken_part = len(contributors)
        assert contributors == [len(replicas) for replicas in history][-taken_part:]
        part = number % 10
        for held, whole in zip(shards, expected, strict=True):
            rows = held.shape[0]
            assert held.tobytes() == whole[part * rows : (part + 1) * rows].tobytes()


@pytest.mark.parametrize("lost_after", [5, 2])
def test_shards_of_fsdp2_replicas_are_reduced_among_those_that_hold_the_same(
    lost_after: int,
) -> None:
    until = 5
    with (
        tempfile.TemporaryDirectory() as folder,
        Members(sharded, folder, until, 2 * lost_after) as members,
    ):
        members.start(0, 1, 10, 11)
        numbers = (0, 1, 10, 11) if lost_after >= until else (0, 1)
        found = {number: members.result(number) for number in numbers}
    assert_exact(found, [(0, 1)] * lost_after + [(0,)] * (until - lost_after))


def test_a_replica_with_a_seat_joins_a_sharded_run_when_all_of_its_parts_are_there() -> None:
    until = 60
    with (
        tempfile.TemporaryDirectory() as folder,
        Members(sharded, folder, until, 2 * until) as members,
    ):
        members.start(0, 1, pause_s=0.05, seat=0)
        members.start(10, 11, pause_s=0.05, seat=1)
        members.await_step(0, 2)
        members.start(20, seat=2)
        members.start(21, seat=2, dawdles_s=1.0)
        found = {number: members.result(number) for number in (0, 1, 10, 11, 20, 21)}
    alone = found[0][0].index(3)
    assert alone > 2 and len(found[20][0]) == len(found[21][0]) == until - alone
    assert_exact(found, [(0, 1)] * alone + [(0, 1, 2)] * (until - alone))


def sharded_by(me: Member, folder: str, method: str, until: int) -> dict[int, str]:
    """As `sharded`; returns what the shared state was after each reduction."""
    replica, part = divmod(me.number, 10)
    model, shapes = shard_model(folder, replica, part)
    digests: dict[int, str] = {}
    with pccl.connect(me.address, peer_group=part, seat=replica, step_timeout_s=60) as comm:
        if replica < 2:
            comm.wait_for(2 * PARTS)
        outer = make(method, comm, model)
        while outer.outer_step < until:
            time.sleep(0.02)
            learn_shard(model, shapes, me.number, outer.inner_step)
            if outer.step(tokens=TOKENS[replica]) is not None:
                digests[outer.outer_step] = hex(outer.digest())
                me.say(outer.outer_step)
        outer.finish()
        digests[until] = hex(outer.digest())
    return digests


@pytest.mark.parametrize("method", ["async", "streaming", "sparse"])
def test_late_replicas_join_every_method(method: str) -> None:
    until = 50
    with (
        tempfile.TemporaryDirectory() as folder,
        Members(sharded_by, folder, method, until) as members,
    ):
        members.start(0, 1, 10, 11)
        members.await_step(0, 2)
        members.start(20, 21)
        found = {number: members.result(number) for number in (0, 1, 10, 11, 20, 21)}
    for part in range(PARTS):
        first, second, late = (found[10 * replica + part] for replica in range(3))
        assert first == second and set(late) < set(first), "not late at all"
        assert len(late) > 5 and late == {step: first[step] for step in late}
    assert set(found[20]) == set(found[21])


def test_a_replica_takes_the_seat_of_one_that_has_died() -> None:
    until, lost_after = 60, 4
    with (
        tempfile.TemporaryDirectory() as folder,
        Members(sharded, folder, until, 2 * lost_after) as members,
    ):
        members.start(0, 1, pause_s=0.05, seat=0)
        members.start(10, 11, pause_s=0.05, seat=1)
        members.await_step(0, lost_after + 1)
        members.start(30, 31, seat=1)
        found = {number: members.result(number) for number in (0, 1, 30, 31)}
    alone = until - len(found[30][0])
    assert lost_after < alone < until
    history = [(0, 1)] * lost_after + [(0,)] * (alone - lost_after) + [(0, 3)] * (until - alone)
    assert_exact(found, history)


def test_a_part_whose_replica_does_not_come_stays_outside_and_the_others_go_on() -> None:
    until = 100
    with (
        tempfile.TemporaryDirectory() as folder,
        Members(sharded, folder, until, 2 * until) as members,
    ):
        members.start(0, 1, 10, 11, pause_s=0.05)
        members.await_step(0, 2)
        members.start(20, seat=2, patience_s=3.0)
        members.start(21, seat=2, dawdles_s=60.0)
        text, _ = members.result(20)
        found = {number: members.result(number) for number in (0, 1, 10, 11)}
    assert "seat" in text
    assert_exact(found, [(0, 1)] * until)


def test_a_replica_that_comes_late_without_a_seat_is_told_so_and_the_others_go_on() -> None:
    until = 100
    with (
        tempfile.TemporaryDirectory() as folder,
        Members(sharded, folder, until, 2 * until) as members,
    ):
        members.start(0, 1, 10, 11, pause_s=0.05)
        members.await_step(0, 2)
        members.start(20, 21)
        late = [members.result(number) for number in (20, 21)]
        found = [members.result(number) for number in (0, 1, 10, 11)]
    for text, closed in late:
        assert "needs a seat" in text and closed
    assert all(contributors == [2] * until for contributors, _ in found)
