"""Groups made anew in place from handles, as torch from 2.14 on asks for it; on any version."""

from __future__ import annotations

import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, HashStore

from pccl.pytorch import Aborted, Misused, PcclDistError, PeerLost, TimedOut
from pccl.pytorch.bootstrap import create_group
from pccl.pytorch.reconfigure import Handle, handle_of, parse_handle, plan, reconfigure
from tests.torch.ranks import Rank, run_ranks, started

SOON_S = 15.0


# ---- what a call comes to


def handle(rank: int, name: str) -> str:
    return str(Handle(rank, name, "::1", 1000 + rank))


def test_a_handle_survives_being_written_and_read() -> None:
    written = handle(3, "ab")
    assert parse_handle(written) == Handle(3, "ab", "::1", 1003)
    assert written.startswith("pccl:1:")


@pytest.mark.parametrize(
    "text",
    ["", "gloo:0:1:0:h:1", "pccl:2:0:ab:1:h", "pccl:1:x:ab:1:h", "pccl:1:0:ab:1:", "pccl:1:"],
)
def test_what_is_no_handle_of_this_backend_is_refused(text: str) -> None:
    with pytest.raises(Misused, match="no handle of the pccl backend"):
        parse_handle(text)


A, B, C = handle(0, "aa"), handle(1, "bb"), handle(2, "cc")


@pytest.mark.parametrize(
    ("handles", "ranks", "meets_at"),
    [
        ([A, B, C], {"aa": 0, "bb": 1, "cc": 2}, "aa"),
        ([C, A], {"cc": 0, "aa": 1}, "cc"),
        ((B, C), {"bb": 0, "cc": 1}, "bb"),
        ({C, A, B}, {"aa": 0, "bb": 1, "cc": 2}, "aa"),
        (frozenset([C, B]), {"bb": 0, "cc": 1}, "bb"),
        # Two that have had the same rank in different groups: by name.
        ({handle(0, "zz"), A}, {"aa": 0, "zz": 1}, "aa"),
    ],
)
def test_a_list_is_in_rank_order_and_a_set_in_that_of_former_ranks(
    handles: Collection[str], ranks: dict[str, int], meets_at: str
) -> None:
    for name, rank in ranks.items():
        found = plan(7, handles, name, ())
        assert (found.rank, found.size, found.meeting.name) == (rank, len(ranks), meets_at)


@pytest.mark.parametrize(
    ("uuid", "handles", "own", "said"),
    [
        (5, [A, B], "aa", "uuid 5 was already used"),
        (7, [A, B], "cc", "this process is not among"),
        (7, [], "aa", "this process is not among"),
        (7, [A, B, A], "aa", "named twice"),
        (7, {A: 1}, "aa", "a list or a set, not dict"),
    ],
)
def test_a_call_that_cannot_be_meant_so_is_refused(
    uuid: int, handles: Any, own: str, said: str
) -> None:
    with pytest.raises(Misused, match=said):
        plan(uuid, handles, own, {5})


# ---- on groups


def world() -> Any:
    return dist.group.WORLD


def again(uuid: int, handles: Collection[str], timeout_s: float | None = None) -> None:
    timeout = None if timeout_s is None else timedelta(seconds=timeout_s)
    opts = SimpleNamespace(uuid=uuid, handles=handles, timeout=timeout, hints={})
    assert reconfigure(world(), opts).wait()


def told(me: Rank, key: str) -> list[str]:
    """Exchanges handles without the group; returns them in the order of the first ranks."""
    store = FileStore(me.setting.store + ".handles", me.world)
    store.set(f"{key}/{me.rank}", handle_of(world()))
    return [store.get(f"{key}/{rank}").decode() for rank in range(me.world)]


def who(me: Rank) -> list[float]:
    """Rank, size, and the sum of what the members contribute: a bit each."""
    tensor = torch.tensor([2.0**me.rank])
    dist.all_reduce(tensor)
    return [dist.get_rank(), dist.get_world_size(), tensor.item()]


def story(me: Rank, how: str) -> list[list[float]]:
    found = []
    if how == "identity":
        again(1, told(me, "a"))
    elif how == "reversed":
        again(1, told(me, "a")[::-1])
    elif how == "as a set":
        again(1, set(told(me, "a")))
    elif how == "single, then all":
        again(10 + me.rank, [handle_of(world())])
        found.append(who(me))
        again(20, told(me, "a"))
    elif how == "two parts, then all":
        handles = told(me, "a")
        again(10 + (me.rank > 0), handles[:1] if me.rank == 0 else handles[1:])
        found.append(who(me))
        again(20, told(me, "b"))
    elif how == "after abort":
        world().abort()
        again(1, told(me, "a"))
    found.append(who(me))
    me.meet("done")
    return found


STORIES = {
    "identity": [[[0, 3, 7]], [[1, 3, 7]], [[2, 3, 7]]],
    "reversed": [[[2, 3, 7]], [[1, 3, 7]], [[0, 3, 7]]],
    "as a set": [[[0, 3, 7]], [[1, 3, 7]], [[2, 3, 7]]],
    "single, then all": [[[0, 1, 2**r], [r, 3, 7]] for r in range(3)],
    "two parts, then all": [[[0, 1, 1], [0, 3, 7]], [[0, 2, 6], [1, 3, 7]], [[1, 2, 6], [2, 3, 7]]],
    "after abort": [[[0, 3, 7]], [[1, 3, 7]], [[2, 3, 7]]],
}


