"""Elastic DDP: members die, stop, join and leave, and the rest train on with the same bits.

Every test replays the committed history in one process and compares bit by bit.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pccl.pytorch import (
    Options,
    State,
    elastic_ddp,
    elastic_group,
    steps,
)
from pccl.pytorch.elastic.group import Committed, RolledBack
from pccl.pytorch.elastic.meeting import Healing
from tests.integration.coordinator_processes import (
    CoordinatorProcess,
    free_address,
    journal_option,
)
from tests.torch import exact
from tests.torch.members import Member, Members, Trained, check, same
from tests.torch.places import settle

STEPS = 12
LAYERS = 3
TIMEOUT_S = 40.0
SLOW = [pytest.mark.slow]


def make_model() -> torch.nn.Sequential:
    return exact.make_model(LAYERS)


class Branching(torch.nn.Module):
    """A batch decides which of two layers comes after the common one, or none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.common, self.second = (
            torch.nn.Linear(exact.WIDTH, exact.WIDTH, dtype=torch.float64) for _ in range(3)
        )
        exact.fill(self)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.common(inputs).relu()
        match int(inputs.sum()) % 3:
            case 1:
                hidden = self.first(hidden)
            case 2:
                hidden = self.second(hidden)
        return hidden


def strike(doom: str, here: str) -> None:
    """Kills this process if this is where it is to die; or it stays until it is killed."""
    if doom == f"held in {here}":
        time.sleep(TIMEOUT_S)
    if doom == here:
        os.kill(os.getpid(), signal.SIGKILL)


def train(
    me: Member,
    until: int = STEPS,
    *,
    least: int = 1,
    start: int = 1,
    doom: str = "",
    doomed_at: int = -1,
    pause_s: float = 0.0,
    refuse_at: int = -1,
    leave_at: int = -1,
    sleep_at: int = -1,
    spoil_at: int = -1,
    tell_at: int = -1,
    micro: bool = False,
    branching: bool = False,
    place: str = "cpu",
    gated: bool = False,
    **options: Any,
) -> Trained:
    """Trains as one member; `doom` says where in which step it kills itself."""
    group = enter(me, least, start, **options)
    made = exact.Gated() if gated else Branching() if branching else make_model()
    device = settle(group, place)
    made = made.to(device)
    model = elastic_ddp(made, bucket_cap_mb=1e-4, find_unused_parameters=branching)
    optimizer = torch.optim.SGD(model.parameters(), lr=exact.RATE)
    state = State(model=model, optimizer=optimizer)
    for parameter in list(model.parameters())[2:3]:  # in the middle of backward
        parameter.register_hook(
            lambda _: strike(doom if state.step == doomed_at else "", "backward")
        )
    peer = b""
    for step in steps(state, until):
        if peer != (peer := bytes(group.run.communicator.peer_id)):
            me.introduce(peer)
        if step == doomed_at:
            strike(doom, "begin")
        optimizer.zero_grad()
        if step == sleep_at:
            sleep_at = -1
            time.sleep(4.0)
        if step == spoil_at:
            spoil(model)
        if micro:
            with model.no_sync():
                backward(model, exact.batch(me.number, step).to(device))
        backward(model, exact.batch(me.number, step).to(device))
        if step == tell_at:
            me.say("posted")
        if step == doomed_at and doom == "commit":
            threading.Thread(target=strike, args=(doom, "commit")).start()
        if group.commit(ok=step != refuse_at):
            if step == doomed_at:
                strike(doom, "between")
            optimizer.step()
        else:
            refuse_at = -1
        if state.step == leave_at:
            group.leave()
            leave_at = -1
        me.say(state.step)
        time.sleep(pause_s)
    return trained(me, group, model)


def backward(model: Any, batch: torch.Tensor) -> None:
    exact.loss_of(model, batch).backward()


def spoil(model: torch.nn.Module) -> None:
    """What a flipped bit in this member's memory does."""
    with torch.no_grad():
        next(iter(model.parameters()))[0, 0] += 1.0


def enter(me: Member, least: int, start: int, **options: Any) -> Any:
    dist.init_process_group(
        "pccl",
        init_method=f"pccl://{me.address}/test?min={least}&start={start}",
        timeout=timedelta(seconds=TIMEOUT_S),
        pg_options=Options(elastic=True, deterministic=True, **options),
    )
    return elastic_group()


def trained(me: Member, group: Any, model: Any) -> Trained:
    events = group.events()
    return Trained(
        me.number,
        [(e.step, e.members, e.retries) for e in events if isinstance(e, Committed)],
        [parameter.detach().cpu().numpy().copy() for parameter in model.parameters()],
        [e.reason for e in events if isinstance(e, RolledBack)],
        sum(isinstance(e, Healing) for e in events),
    )


