"""Calls of a static group that do not fit: an error on all ranks, and the group goes on."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from tests.torch import exact
from tests.torch.ranks import Rank, run_ranks
from tests.torch.told import SOON_S, told_by


def mismatched(me: Rank, how: str) -> list[Any]:
    first = me.rank == 0
    calls: dict[str, Callable[[], Any]] = {
        "shape": lambda: dist.all_reduce(torch.ones(4 if first else 5)),
        "dtype": lambda: dist.all_reduce(torch.ones(4, dtype=torch.float64 if first else None)),
        "op": lambda: dist.all_reduce(
            torch.ones(4), dist.ReduceOp.SUM if first else dist.ReduceOp.MAX
        ),
        "collective": lambda: (
            dist.all_reduce(torch.ones(4)) if first else dist.broadcast(torch.ones(4), 0)
        ),
        "root": lambda: dist.broadcast(torch.ones(4), me.rank),
        "bits": lambda: dist.all_reduce(
            _bits(), dist.ReduceOp.BOR if first else dist.ReduceOp.BXOR
        ),
        "bits and copies": lambda: (
            dist.all_reduce(_bits(), dist.ReduceOp.BOR)
            if first
            else dist.all_gather_into_tensor(torch.empty(8, dtype=torch.int32), _bits())
        ),
        "factor": lambda: dist.all_reduce(torch.ones(4), _half() if first else dist.ReduceOp.SUM),
        "scattered factor": lambda: dist.reduce_scatter_tensor(
            torch.ones(2), torch.ones(4), dist.ReduceOp.SUM if first else _half()
        ),
        "form": lambda: dist.all_reduce(torch.ones((2, 3) if first else (3, 2))),
        "sent form": lambda: dist.broadcast(torch.ones((2, 3) if first else (3, 2)), 0),
        "number": lambda: _world().allreduce_coalesced(_ones(2 if first else 1)).wait(),
        "future": lambda: _future_of(torch.ones(4 if first else 5)),
    }
    said = told_by(calls[how])
    total = torch.ones(2)
    dist.all_reduce(total)  # the group goes on
    return [said, total.tolist()]


def _bits() -> torch.Tensor:
    return torch.ones(4, dtype=torch.int32)


def _half() -> Any:
    return dist._make_nccl_premul_sum(0.5)


def _ones(count: int) -> list[torch.Tensor]:
    return [torch.ones(2) for _ in range(count)]


def _world() -> Any:
    return dist.group.WORLD


def _future_of(tensor: torch.Tensor) -> None:
    work = dist.all_reduce(tensor, async_op=True)
    assert work is not None
    work.get_future().wait()


SAID = {  # what the text names besides the ranks
    "shape": ["all_reduce(sum, f32[4])", "all_reduce(sum, f32[5])"],
    "dtype": ["all_reduce(sum, f64[4])", "all_reduce(sum, f32[4])"],
    "op": ["all_reduce(sum, f32[4])", "all_reduce(max, f32[4])"],
    "collective": ["all_reduce(sum, f32[4])", "broadcast(f32[4], root 0)"],
    "root": ["broadcast(f32[4], root 0)", "broadcast(f32[4], root 1)"],
    "bits": ["all_reduce(bor, i32[4])", "all_reduce(bxor, i32[4])"],
    "bits and copies": ["all_reduce(bor, i32[4])", "all_gather(i32[4] per rank)"],
    "factor": ["all_reduce(premul_sum, f32[4])", "all_reduce(sum, f32[4])"],
    "scattered factor": ["reduce_scatter(premul_sum, f32[2]", "reduce_scatter(sum, f32[2]"],
    "form": ["all_reduce(sum, f32[6])", "of other shapes"],
    "sent form": ["broadcast(f32[6], root 0)", "of other shapes"],
    "number": ["all_reduce(sum, f32[2]) and all_reduce(sum, f32[2])"],
    "future": ["all_reduce(sum, f32[4])", "all_reduce(sum, f32[5])"],
}


@pytest.mark.parametrize("how", list(SAID))
def test_calls_that_do_not_fit_are_told_to_all_ranks_and_the_group_goes_on(how: str) -> None:
    for (kind, text, seconds), total in run_ranks(mismatched, 2, how):
        assert "[pccl:MISMATCH" in text and kind in ("Mismatch", "RuntimeError"), (kind, text)
        assert seconds < SOON_S and total == [2.0, 2.0]
        assert "all ranks must call the same collectives in the same order" in text, text
        assert "rank 0 posted " in text and "rank 1 posted " in text, text
        assert all(word in text for word in SAID[how]) and not re.search(r"\btag |\bstep ", text), (
            text
        )


def refused_by_one(me: Rank, how: str) -> list[Any]:
    """Rank 0's call is wrong as it stands; those of the others are not."""
    first = me.rank == 0
    small = torch.float8_e5m2 if first else torch.float32
    count = 2 * me.world + first
    splits = [1, 3] + [2] * (me.world - 2) if first else [2] * me.world
    calls: dict[str, Callable[[], Any]] = {
        "dtype": lambda: dist.all_reduce(torch.ones(4).to(small)),
        "output": lambda: dist.all_gather_into_tensor(torch.ones(count), torch.ones(2)),
        "overlap": lambda: dist.broadcast(torch.ones(1).expand(4) if first else torch.ones(4), 1),
        "splits": lambda: dist.all_to_all_single(
            torch.ones(2 * me.world), torch.ones(2 * me.world), [2] * me.world, splits
        ),
        "later": lambda: _world().allreduce_coalesced([torch.ones(4), torch.ones(2).to(small)]),
        "sparse": lambda: dist.all_reduce(
            torch.eye(2).to_sparse(), dist.ReduceOp.MAX if first else dist.ReduceOp.SUM
        ),
    }
    work: list[Any] = []
    said = told_by(lambda: work.append(calls[how]()))
    if work and work[0] is not None:
        said = told_by(work[0].wait)
    total = torch.ones(2)
    dist.all_reduce(total)  # ranks are at the same call again, and the group goes on
    return [said, total.tolist()]


