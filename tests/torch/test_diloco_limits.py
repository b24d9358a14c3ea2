"""Low-communication methods: what is not finite, states that differ, restarts, FSDP2.

Numbers of members of the sharded story are 10 r + j: process j of replica r.
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
from pccl.diloco import AsyncDiLoCo, DiLoCo, NonFiniteContribution, SparseLoCo, StreamingDiLoCo
from tests.torch.members import Member, Members
from tests.torch.outer_members import FRAGMENTS, H, change, learn, make, make_model

METHODS = ("diloco", "async", "streaming", "sparse")


def poisoned(me: Member, method: str, policy: str) -> Any:
    """Member 1 computes a NaN in its second interval; tells what became of it."""
    model = make_model()
    with pccl.connect(me.address, min_world=2) as comm:
        comm.wait_for(2)
        outer = make(method, comm, model, nonfinite=policy)
        dropped, before, raised = 0, outer.digest(), ""
        poison_at = H[method] + 1
        while outer.outer_step < 12 and not raised:
            learn(me.number, outer.inner_step, model)
            if me.number == 1 and outer.inner_step == poison_at:
                for parameter in model.parameters():
                    parameter.data[0] = float("nan")
            try:
                report = outer.step(tokens=3)
            except NonFiniteContribution as error:
                raised = str(error)
                assert outer.digest() == before
            if report is not None:
                dropped += report.dropped
            before = outer.digest()
        if not raised:
            outer.finish()
            outer.verify()
        finite = all(bool(torch.isfinite(theta).all()) for theta in outer.parameters())
        poisoner = str(comm.peer_id) if me.number == 1 else ""
    return dropped, raised, finite, hex(outer.digest()), poisoner


@pytest.mark.parametrize("method", METHODS)
def test_a_contribution_that_is_not_finite_is_left_out_and_counted(method: str) -> None:
    with Members(poisoned, method, "drop_contributor") as members:
        members.start(0, 1)
        found = [members.result(number) for number in (0, 1)]
    assert found[0][:-1] == found[1][:-1]
    dropped, raised, finite, *_ = found[0]
    assert finite and not raised
    assert dropped == (FRAGMENTS if method == "streaming" else 1)


@pytest.mark.parametrize("method", METHODS)
def test_where_it_is_to_raise_it_names_the_peer_on_all_and_nothing_is_applied(method: str) -> None:
    with Members(poisoned, method, "raise") as members:
        members.start(0, 1)
        found = [members.result(number) for number in (0, 1)]
    assert found[0][:-1] == found[1][:-1]
    text = "1 of the members' pseudo-gradients hold an Inf or a NaN: that of peer "
    assert found[0][1] == text + found[1][-1]
    assert found[0][2]


def flipped(me: Member, method: str) -> str:
    """One bit of member 1's shared state changes in the middle of the run."""
    model, told = make_model(), "nobody noticed"
    with pccl.connect(me.address, min_world=2) as comm:
        comm.wait_for(2)
        outer = make(method, comm, model)
        held: list[bytes] = []
        try:
            while outer.outer_step < 20:
                learn(me.number, outer.inner_step, model)
                if me.number == 1 and outer.outer_step == 4:
                    outer.parameters()[-1].view(torch.int32)[5] ^= 1
                held = [theta.numpy().tobytes() for theta in outer.parameters()]
                outer.step(tokens=3)
        except pccl.CorruptResult as error:
            assert held == [theta.numpy().tobytes() for theta in outer.parameters()]
            told = str(error)
    return told


@pytest.mark.parametrize("method", METHODS)
def test_a_state_that_was_silently_changed_is_noticed_on_all(method: str) -> None:
    with Members(flipped, method) as members:
        members.start(0, 1)
        for number in (0, 1):
            assert "shared states differ" in members.result(number)


def resumed(me: Member, method: str, folder: str, until: int) -> str:
    """Trains on from what was saved, if anything was; saves at the end."""
    model, path = make_model(), Path(folder) / f"{method}-{me.number}.pt"
    state = torch.load(path) if path.exists() else None
    with pccl.connect(me.address, min_world=2) as comm:
        comm.wait_for(2)
        outer = make(method, comm, model, state=state)
        while outer.outer_step < until:
            learn(me.number, outer.inner_step, model)
            report = outer.step(tokens=3)
            if report is not None and outer.outer_step == until:
                outer.finish()
                torch.save(outer.state_dict(), path)
        kept = [theta.numpy().tobytes() for theta in (*outer.parameters(), *outer.momentum())]
        residual = outer.residual.numpy().tobytes() if method == "sparse" else b""
    return f"{outer.inner_step} {hash_of([*kept, residual])}"


