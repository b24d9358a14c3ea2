"""Elastic DDP with tensors of a device, which is a fake one; test_cuda_elastic.py has a real one.

What is looked at before its copy is there is rubbish, so tests compare all bits with a replay.
"""

from __future__ import annotations

import signal
import tempfile
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pccl.pytorch import Batches, PeerLost, State
from pccl.pytorch.elastic.group import RolledBack
from tests.torch import exact
from tests.torch.fake_device import FakeMark
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


class BrokenMark(FakeMark):
    def wait(self) -> None:
        raise RuntimeError("the device has failed")


def fails_to_begin(me: Member, what: str) -> list[Any]:
    """Returns the tensors of a step in which something of member 1 does not begin, what commit
    said, and why; then of one in which nothing goes wrong."""
    group = enter(me, 1, 2)
    settle(group, "fake")
    device, run, said = group._staging._layer, group.run, []
    fetch, issue = device.fetch, run.issue

    def refuse(*args: Any) -> Any:
        raise PeerLost("the view has changed", op="all_gather")

    for broken in (me.number == 1, False):
        group.begin(State(model=torch.nn.Linear(1, 1)))
        device.fetch = (lambda *_: BrokenMark()) if broken and what == "fetch" else fetch
        run.issue = refuse if broken and what == "issue" else issue
        gradient, rows = torch.full((3,), float(me.number)), torch.full((2, 3), 9.0)
        group.reduce_gradient(gradient)
        if what == "issue":
            dist.all_gather_into_tensor(rows, torch.full((3,), float(me.number + 1)))
        done = group.commit()
        said.append([done, gradient.tolist(), sorted(rows[:, 0].tolist())])
    reasons = [event.reason for event in group.events() if isinstance(event, RolledBack)]
    return [said, reasons]


@pytest.mark.parametrize(("what", "why"), [("fetch", "device has failed"), ("issue", "view has")])
def test_what_does_not_begin_fails_the_step_on_all_and_nothing_is_written(
    what: str, why: str
) -> None:
    with Members(fails_to_begin, what) as members:
        members.start(0, 1)
        found = [members.result(number) for number in range(2)]
    for number, ((failed, after), reasons) in enumerate(found):
        rows = [9.0, 9.0] if number == 1 or what == "fetch" else failed[2]
        assert failed == [False, [float(number)] * 3, rows]
        assert after == [True, [0.5] * 3, [1.0, 2.0] if what == "issue" else [9.0, 9.0]]
        assert len(reasons) == 1 and why in reasons[0]


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
