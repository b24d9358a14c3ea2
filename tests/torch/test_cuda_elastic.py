"""Elastic groups, shared state and low-communication methods with CUDA tensors; skipped where
there is no GPU.  Members share the GPUs that there are.

The elastic programs run on a fake device in test_elastic_device.py, on any machine.
"""

from __future__ import annotations

import signal
import tempfile
from typing import Any

import pytest
import torch

from tests.torch import exact
from tests.torch.members import Members, check
from tests.torch.outer_members import train as train_outer
from tests.torch.outer_replay import check as check_outer
from tests.torch.sharing import check_sharing
from tests.torch.test_elastic import STEPS, train
from tests.torch.test_elastic_fsdp import checked
from tests.torch.test_elastic_fsdp import train as train_shards

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

# A GPU does not round as a CPU does where sums are not exact.
ON_CUDA: dict[str, Any] = {"place": "cuda", "gated": True}
METHODS = ("diloco", "async", "streaming", "sparse")


def test_members_train_together_as_one_process_would() -> None:
    with Members(train) as members:
        members.start(0, 1, 2, start=3, **ON_CUDA)
        found = [members.result(number) for number in range(3)]
        committed = check(found, members.numbers(), STEPS, exact.Gated)
    assert all(sorted(who) == [0, 1, 2] for who in committed.values())


@pytest.mark.parametrize("where", ["backward", "commit"])
def test_a_member_is_killed_and_the_others_train_on(where: str) -> None:
    with Members(train) as members:
        members.start(0, 2, start=3, pause_s=0.01, **ON_CUDA)
        members.start(1, start=3, pause_s=0.01, doom=where, doomed_at=5, **ON_CUDA)
        found = [members.result(number) for number in (0, 2)]
        committed = check(found, members.numbers(), STEPS, exact.Gated)
        assert members.exit_code(1) == -signal.SIGKILL
    assert sorted(committed[1]) == [0, 1, 2] and sorted(committed[STEPS]) == [0, 2]


def test_a_joiner_comes_in_without_a_lost_step() -> None:
    with Members(train) as members:
        members.start(0, 1, until=250, start=2, pause_s=0.05, **ON_CUDA)
        members.await_step(0, 10)
        members.start(2, until=250, start=2, pause_s=0.05, **ON_CUDA)
        found = [members.result(number) for number in range(3)]
        committed = check(found, members.numbers(), 250, exact.Gated)
    assert sorted(committed[1]) == [0, 1] and sorted(committed[250]) == [0, 1, 2]
    assert all(not one.rolled_back for one in found)


def test_two_sharded_replicas_train_as_one_process_would() -> None:
    with tempfile.TemporaryDirectory() as folder, Members(train_shards, folder) as members:
        members.start(0, 1, 10, 11, start=2, place="cuda")
        found = [members.result(number) for number in (0, 1, 10, 11)]
        replicas = checked(found, members.numbers())
    assert all(sorted(who) == [0, 1] for who in replicas.values())


def test_a_sharded_replica_comes_in() -> None:
    with tempfile.TemporaryDirectory() as folder, Members(train_shards, folder) as members:
        members.start(0, 1, until=40, pause_s=0.5, place="cuda")
        members.await_step(0, 1)
        members.start(10, 11, until=40, pause_s=0.5, place="cuda")
        found = [members.result(number) for number in (0, 1, 10, 11)]
        replicas = checked(found, members.numbers(), 40)
    assert replicas[1] == [0] and sorted(replicas[40]) == [0, 1]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_a_model_on_the_device(method: str) -> None:
    with Members(train_outer, method, 5) as members:
        members.start(0, 1, start=2, place="cuda")
        found = [members.result(number) for number in range(2)]
        who = check_outer(found, members.numbers(), method)
    assert all(numbers == [0, 1] for numbers in who)


def test_a_shared_state_on_the_device_is_repaired_and_received() -> None:
    check_sharing("cuda")