def test_members_train_together_as_one_process_would() -> None:
    with Members(train) as members:
        members.start(0, 1, 2, 3, start=4)
        found = [members.result(number) for number in range(4)]
        committed = check(found, members.numbers(), STEPS, make_model)
    assert all(sorted(who) == [0, 1, 2, 3] for who in committed.values())
    assert all(not one.rolled_back for one in found)


VICTIMS = [
    pytest.param(victim, where, marks=[] if victim in {0, 2} or where == "backward" else SLOW)
    for victim in range(4)
    for where in ("begin", "backward", "commit", "between")
]


@pytest.mark.parametrize(("victim", "where"), VICTIMS)
def test_a_member_is_killed_and_the_others_train_on(victim: int, where: str) -> None:
    with Members(train) as members:
        rest = sorted({0, 1, 2, 3} - {victim})
        members.start(*rest, start=4, pause_s=0.01)
        members.start(victim, start=4, pause_s=0.01, doom=where, doomed_at=5)
        found = [members.result(number) for number in rest]
        committed = check(found, members.numbers(), STEPS, make_model)
        assert members.exit_code(victim) == -signal.SIGKILL
    assert [sorted(committed[step]) for step in (1, STEPS)] == [[0, 1, 2, 3], rest]


def test_the_reductions_of_a_step_in_which_a_member_dies_are_run_again_by_the_others() -> None:
    with Members(train) as members:
        members.start(0, 2, 3, start=4, tell_at=5)
        members.start(1, start=4, doom="held in backward", doomed_at=5)
        for number in (0, 2, 3):
            while members.hear(number) != "posted":
                pass
        members.signal(1)
        found = [members.result(number) for number in (0, 2, 3)]
        committed = check(found, members.numbers(), STEPS, make_model)
    assert [sorted(committed[step]) for step in (5, 6)] == [[0, 1, 2, 3], [0, 2, 3]]
    assert all(not one.rolled_back for one in found)
    assert all(dict((s, n) for s, _, n in one.history)[6] >= 1 for one in found)


def test_a_stopped_member_is_given_up_and_comes_in_again() -> None:
    with Members(train) as members:
        members.start(0, 1, 2, until=400, start=3, pause_s=0.02)
        members.await_step(1, 10)
        members.signal(1, signal.SIGSTOP)
        members.await_step(0, 60)
        members.signal(1, signal.SIGCONT)
        found = [members.result(number) for number in range(3)]
        committed = check(found, members.numbers(), 400, make_model)
    sizes = [len(who) for who in committed.values()]
    assert min(sizes) == 2 and sizes[-1] == 3, sizes
    assert found[1].healed >= 2


def test_a_joiner_comes_in_without_a_lost_step() -> None:
    with Members(train) as members:
        members.start(0, 1, until=250, start=2, pause_s=0.02)
        members.await_step(0, 10)
        members.start(2, until=250, start=2, pause_s=0.02)
        found = [members.result(number) for number in range(3)]
        committed = check(found, members.numbers(), 250, make_model)
    assert sorted(committed[1]) == [0, 1] and sorted(committed[250]) == [0, 1, 2]
    assert all(not one.rolled_back for one in found)
    assert all(retries == 0 for one in found for _, _, retries in one.history)


def test_a_joiner_comes_in_while_another_member_is_killed() -> None:
    with Members(train) as members:
        members.start(0, 1, until=250, start=3, pause_s=0.02)
        members.start(3, until=250, start=3, pause_s=0.02)
        members.await_step(0, 10)
        members.start(2, until=250, start=2, pause_s=0.02)
        time.sleep(0.4)
        members.signal(3)
        found = [members.result(number) for number in range(3)]
        committed = check(found, members.numbers(), 250, make_model)
    assert sorted(committed[250]) == [0, 1, 2]


def test_a_lost_member_discards_the_step_where_that_is_chosen() -> None:
    with Members(train) as members:
        named = {"least": 3, "pause_s": 0.01, "on_loss": "discard"}
        members.start(0, 2, **named)
        members.start(1, doom="backward", doomed_at=5, **named)
        # min_world is 3: the two wait for a third member, which brings no state.
        members.await_step(0, 5)
        members.start(3, **named)
        found = [members.result(number) for number in (0, 2, 3)]
        committed = check(found, members.numbers(), STEPS, make_model)
    assert sorted(committed[STEPS]) == [0, 2, 3]
    assert len(found[0].rolled_back) == 1 and found[0].rolled_back == found[1].rolled_back


def test_a_step_that_one_member_gives_up_is_rolled_back_on_all() -> None:
    with Members(train) as members:
        members.start(0, 2, start=3)
        members.start(1, start=3, refuse_at=4)
        found = [members.result(number) for number in range(3)]
        check(found, members.numbers(), STEPS, make_model)
    assert [len(one.rolled_back) for one in found] == [1, 1, 1]


