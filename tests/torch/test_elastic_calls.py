"""What elastic groups offer around the training step: calls, weights, samples, and refusals."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from pccl.pytorch import (
    Batches,
    Mismatch,
    Options,
    PcclDistError,
    State,
    elastic_ddp,
    elastic_group,
    steps,
)
from tests.torch import exact
from tests.torch.members import Member, Members
from tests.torch.test_elastic import LAYERS, enter, make_model

# ---- plain collectives


def reduce_and_gather(me: Member, until: int) -> list[Any]:
    """Collectives of the group inside a training step, and what they gave."""
    group = enter(me, 1, 3)
    alone = torch.full((3,), float(me.number))
    dist.all_reduce(alone)
    seen: list[Any] = [alone.tolist()]
    state = State(model=make_model())
    for step in steps(state, until):
        total = torch.tensor([float(1 << me.number)], dtype=torch.float64)
        dist.all_reduce(total)
        rows = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, torch.tensor([me.number]))
        shared = torch.tensor([step if dist.get_rank() == 1 else -1])
        dist.broadcast(shared, 1)
        assert group.commit()
        seen.append((total.item(), [int(row) for row in rows], shared.item(), dist.get_rank()))
    return seen


def test_collectives_of_the_group_work_within_a_step_and_are_local_before_the_first() -> None:
    with Members(reduce_and_gather, 4) as members:
        members.start(0, 1, 2)
        found = [members.result(number) for number in range(3)]
    for number, seen in enumerate(found):
        assert seen[0] == [float(number)] * 3
        for step, (total, rows, shared, rank) in enumerate(seen[1:]):
            assert total == 7.0 and sorted(rows) == [0, 1, 2]
            assert rows[rank] == number and shared == step


# ---- weights, samples, states


def weighted(me: Member, until: int) -> list[Any]:
    group = enter(me, 1, 3)
    state = State(model=make_model())
    seen = []
    for step in steps(state, until, weight=float(me.number)):
        gradient = torch.full((5,), float(me.number + step), dtype=torch.float64)
        group.reduce_gradient(gradient)
        mine = gradient.clone() if me.number == 0 else None
        assert group.commit()
        seen.append(gradient.tolist())
        assert mine is None or mine.shape == gradient.shape
    return seen


def test_means_divide_by_the_weights_that_were_given() -> None:
    with Members(weighted, 4) as members:
        members.start(0, 1, 3)
        found = [members.result(number) for number in (0, 1, 3)]
    # Weights 0, 1, 3 and values 0 + s, 1 + s, 3 + s.
    assert found == [[[(10.0 + 4 * step) / 4] * 5 for step in range(4)]] * 3


def take(me: Member, until: int, pause_s: float = 0.02) -> tuple[list[tuple[int, list[int]]], int]:
    """Returns which samples this member took in which committed steps, and the last position."""
    group = enter(me, 1, 2)
    batches = Batches(list(range(10_000)), 4, seed=1)
    state = State(model=make_model(), loader=batches)
    taken = []
    for samples in steps(state, until):
        if group.commit():
            taken.append((state.step, samples.tolist()))
        me.say(state.step)
        time.sleep(pause_s)
    return taken, batches.position


def test_every_sample_is_taken_once_while_members_join() -> None:
    with Members(take, 200) as members:
        members.start(0, 1)
        members.await_step(0, 5)
        members.start(2)
        found = [members.result(number) for number in range(3)]
    assert len({position for _, position in found}) == 1
    samples = [sample for taken, _ in found for _, batch in taken for sample in batch]
    order = Batches(list(range(10_000)), 4, seed=1)
    assert sorted(samples) == sorted(order.index(at) for at in range(found[0][1]))
    assert len({len(taken) for taken, _ in found}) == 2  # the joiner came later


def with_model(me: Member, layers: int, until: int) -> str:
    group = enter(me, 1, 1)
    model = exact.make_model(layers if me.number == 9 else LAYERS)
    state = State(model=model)
    try:
        for _ in steps(state, until):
            group.commit()
            me.say(state.step)
            time.sleep(0.02)
    except Mismatch as error:
        return str(error)
    return state.digest().hex()


def test_a_joiner_with_another_model_is_refused_and_the_others_go_on() -> None:
    with Members(with_model, LAYERS + 1, 500) as members:
        members.start(0, 1)
        members.await_step(0, 5)
        members.start(9)
        assert "the members' model differs in" in members.result(9)
        assert members.result(0) == members.result(1)


def lose_source(me: Member, until: int) -> str:
    group = enter(me, 1, 2)
    state = State(model=make_model())
    take_snapshot = state.snapshot

    def die() -> bytes:
        if group.size() == 3:
            me.say("gone")
            os.kill(os.getpid(), signal.SIGKILL)
        return take_snapshot()

    for _ in steps(state, until):
        if group.rank() == 0 and group.size() == 2:  # it will give a joiner the state
            state.snapshot = die  # type: ignore[method-assign]
        group.commit()
        me.say(state.step)
        time.sleep(0.02)
    return state.digest().hex()


def test_a_joiner_is_healed_by_another_member_when_the_first_one_dies() -> None:
    with Members(lose_source, 500) as members:
        members.start(0)
        members.start(1)
        members.await_step(1, 5)
        members.start(2)
        codes = {number: members.end_of(number) for number in range(3)}
    digests = {said for code, said in codes.values() if code == 0}
    assert sorted(str(code) for code, _ in codes.values()) == [str(-signal.SIGKILL), "0", "0"]
    assert len(digests) == 1


def stale(me: Member) -> list[str]:
    group = enter(me, 1, 3)
    state = State(model=make_model())
    group.begin(state)
    assert group.commit()
    me.say(0)
    if me.number == 2:
        time.sleep(60)
    rows = [torch.zeros(1) for _ in range(3)]
    said = []
    for _ in range(2):  # the first one finds the loss, the second one begins after it
        try:
            dist.all_gather(rows, torch.ones(1), group=group)
            said.append("nothing")
        except PcclDistError as error:
            said.append(type(error).__name__)
    group.begin(state)
    assert group.size() == 2
    assert group.commit()
    return said


def test_a_call_of_an_older_view_is_stale() -> None:
    with Members(stale) as members:
        members.start(0, 1, 2)
        for number in range(3):
            assert members.hear(number) == 0
        members.signal(2)
        for number in range(2):
            assert members.result(number) in (["PeerLost", "StaleView"], ["StaleView"] * 2)


# ---- misuse


def misuse(me: Member) -> list[str]:
    said = []
    for options in (Options(elastic=True), Options(elastic=True, coordinator="127.0.0.1:1")):
        try:
            store = HashStore()
            timeout = timedelta(seconds=2)
            dist.init_process_group(
                "pccl", store=store, rank=0, world_size=1, timeout=timeout, pg_options=options
            )
        except PcclDistError as error:
            said.append(str(error))
    group = enter(me, 1, 1)
    for call in (group.commit, lambda: group.weigh(2.0), lambda: elastic_group(object())):
        try:
            call()
        except PcclDistError as error:
            said.append(str(error))
    group.begin(State(model=make_model()))
    gradient = torch.ones(4)
    group.reduce_gradient(gradient)
    try:
        dist.all_reduce(gradient)
    except PcclDistError as error:
        said.append(str(error))
    group.commit()
    return said


def test_what_cannot_be_done_is_refused_with_what_to_do() -> None:
    with Members(misuse) as members:
        members.start(0)
        said = members.result(0)
    for text, part in zip(
        said,
        (
            "start `pccl coordinator`",
            "is `pccl coordinator` running",
            "call begin() first",
            "call begin() first",
            "no elastic group",
            "read and change gradients after commit()",
        ),
        strict=True,
    ):
        assert part in text, said


def skip(me: Member, until: int) -> tuple[list[list[int]], int, int]:
    """Gives batches up, without a backward pass; returns the batches that were committed."""
    group = enter(me, 1, 2)
    model = elastic_ddp(make_model())
    batches = Batches(list(range(1000)), 2, shuffle=False)
    state = State(model=model, loader=batches)
    kept, given_up = [], 0
    for samples in steps(state, until):
        bad = me.number == 0 and given_up == 0 and state.step == 3
        if bad:
            given_up += 1
            assert not group.commit(ok=False)
            continue
        exact.loss_of(model, exact.batch(me.number, 0)).backward()
        if group.commit():
            kept.append(samples.tolist())
    return kept, batches.position, state.step


def test_a_batch_that_one_member_gives_up_is_skipped_by_all() -> None:
    with Members(skip, 6) as members:
        members.start(0, 1)
        found = [members.result(number) for number in range(2)]
    samples = sorted(sample for kept, _, _ in found for batch in kept for sample in batch)
    assert samples == [n for n in range(28) if not 12 <= n < 16]
    assert [(position, step) for _, position, step in found] == [(28, 6)] * 2


def skip_by_function(me: Member, until: int) -> list[int]:
    group = enter(me, 1, 2)
    seen: list[int] = []
    for step in steps(State(model=make_model(), loader=lambda step, rank, size: step), until):
        seen.append(step)
        group.commit(ok=me.number == 1 or len(seen) != 2)
    return seen


def test_a_function_is_asked_for_the_same_step_again_when_one_member_gives_it_up() -> None:
    with Members(skip_by_function, 4) as members:
        members.start(0, 1)
        assert [members.result(number) for number in range(2)] == [[0, 1, 1, 2, 3]] * 2


def broken_data(me: Member) -> str:
    group = enter(me, 1, 2)
    state = State(model=make_model(), loader=Broken(me.number))
    try:
        for _ in steps(state, 40):
            group.commit()
            time.sleep(0.02)
    except OSError as error:
        return str(error)
    return state.digest().hex()


class Broken:
    """A loader whose data cannot be read on one member."""

    def __init__(self, number: int) -> None:
        self.number, self.position = number, 0

    def batch(self, rank: int, size: int) -> int:
        if self.number == 0 and self.position == 10:
            raise OSError("no such file")
        return self.position

    def advance(self, size: int) -> None:
        self.position += 1


def test_a_member_whose_data_cannot_be_read_leaves_and_the_others_go_on() -> None:
    with Members(broken_data) as members:
        members.start(0, 1)
        assert members.result(0) == "no such file"
        assert members.result(1)


def late_wrap(me: Member) -> list[Any]:
    """Wraps models after the first step: two, and one with a forward and a hook of its own."""
    group = enter(me, 1, 2)
    state = State(model=make_model())
    group.begin(state)
    group.commit()
    models = [elastic_ddp(make_model()) for _ in range(2)]
    patched = make_model()
    patched.forward = patched.forward  # type: ignore[method-assign]
    patched.register_forward_hook(lambda module, args, out: out + args[0].sum() * 0)
    models.append(elastic_ddp(patched))
    assert "forward" in patched.__dict__ and len(patched._forward_hooks) == 1
    group.begin(state)
    for model in models:
        exact.loss_of(model, exact.batch(me.number, 0)).backward()
    assert group.commit()
    return [[p.grad.tolist() for p in model.parameters() if p.grad is not None] for model in models]


def test_models_may_be_wrapped_later_and_several_of_them() -> None:
    with Members(late_wrap) as members:
        members.start(0, 1)
        found = [members.result(number) for number in range(2)]
    assert found[0] == found[1] and found[0][0] == found[0][1] == found[0][2]
    reference = make_model()
    for number in (0, 1):
        exact.loss_of(reference, exact.batch(number, 0)).backward()
    assert found[0][0] == [
        (p.grad / 2).tolist() for p in reference.parameters() if p.grad is not None
    ]


def futures(me: Member) -> list[float]:
    enter(me, 1, 1)
    rows = [torch.zeros(2)]
    work = dist.all_gather(rows, torch.ones(4)[::2], async_op=True)
    assert work is not None
    work.get_future().wait()
    store = HashStore()
    try:
        dist.new_group([0], backend="pccl")
    except PcclDistError as error:
        assert "the default group is elastic" in str(error), store
        return [float(value) for value in rows[0]]
    return []


def test_futures_of_a_world_of_one_complete_and_parts_of_an_elastic_group_are_refused() -> None:
    with Members(futures) as members:
        members.start(0)
        assert members.result(0) == [1.0, 1.0]