@pytest.mark.parametrize("how", ["dtype", "output", "overlap", "splits", "later", "sparse"])
def test_a_call_that_one_rank_refuses_is_an_error_on_all_at_once(how: str) -> None:
    first, *others = run_ranks(refused_by_one, 3, how)
    assert first[0][0] == "Misused" and first[1] == [3.0, 3.0], first
    for (kind, text, seconds), total in others:
        assert kind == "Mismatch" and seconds < SOON_S and total == [3.0, 3.0], (kind, text)
        assert "rank 0 posted nothing (its own error says why)" in text, text
        assert re.search(r"rank [12] posted [a-z_]+\(", text), text


def message(me: Rank, how: str) -> list[Any]:
    """Rank 0 sends, rank 1 receives; one end refuses its tensor, or they differ in size."""
    good = torch.ones(4)
    sent: dict[str, torch.Tensor] = {"sparse": torch.eye(2).to_sparse(), "size": torch.ones(5)}
    into = {"overlap": torch.ones(1).expand(4), "any": torch.empty(4, device="meta")}
    if me.rank == 0:
        said = told_by(lambda: dist.send(sent.get(how, good), 1, tag=7))
    elif how == "any":
        said = told_by(lambda: dist.recv(into[how], tag=7))
    else:
        said = told_by(lambda: dist.recv(into.get(how, good), 0, tag=7))
    total = torch.full((3,), me.rank + 1.0)
    if me.rank == 0:
        dist.send(total, 1, tag=7)  # the next message finds its receive
    else:
        dist.recv(total, 0, tag=7)
    return [said, good.tolist(), total.tolist()]


REFUSED_MESSAGES = {  # which rank refuses, and what the other one is told
    "sparse": (0, "rank 0 sends nothing (its own error says why), rank 1 receives f32[4]"),
    "overlap": (1, "rank 0 sends f32[4], rank 1 receives nothing (its own error says why)"),
    "any": (1, "rank 0 sends f32[4], rank 1 receives nothing (its own error says why)"),
    "size": (None, "rank 0 sends f32[5], rank 1 receives f32[4]"),
}


@pytest.mark.parametrize("how", list(REFUSED_MESSAGES))
def test_a_message_whose_ends_do_not_fit_is_an_error_at_both_at_once(how: str) -> None:
    who, words = REFUSED_MESSAGES[how]
    for rank, ((kind, text, seconds), good, total) in enumerate(run_ranks(message, 2, how)):
        assert kind == ("Misused" if rank == who else "Mismatch") and seconds < SOON_S, text
        assert rank == who or words in text, text
        assert good == [1.0] * 4 and total == [1.0] * 3


def sparse_shapes(me: Rank) -> list[Any]:
    tensor = torch.eye(3 if me.rank == 0 else 4).to_sparse()
    said = told_by(lambda: dist.all_reduce(tensor))
    return [said, torch.equal(tensor.to_dense(), torch.eye(len(tensor)))]


def test_sparse_tensors_of_other_shapes_are_an_error_on_all_ranks() -> None:
    for (kind, text, _), kept in run_ranks(sparse_shapes, 2):
        assert kind == "Mismatch" and kept, (kind, text)
        assert "rank 0 posted a sparse tensor of shape [3, 3]" in text, text
        assert "rank 1 posted a sparse tensor of shape [4, 4]" in text, text


def ddp_mismatch(me: Rank) -> tuple[str, str, float]:
    layers = [nn.Linear(exact.WIDTH, width, dtype=torch.float64) for width in (exact.WIDTH, 4)]
    model = DDP(nn.Sequential(*layers), bucket_cap_mb=1e-4)
    exact.train(model, me.rank, 2)  # from then on there is a bucket per layer, of its own size
    if me.rank == 1:
        dist.all_reduce(torch.ones(3), async_op=True)  # one call that nobody else makes
    said = told_by(lambda: exact.train(model, me.rank, 1))
    me.meet("told")
    return said


def test_a_call_too_many_shows_in_backward_on_all_ranks() -> None:
    for kind, text, _ in run_ranks(ddp_mismatch, 2):
        assert kind == "RuntimeError" and "[pccl:MISMATCH" in text, (kind, text)