def test_a_member_that_leaves_costs_no_step() -> None:
    with Members(train) as members:
        members.start(0, 2, start=3, pause_s=0.01, until=60)
        members.start(1, start=3, pause_s=0.01, until=60, leave_at=10)
        found = [members.result(number) for number in (0, 2)]
        left = members.result(1)
        committed = check(found, members.numbers(), 60, make_model)
    assert sorted(committed[60]) == [0, 2] and 10 <= left.history[-1][0] < 60
    assert all(retries == 0 for one in found for _, _, retries in one.history)


def test_the_coordinator_is_killed_and_comes_back_and_no_step_is_lost(tmp_path: Path) -> None:
    address = free_address()
    options = ("--listen", address, *journal_option(tmp_path))
    coordinator = CoordinatorProcess(*options).ready()
    try:
        with Members(train, address=address) as members:
            members.start(0, 1, until=450, start=2, pause_s=0.02)
            members.await_step(0, 10)
            coordinator.kill()
            members.await_step(0, 60)  # nobody needs it meanwhile
            coordinator = CoordinatorProcess(*options).ready()
            members.start(2, until=450, start=2, pause_s=0.02)
            found = [members.result(number) for number in range(3)]
            committed = check(found, members.numbers(), 450, make_model)
    finally:
        coordinator.discard()
    assert sorted(committed[450]) == [0, 1, 2]
    assert all(not one.rolled_back for one in found)
    assert all(retries == 0 for one in found for _, _, retries in one.history)


def test_a_straggler_is_excluded_and_comes_in_again() -> None:
    with Members(train) as members:
        named = {"until": 300, "start": 3, "pause_s": 0.02, "straggler_s": 1.0}
        members.start(0, 2, **named)
        members.start(1, sleep_at=20, **named)
        found = [members.result(number) for number in range(3)]
        committed = check(found, members.numbers(), 300, make_model)
    sizes = [len(who) for who in committed.values()]
    assert min(sizes) == 2 and sizes[-1] == 3, sizes
    assert len(found[1].rolled_back) == 1 and not found[0].rolled_back


def test_a_member_that_is_asked_to_end_leaves_between_steps() -> None:
    with Members(train) as members:
        named = {"until": 100, "start": 3, "pause_s": 0.02, "drain_on_sigterm_s": 20.0}
        members.start(0, 1, 2, **named)
        members.await_step(0, 10)
        members.signal(1, signal.SIGTERM)
        found = [members.result(number) for number in (0, 2)]
        left = members.result(1)
        committed = check(found, members.numbers(), 100, make_model)
    assert sorted(committed[100]) == [0, 2] and 10 <= left.history[-1][0] < 100
    assert all(retries == 0 for one in found for _, _, retries in one.history)


def test_a_member_whose_state_differs_takes_over_that_of_most() -> None:
    with Members(train) as members:
        named = {"until": 250, "start": 3, "pause_s": 0.02}
        members.start(0, 2, **named)
        members.start(1, spoil_at=5, **named)
        members.await_step(1, 10)
        members.start(3, **named)  # states are compared when somebody comes
        found = [members.result(number) for number in range(4)]
    assert all(same(one, [torch.from_numpy(p) for p in found[0].parameters]) for one in found)
    assert found[0].healed >= 1


def test_gradients_of_several_batches_are_reduced_once() -> None:
    with Members(train) as members:
        members.start(0, 1, start=2, micro=True, until=4)
        found = [members.result(number) for number in range(2)]
    numbers = members.numbers()
    assert all(sorted(numbers[p] for p in who) == [0, 1] for _, who, _ in found[0].history)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=exact.RATE)
    for step in range(4):
        sums = []
        for number in (0, 1):
            optimizer.zero_grad()
            for _ in range(2):
                backward(model, exact.batch(number, step))
            sums.append([parameter.grad for parameter in model.parameters()])
        for parameter, first, second in zip(model.parameters(), *sums, strict=True):
            assert first is not None and second is not None
            parameter.grad = (first + second) / 2
        optimizer.step()
    assert all(same(one, [p.detach() for p in model.parameters()]) for one in found)


@pytest.mark.parametrize("where", ["backward", pytest.param("commit", marks=SLOW)])
def test_members_may_leave_out_different_parameters_also_while_one_is_killed(where: str) -> None:
    with Members(train) as members:
        named = {"until": 200, "start": 3, "pause_s": 0.02, "branching": True}
        members.start(0, 2, **named)
        members.start(1, doom=where, doomed_at=5, **named)
        members.await_step(0, 6)
        members.start(3, **named)
        found = [members.result(number) for number in (0, 2, 3)]
        committed = check(found, members.numbers(), 200, Branching)
        assert members.exit_code(1) == -signal.SIGKILL
    ends = [sorted(committed[step]) for step in (1, 10, 200)]
    assert ends == [[0, 1, 2], [0, 2], [0, 2, 3]], ends