def hash_of(parts: list[bytes]) -> str:
    return "".join(f"{np.frombuffer(part, np.uint8).sum(dtype=np.int64):x}." for part in parts)


@pytest.mark.parametrize("method", ["diloco", "sparse"])
def test_a_run_that_ended_goes_on_from_what_was_saved(method: str) -> None:
    """In two halves it comes to the same bits as in one piece."""
    told = []
    for untils in ((6,), (3, 6)):
        with tempfile.TemporaryDirectory() as folder:
            for until in untils:
                with Members(resumed, method, folder, until) as members:
                    members.start(0, 1)
                    told.append([members.result(number) for number in (0, 1)])
    assert told[0] == told[2]
    assert told[0] != told[1]


def refused(me: Member) -> list[str]:
    """Arguments that make no sense, each refused before anything is sent."""
    texts = []
    with pccl.connect(me.address) as comm:
        comm.wait_for(1)
        for call in (
            lambda: DiLoCo(comm, make_model(), inner_steps=0),
            lambda: DiLoCo(comm, torch.nn.Flatten()),
            lambda: DiLoCo(comm, make_model(), momentum=1.0),
            lambda: DiLoCo(comm, make_model(), nonfinite="ignore"),
            lambda: DiLoCo(comm, make_model(), state={"x": torch.zeros(1)}),
            lambda: AsyncDiLoCo(comm, make_model(), learning_rate=-1.0),
            lambda: StreamingDiLoCo(comm, make_model(), alpha=2.0),
            lambda: StreamingDiLoCo(comm, make_model(), overlap=25),
            lambda: StreamingDiLoCo(comm, make_model(), fragments=[["0.weight"]], overlap=0),
            lambda: SparseLoCo(comm, make_model(), top_k=0),
            lambda: DiLoCo(comm, make_model(), inner_steps=1).step(tokens=-1),
        ):
            try:
                call()
            except pccl.UsageError as error:
                texts.append(str(error))
    return texts


def test_arguments_that_make_no_sense_are_refused_with_what_they_may_be() -> None:
    with Members(refused) as members:
        members.start(0)
        texts = members.result(0)
    words = ["inner_steps", "no parameter", "momentum", "nonfinite", "another method or model"]
    words += ["learning_rate", "alpha", "overlap", "every parameter once", "top_k", "tokens"]
    assert len(texts) == len(words), texts
    assert all(word in text for word, text in zip(words, texts, strict=True)), texts


def put_out(me: Member, method: str) -> Any:
    """Member 2 is late for a collective of the program's own, and is told that it is out there."""
    model, out = make_model(), False
    with pccl.connect(me.address, min_world=2, straggler=1.0) as comm:
        comm.wait_for(3)
        outer = make(method, comm, model)
        asked, fewer, last = False, False, 10_000
        while outer.outer_step < last:
            learn(me.number, outer.inner_step, model)
            report = outer.step(tokens=3)
            if report is not None:
                fewer = fewer or out or len(report.contributors) == 2
                if fewer and len(report.contributors) == 3:
                    last = min(last, report.outer_step + 4)
            if outer.outer_step == 4 and not asked:
                asked = True
                time.sleep(4.0 if me.number == 2 else 0.0)
                try:
                    comm.all_reduce(np.ones(4, np.float32))
                except pccl.Excluded:
                    out = True
            time.sleep(0.02)
        outer.finish()
        outer.verify()
    return out, outer.outer_step, hex(outer.digest())


@pytest.mark.parametrize("method", ["diloco", "async"])
def test_who_was_put_out_by_a_collective_of_its_program_comes_in_as_a_joiner(method: str) -> None:
    with Members(put_out, method) as members:
        members.start(0, 1, 2)
        found = [members.result(number) for number in range(3)]
    assert [out for out, *_ in found] == [False, False, True]
    assert len({told[1:] for told in found}) == 1


# ---- FSDP2: a peer group for each shard

PARTS = 2
TOKENS = (1, 3, 4, 3)  # of an inner step of each replica


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
            with torch.no_grad():
                for number, (name, parameter) in enumerate(model.named_parameters()):
                    whole: Any = parameter
                    full = change(replica, outer.inner_step, number, shapes[name])
                    local = whole.to_local()
                    rows = local.shape[0]
                    local.sub_(torch.from_numpy(full[part * rows : (part + 1) * rows]))
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
