"""Elastic DDP with tensors of a device, which is a fake one; test_cuda_elastic.py has a real one.

What is looked at before its copy is there is rubbish, so tests compare all bits with a replay.
"""

from __future__ import annotations

import signal
import tempfile
from functools import partial

import pytest
import torch

from pccl.pytorch import Batches, State
from tests.torch import exact
from tests.torch.members import Member, Members, check
from tests.torch.outer_members import train as train_outer
from tests.torch.outer_replay import check as check_outer
from tests.torch.places import WholeDevice, settle
from tests.torch.sharing import check_sharing
from tests.torch.test_elastic import STEPS, enter, make_model, train
from tests.torch.test_elastic_fsdp import checked
from tests.torch.test_elastic_fsdp import train as train_shards

PLACES = ("fake", "meta")
METHODS = ("diloco", "async", "streaming", "sparse")


@pytest.mark.parametrize("place", PLACES)
def test_members_train_together_as_one_process_would(place: str) -> None:
    with Members(train) as members:
        members.start(0, 1, 2, start=3, place=place)
        found = [members.result(number) for number in range(3)]
        committed = check(found, members.numbers(), STEPS, make_model)
    assert all(sorted(who) == [0, 1, 2] for who in committed.values())
    assert all(not one.rolled_back for one in found)


@pytest.mark.parametrize("where", ["backward", "commit"])
def test_a_member_is_killed_and_the_others_train_on(where: str) -> None:
    with Members(train) as members:
        members.start(0, 2, start=3, pause_s=0.01, place="fake")
        members.start(1, start=3, pause_s=0.01, doom=where, doomed_at=5, place="fake")
        found = [members.result(number) for number in (0, 2)]
        committed = check(found, members.numbers(), STEPS, make_model)
        assert members.exit_code(1) == -signal.SIGKILL
    assert sorted(committed[1]) == [0, 1, 2] and sorted(committed[STEPS]) == [0, 2]


def test_a_model_of_whole_gradients_trains_as_one_process_would() -> None:
    """What test_cuda_elastic.py has its members train."""
    with Members(train) as members:
        members.start(0, 2, start=3, place="fake", gated=True)
        members.start(1, start=3, place="fake", gated=True, doom="backward", doomed_at=5)
        found = [members.result(number) for number in (0, 2)]
        check(found, members.numbers(), STEPS, exact.Gated)


def test_a_joiner_comes_in_without_a_lost_step() -> None:
    with Members(train) as members:
        members.start(0, 1, until=150, start=2, pause_s=0.02, place="fake")
        members.await_step(0, 10)
        members.start(2, until=150, start=2, pause_s=0.02, place="fake")
        found = [members.result(number) for number in range(3)]
        committed = check(found, members.numbers(), 150, make_model)
    assert sorted(committed[1]) == [0, 1] and sorted(committed[150]) == [0, 1, 2]
    assert all(not one.rolled_back for one in found)


def test_a_step_that_is_given_up_leaves_the_gradients_and_is_done_again() -> None:
    with Members(train) as members:
        members.start(0, start=2, refuse_at=4, place="fake")
        members.start(1, start=2, place="fake")
        found = [members.result(number) for number in range(2)]
        check(found, members.numbers(), STEPS, make_model)
    assert all(len(one.rolled_back) == 1 for one in found)


def test_two_sharded_replicas_train_as_one_process_would() -> None:
    with tempfile.TemporaryDirectory() as folder, Members(train_shards, folder) as members:
        members.start(0, 1, 10, 11, start=2, place="fake")
        found = [members.result(number) for number in (0, 1, 10, 11)]
        replicas = checked(found, members.numbers())
    assert all(sorted(who) == [0, 1] for who in replicas.values())


@pytest.mark.parametrize("method", METHODS)
def test_a_method_takes_no_default_device_for_the_models(method: str) -> None:
    with Members(train_outer, method, 3) as members:
        members.start(0, 1, start=2, place="meta")
        found = [members.result(number) for number in range(2)]
        who = check_outer(found, members.numbers(), method)
    assert all(numbers == [0, 1] for numbers in who)


def by_hand(me: Member) -> list[list[float]]:
    """Means of tensors that a kernel is still writing, unnamed ones of both kinds in between."""
    group = enter(me, 1, 2)
    settle(group, "fake")
    device = group._staging._layer
    assert isinstance(device, WholeDevice)
    state, said = State(model=torch.nn.Linear(1, 1)), []
    for step in range(3):
        group.begin(state)
        late = torch.zeros(5, 3).t()  # in one piece on the device only
        gate = device.hold()
        device.compute(partial(late.numpy().fill, me.number + step))  # unseen by torch, as a kernel
        group.weigh(me.number + 1)
        group.reduce_gradient(late)
        gate.set()
        if group.commit():
            said.append(sorted(set(late.reshape(-1).tolist())))
    return said


def test_a_mean_waits_for_the_kernel_that_computes_its_input() -> None:
    with Members(by_hand) as members:
        members.start(0, 1)
        found = [members.result(number) for number in range(2)]
    # Of k and k + 1, the second twice as heavy.
    assert found[0] == found[1]
    assert found[0] == [[pytest.approx(step + 2 / 3)] for step in range(3)]


def nothing_counts(me: Member) -> list[float]:
    group = enter(me, 1, 2)
    settle(group, "fake")
    state = State(model=exact.make_model(), loader=Batches([0], 1))
    group.begin(state)
    gradient = torch.full((3,), float(me.number + 5))
    group.weigh(0)
    group.reduce_gradient(gradient)
    assert not group.commit()
    return gradient.tolist()


def test_where_no_weight_counts_the_gradients_are_what_they_were() -> None:
    with Members(nothing_counts) as members:
        members.start(0, 1)
        assert [members.result(number) for number in range(2)] == [[5.0] * 3, [6.0] * 3]


def test_a_shared_state_is_repaired_and_received() -> None:
    check_sharing("cpu")
