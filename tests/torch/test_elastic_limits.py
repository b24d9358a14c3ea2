"""Where an elastic group gives up, and what each member is told then."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pccl.pytorch import Options, PcclDistError, State, elastic_ddp, elastic_group, steps
from tests.integration.coordinator_processes import (
    CoordinatorProcess,
    free_address,
    journal_option,
)
from tests.torch import exact
from tests.torch.members import Member, Members
from tests.torch.test_elastic import enter, make_model


def different(me: Member, how: str) -> list[Any]:
    """Trains with members that call different things; returns what became of each step."""
    group = enter(me, 1, 2)
    state = State(model=make_model())
    mine = torch.ones(3 + me.number)
    seen: list[Any] = []
    for _ in range(3):
        try:
            group.begin(state)
            if how == "reductions":
                group.reduce_gradient(mine)
            elif how == "collectives" and me.number == 0:
                dist.broadcast(mine, 0)
            else:
                dist.all_reduce(mine)
            seen.append(group.commit())
        except PcclDistError as error:
            seen.append(type(error).__name__ + ": " + str(error))
            break
    assert mine.tolist() == [1.0] * (3 + me.number)
    return seen


@pytest.mark.parametrize("how", ["reductions", "shapes", "collectives"])
def test_members_that_call_different_things_are_told_so_at_the_second_step(how: str) -> None:
    began = time.monotonic()
    with Members(different, how) as members:
        members.start(0, 1)
        found = [members.result(number) for number in range(2)]
    assert time.monotonic() - began < 30
    for first, second in found:
        assert first is False and second.startswith("Mismatch: [pccl:MISMATCH"), found
        # Both are named, by every member.
        for said in ("all_reduce", "broadcast") if how == "collectives" else ("[3]", "[4]"):
            assert said in second or said.strip("[]") in second, second


def fail_on_and_on(me: Member) -> list[Any]:
    group = enter(me, 1, 2, failures_max=2)
    state = State(model=make_model())
    seen: list[Any] = []
    for _ in range(5):
        try:
            group.begin(state)
            seen.append(group.commit(ok=me.number != 0))
        except PcclDistError as error:
            seen.append(str(error))
            break
    return seen


def test_steps_that_fail_one_after_the_other_end_the_run() -> None:
    with Members(fail_on_and_on) as members:
        members.start(0, 1)
        for number in range(2):
            *before, last = members.result(number)
            assert before == [False, False]
            assert "3 training steps failed one after the other" in last or "PEER_LOST" in last


def train_on(me: Member, until: int, **options: Any) -> str:
    group = enter(me, 1, 2, **options)
    model = make_model()
    state = State(model=model)
    try:
        for _ in steps(state, until):
            group.commit()
            me.say(state.step)
            time.sleep(0.02)
    except PcclDistError as error:
        return type(error).__name__
    return str(state.step)


def test_a_member_that_shall_not_rejoin_raises_once_it_was_given_up() -> None:
    with Members(train_on, 300) as members:
        members.start(0, 1, rejoin=False)
        members.await_step(1, 10)
        members.signal(1, signal.SIGSTOP)
        members.await_step(0, 100)
        members.signal(1, signal.SIGCONT)
        assert members.result(1) == "PeerLost"
        assert members.result(0) == "300"


def crowded(me: Member, until: int) -> str:
    try:
        dist.init_process_group(
            "pccl",
            init_method=f"pccl://{me.address}/test?min=1&max=2&start=2",
            pg_options=Options(elastic=True),
        )
        state = State(model=exact.make_model(2))
        for _ in steps(state, until):
            elastic_group().commit()
            me.say(state.step)
            time.sleep(0.02)
    except PcclDistError as error:
        return str(error)
    return str(state.step)


def test_a_job_takes_no_more_members_than_it_says() -> None:
    with Members(crowded, 150) as members:
        members.start(0, 1)
        members.await_step(0, 10)
        members.start(2)
        assert "takes 2 members" in members.result(2)
        assert members.result(0) == members.result(1) == "150"


def wait_in_vain(me: Member, job: str, least: int, timeout_s: float) -> str:
    dist.init_process_group(
        "pccl",
        init_method=f"pccl://{me.address}/{job}?min={least}",
        pg_options=Options(elastic=True),
    )
    group, state = elastic_group(), State(model=exact.make_model(2))
    try:
        while True:
            group.begin(state, timeout_s=timeout_s)
            group.commit()
            me.say(state.step)
    except PcclDistError as error:
        return str(error)


def test_who_is_left_with_too_few_is_told_how_many_there_are() -> None:
    with Members(wait_in_vain, "test", 2, 8.0) as members:
        members.start(0, 1)
        members.await_step(0, 10)
        members.signal(1)
        text = members.result(0)
    assert "1 of 2 members are in after 8 s; start more, or lower ?min" in text, text


def serve_one_of_two_jobs(me: Member) -> str:
    if me.number == 0:
        return wait_in_vain(me, "first", 1, 60.0)
    return wait_in_vain(me, "second", 1, 3.0)


def test_who_comes_to_a_coordinator_of_another_job_is_told_so() -> None:
    with Members(serve_one_of_two_jobs) as members:
        members.start(0)
        members.await_step(0, 10)
        members.start(1)
        text = members.result(1)
    assert "TIMED_OUT" in text and "serves another job than 'second'" in text, text


def test_a_state_that_differs_is_kept_where_states_are_not_compared() -> None:
    with Members(differ, 120) as members:
        members.start(0, 1, check_state=False)
        members.await_step(0, 10)
        members.start(2, check_state=False)
        found = [members.result(number) for number in range(3)]
    assert found[0] != found[1] and found[2] in found[:2]


def differ(me: Member, until: int, **options: Any) -> str:
    group = enter(me, 1, 2, **options)
    model = make_model()
    state = State(model=model)
    for step in steps(state, until):
        if me.number == 1 and step == 5:
            next(model.parameters()).data += 1
        group.commit()
        me.say(state.step)
        time.sleep(0.02)
    return state.digest().hex()


def sparse_sums(me: Member, until: int) -> list[tuple[bool, int, float]]:
    """Sums sparse tensors, which takes several steps; member 1 dies before its third one."""
    group = enter(me, 1, 3)
    state = State(model=make_model())
    seen = []
    for step in steps(state, until):
        if me.number == 1 and step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        table, size = torch.eye(3).to_sparse(), group.size()
        dist.all_reduce(table)
        done = group.commit()
        seen.append((done, size, table.to_dense().trace().item()))
    return seen


def test_a_sparse_sum_that_a_member_dies_in_leaves_the_tensor_and_the_step_is_rolled_back() -> None:
    with Members(sparse_sums, 5) as members:
        members.start(0, 1, 2)
        found = [members.result(number) for number in (0, 2)]
    for seen in found:
        kept = [total for done, _, total in seen if not done]
        assert kept == [3.0] and len(seen) == 6, seen
        assert all(total == 3.0 * size for done, size, total in seen if done), seen


# ---- mistakes


def mistaken(me: Member, how: str) -> list[Any]:
    """One mistake at the third step; returns what was said, and the gradients."""
    group = enter(me, 1, 2)
    model = elastic_ddp(exact.make_model(3))
    state = State(model=model)
    try:
        for step in steps(state, 5, timeout_s=10.0):
            model.zero_grad()
            exact.loss_of(model, exact.batch(me.number, step)).backward()
            if step == 2 and how == "clips":
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            if step == 2 and how == "goes back twice":
                exact.loss_of(model, exact.batch(me.number, step)).backward()
            assert group.commit()
    except PcclDistError as error:
        return [type(error).__name__, str(error)]
    return ["done"]


@pytest.mark.parametrize(
    ("how", "advice"),
    [("clips", r"after commit\(\) has returned"), ("goes back twice", r"no_sync\(\)")],
)
def test_a_gradient_that_is_touched_while_it_is_reduced_is_told(how: str, advice: str) -> None:
    with Members(mistaken, how) as members:
        members.start(0, 1)
        for number in range(2):
            kind, text = members.result(number)
            assert kind == "Misused" and re.search(advice, text), text


def leave_the_loop(me: Member, how: str) -> tuple[str, int, float]:
    """One member leaves the loop after a commit, and lives on."""
    group = enter(me, 1, 3)
    state = State(model=make_model())
    slowest = 0.0
    with contextlib.suppress(ZeroDivisionError):
        began = time.monotonic()
        for _ in steps(state, 40):
            group.commit()
            slowest, began = max(slowest, time.monotonic() - began), time.monotonic()
            time.sleep(0.02)
            if me.number == 1 and state.step == 10:
                if how == "break":
                    break
                raise ZeroDivisionError
    me.say(state.step)
    if me.number == 1:
        time.sleep(8.0)
    return how, state.step, slowest


@pytest.mark.parametrize("how", ["break", "an exception"])
def test_nobody_waits_for_a_member_that_has_left_its_loop_between_steps(how: str) -> None:
    with Members(leave_the_loop, how) as members:
        members.start(0, 1, 2)
        found = [members.result(number) for number in range(3)]
    assert [step for _, step, _ in found] == [40, 10, 40]
    assert max(slowest for _, _, slowest in (found[0], found[2])) < 6.0


def without_weight(me: Member) -> list[Any]:
    group = enter(me, 1, 2)
    state = State(model=make_model())
    group.begin(state)
    group.weigh(0.0)
    gradient = torch.full((6,), 3.0)
    group.reduce_gradient(gradient)
    return [group.commit(), gradient.tolist()]


def test_gradients_without_weight_are_what_they_were_after_a_rollback() -> None:
    with Members(without_weight) as members:
        members.start(0, 1)
        assert [members.result(number) for number in range(2)] == [[False, [3.0] * 6]] * 2


def unwrapped(me: Member) -> list[str]:
    group = enter(me, 1, 2)
    state = State(model=make_model())
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("pccl.pytorch").addHandler(handler)
    for _ in steps(state, 3):
        group.commit()
    return [text for text in heard if "no gradient was reduced" in text]


def test_who_forgets_to_wrap_the_model_is_warned_once() -> None:
    with Members(unwrapped) as members:
        members.start(0, 1)
        assert all(len(members.result(number)) == 1 for number in range(2))


# ---- without a coordinator


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_member_is_killed_while_there_is_no_coordinator(tmp_path: Path, comes_back: bool) -> None:
    address = free_address()
    options = ("--listen", address, *journal_option(tmp_path))
    coordinator = CoordinatorProcess(*options).ready()
    named: dict[str, Any] = {"rejoin": False}
    if not comes_back:
        named["coordinator_grace_s"] = 2.0
    try:
        with Members(train_on, 200, address=address) as members:
            members.start(0, 1, 2, **named)
            members.await_step(0, 10)
            coordinator.kill()
            members.signal(2)
            began = time.monotonic()
            if comes_back:
                time.sleep(3.0)
                coordinator = CoordinatorProcess(*options).ready()
            found = [members.result(number) for number in range(2)]
            waited_s = time.monotonic() - began
    finally:
        coordinator.discard()
    assert found == ["200" if comes_back else "PeerLost"] * 2
    assert comes_back or waited_s < 20