@pytest.mark.parametrize("how", list(STORIES))
def test_members_take_the_ranks_that_the_handles_give_them(how: str) -> None:
    assert run_ranks(story, 3, how) == STORIES[how]


def without_the_dead(me: Rank, victim: int) -> list[float]:
    handles = told(me, "a")
    dist.barrier()
    me.say("ready")
    if me.rank == victim:
        time.sleep(60)
    with pytest.raises(PeerLost):
        dist.all_reduce(torch.ones(1))
    again(2, [text for rank, text in enumerate(handles) if rank != victim])
    return who(me)


@pytest.mark.parametrize("victim", [0, 1])
def test_survivors_go_on_even_if_the_store_and_the_coordinator_died_with_one(victim: int) -> None:
    with started(without_the_dead, 3, victim) as ranks:
        for rank in range(3):
            assert ranks.hear(rank) == "ready"
        ranks.kill(victim)
        left = sorted({0, 1, 2} - {victim})
        for rank in left:
            assert ranks.hear(rank) == [left.index(rank), 2, 7 - 2**victim]


def fenced(me: Rank) -> list[float]:
    handles = told(me, "a")
    dist.barrier()
    if me.rank == 2:  # it is left out, and does not know yet
        me.meet("made")
        with pytest.raises(PeerLost):
            dist.all_reduce(torch.ones(1))
        me.meet("over")
        return []
    kept = torch.full((2,), 5.0)
    work = dist.all_reduce(kept, async_op=True)
    assert work is not None
    future = work.get_future()
    again(3, handles[:2])
    with pytest.raises(Aborted, match="reconfigured"):
        work.wait()
    with pytest.raises(RuntimeError, match=r"\[pccl:ABORTED"):
        future.wait()
    assert kept.tolist() == [5.0, 5.0]
    me.meet("made")
    me.meet("over")
    return who(me)


def test_the_former_group_is_over_and_does_not_touch_the_new_one() -> None:
    assert run_ranks(fenced, 3) == [[0, 2, 3], [1, 2, 3], []]


def refused(me: Rank) -> list[Any]:
    handles = told(me, "a")
    own = handles[me.rank]
    with pytest.raises(Misused, match="not among"):
        again(4, [text for text in handles if text != own])
    first = who(me)  # as it was
    me.meet("first")
    again(50 + me.rank, [own])
    with pytest.raises(Misused, match="already used"):
        again(50 + me.rank, [own])
    return [first, who(me)]


def test_a_refused_call_leaves_the_group_as_it_is() -> None:
    assert run_ranks(refused, 2) == [[[0, 2, 3], [0, 1, 1]], [[1, 2, 3], [0, 1, 2]]]


def unmet(me: Rank) -> list[Any]:
    handles = told(me, "a")
    me.meet("told")
    if me.rank == 0:
        began_s = time.monotonic()
        with pytest.raises(PcclDistError) as raised:
            again(5, handles[::-1], 1.0)  # the other hosts the store, and does not come
        assert isinstance(raised.value, TimedOut) and time.monotonic() - began_s < SOON_S
        with pytest.raises(Aborted, match="reconfigured"):
            dist.all_reduce(torch.ones(1))
        gone = str(Handle(0, "nobody", "127.0.0.1", 1))
        with pytest.raises(PcclDistError, match=r"127\.0\.0\.1 port 1, cannot be reached"):
            again(6, [gone, handles[0]], 1.0)
    me.meet("failed")
    again(7, told(me, "b"))
    return [who(me)]


def test_a_reconfiguration_that_nobody_joins_is_over_in_time_and_another_may_follow() -> None:
    assert run_ranks(unmet, 2) == [[[0, 2, 3]], [[1, 2, 3]]]


def test_a_group_may_be_made_without_members_and_gets_them_by_handles() -> None:
    """What torch 2.14 means by `enable_reconfigure`: nobody is waited for at first."""
    store = HashStore()
    groups = [
        create_group(
            SimpleNamespace(
                store=store,
                group_rank=rank,
                group_size=2,
                group_id="late",
                timeout=timedelta(seconds=30),
                enable_reconfigure=True,
            ),
            None,
        )
        for rank in range(2)
    ]
    with pytest.raises(Misused, match="no members yet"):
        groups[0].barrier()
    handles = [handle_of(group) for group in groups]

    def act(rank: int) -> list[float]:
        opts = SimpleNamespace(uuid=1, handles=handles, timeout=None)
        assert reconfigure(groups[rank], opts).wait()
        tensor = torch.tensor([2.0**rank])
        groups[rank].allreduce([tensor]).wait()
        return [groups[rank].rank(), groups[rank].size(), tensor.item()]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(act, range(2))) == [[0, 2, 3], [1, 2, 3]]
    for group in groups:
        group.shutdown()
