"""Messages between ranks, and pipelines, which are made of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.torch import exact
from tests.torch.ranks import Rank, run_ranks

LARGE = 1 << 18  # floats: a megabyte, more than is sent before the receiver asks


def there_and_back(me: Rank) -> list[float]:
    other = 1 - me.rank
    found = []
    for count in (1, LARGE):
        out, back = torch.full((count,), me.rank + 1.0), torch.empty(count)
        if me.rank == 0:
            dist.send(out, other)
            dist.recv(back, other)
        else:
            dist.recv(back, other)
            dist.send(out, other)
        found.append(float(back.sum().item() / count))
    return found


def test_messages_go_there_and_back() -> None:
    assert run_ranks(there_and_back, 2) == [[2.0, 2.0], [1.0, 1.0]]


def tagged(me: Rank) -> list[float]:
    if me.rank == 0:
        works = [dist.isend(torch.full((2, 2), float(tag)), 1, tag=tag) for tag in (5, 7)]
        for work in works:
            assert work is not None
            work.wait()
        return []
    late, early = torch.empty(2, 2).t(), torch.empty(4)
    dist.recv(early, 0, tag=7)
    dist.recv(late, 0, tag=5)
    return [*early.tolist(), *late.flatten().tolist()]


def test_messages_are_matched_by_their_tag() -> None:
    assert run_ranks(tagged, 2)[1] == [7.0] * 4 + [5.0] * 4


def from_any(me: Rank) -> list[int]:
    found: list[int] = []
    if me.rank:
        dist.send(torch.tensor([10 * me.rank]), 0)
    for _ in range(0 if me.rank else me.world - 1):
        got = torch.empty(1, dtype=torch.int64)
        source = dist.recv(got)
        assert got.item() == 10 * source
        found.append(source)
    dist.barrier()  # whoever leaves before might have sent something, to a receive from any
    return sorted(found)


def test_a_receive_from_any_says_from_whom() -> None:
    assert run_ranks(from_any, 3)[0] == [1, 2]


def in_batches(me: Rank) -> list[float]:
    right, left = (me.rank + 1) % me.world, (me.rank - 1) % me.world
    got = torch.empty(LARGE)
    works = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.irecv, got, left),
            dist.P2POp(dist.isend, torch.full((LARGE,), float(me.rank)), right),
        ]
    )
    for work in works:
        work.wait()
    listed: list[Any] = [None]
    if me.rank == 0:
        dist.send_object_list([{"a": 1}], 1)
    elif me.rank == 1:
        dist.recv_object_list(listed, 0)
    return [got[0].item(), got[-1].item(), float(listed == [{"a": 1}])]


def test_batched_messages_go_round_in_a_ring() -> None:
    assert run_ranks(in_batches, 3) == [[2.0, 2.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]


def pipeline(me: Rank, schedule: str) -> bool:
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

    whole = exact.make_model(layers=2)
    stage_module = nn.Sequential(*list(whole)[2 * me.rank : 2 * me.rank + 2])
    stage = PipelineStage(stage_module, me.rank, me.world, torch.device("cpu"))
    kind = {"GPipe": ScheduleGPipe, "1F1B": Schedule1F1B}[schedule]
    runner = kind(stage, n_microbatches=4, loss_fn=lambda out, _: out.sum())
    inputs, targets = exact.batch(0, 0, rows=8), torch.zeros(8, exact.WIDTH, dtype=torch.float64)
    runner.step(inputs) if me.rank == 0 else runner.step(target=targets)
    alone = exact.make_model(layers=2)
    alone(inputs).sum().backward()
    part = nn.Sequential(*list(alone)[2 * me.rank : 2 * me.rank + 2])
    found: list[Any] = [parameter.grad for parameter in stage_module.parameters()]
    wanted: list[Any] = [parameter.grad for parameter in part.parameters()]
    return exact.same(found, [gradient / 4 for gradient in wanted])


@pytest.mark.parametrize("schedule", ["GPipe", "1F1B"])
def test_a_pipeline_computes_the_gradients_of_the_whole_model(schedule: str) -> None:
    assert run_ranks(pipeline, 2, schedule) == [True, True]
