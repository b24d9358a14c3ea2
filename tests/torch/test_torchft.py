"""pccl as torchft's process group: configured again and again, as torchft's Manager does it."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional_collectives
from torch._C import _distributed_c10d as c10d

from pccl.pytorch import Aborted, Misused, PcclDistError, PeerLost, TimedOut
from tests.torch import exact
from tests.torch.ranks import Rank, run_ranks, started

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of what torchft imports
        from pccl.pytorch.torchft import DistributedDataParallel, ProcessGroupPCCL
except ImportError as missing:
    pytest.skip(
        f"torchft is not installed, or not whole ({missing}); ./dev installs it where it has a "
        "wheel",
        allow_module_level=True,
    )

SOON_S = 15.0
HOST = "127.0.0.1"


@pytest.fixture
def store() -> Iterator[str]:
    """A store like that of a replica's torchrun: host:port."""
    server = c10d.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    yield f"{HOST}:{server.port}"


def a_group() -> Any:
    return ProcessGroupPCCL(timedelta(seconds=30))


def all_reduced(group: Any, value: float) -> float:
    tensor = torch.tensor([value])
    assert group.allreduce([tensor], dist.AllreduceOptions()).wait()
    return tensor.item()


# ---- what it can do


def every_collective(me: Rank, store: str) -> dict[str, Any]:
    """Rank r holds r + 1."""
    group = a_group()
    group.configure(f"{store}/all", str(me.rank), me.rank, me.world, 0, 0, 1, None)
    own, world = float(me.rank + 1), me.world
    found: dict[str, Any] = {"who": (group.rank(), group.size(), group.getBackendName())}

    def keep(name: str, work: Any, *results: torch.Tensor) -> None:
        assert work.wait(), name
        future = work.get_future()
        future.wait()
        found[name] = [result.tolist() for result in results]

    def full(count: int, value: float = own) -> torch.Tensor:
        return torch.full((count,), value)

    one, two = full(1), full(2)
    keep("allreduce", group.allreduce([one], dist.ReduceOp.SUM), one)
    one = full(1)
    both = [one, two]
    coalesced = dist.AllreduceCoalescedOptions()
    keep("allreduce_coalesced", group.allreduce_coalesced(both, coalesced), one, two)
    outs = [full(1) for _ in range(world)]
    keep("allgather", group.allgather([outs], [full(1)], c10d.AllgatherOptions()), *outs)
    out = full(world)
    gathering = group.allgather_into_tensor_coalesced([out], [full(1)], c10d.AllgatherOptions())
    keep("allgather_into_tensor_coalesced", gathering, out)
    out, sent = torch.zeros(world), torch.arange(float(world)) + 10 * own
    keep("alltoall_base", group.alltoall_base(out, sent, [], [], c10d.AllToAllOptions()), out)
    keep("barrier", group.barrier(dist.BarrierOptions()))
    opts = dist.BroadcastOptions()
    opts.rootRank = 1
    one = full(1)
    keep("broadcast", group.broadcast([one], opts), one)
    one = full(1)
    keep("broadcast_one", group.broadcast_one(one, 0), one)
    out, parts = full(1), [full(1, own * (r + 1)) for r in range(world)]
    keep("reduce_scatter", group.reduce_scatter([out], [parts], c10d.ReduceScatterOptions()), out)
    out, flat = full(1), torch.arange(1.0, world + 1) * own
    scattering = group.reduce_scatter_tensor_coalesced([out], [flat], c10d.ReduceScatterOptions())
    keep("reduce_scatter_tensor_coalesced", scattering, out)
    got = full(1)
    sending = group.send([full(1)], (me.rank + 1) % world, 3)
    keep("recv", group.recv([got], (me.rank - 1) % world, 3), got)
    assert sending.wait()
    group.shutdown()
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_every_collective_of_torchft_has_the_exact_result(world: int, store: str) -> None:
    total = world * (world + 1) / 2
    ranks = range(world)
    for rank, found in enumerate(run_ranks(every_collective, world, store, backend="gloo")):
        assert found == {
            "who": (rank, world, "torchft-pccl"),
            "allreduce": [[total]],
            "allreduce_coalesced": [[total], [total, total]],
            "allgather": [[float(r + 1)] for r in ranks],
            "allgather_into_tensor_coalesced": [[float(r + 1) for r in ranks]],
            "alltoall_base": [[10.0 * (r + 1) + rank for r in ranks]],
            "barrier": [],
            "broadcast": [[2.0]],
            "broadcast_one": [[1.0]],
            "reduce_scatter": [[total * (rank + 1)]],
            "reduce_scatter_tensor_coalesced": [[total * (rank + 1)]],
            "recv": [[float((rank - 1) % world + 1)]],
        }


def in_models(me: Rank, store: str) -> dict[str, Any]:
    group = a_group().register(f"models {me.rank}")
    group.configure(f"{store}/models", str(me.rank), me.rank, me.world)
    tensor = torch.full((2,), me.rank + 1.0)
    functional = functional_collectives.all_reduce(tensor, "sum", group)
    model = torch.nn.parallel.DistributedDataParallel(exact.make_model(), process_group=group)
    parameters = exact.train(model, me.rank)
    group.shutdown()
    return {"functional": functional.tolist(), "ddp": listed(parameters)}


def listed(tensors: Sequence[torch.Tensor]) -> list[Any]:
    return [tensor.tolist() for tensor in tensors]


def test_functional_collectives_and_ddp_run_on_it(store: str) -> None:
    for found in run_ranks(in_models, 2, store, backend="gloo"):
        assert found["functional"] == [3.0, 3.0]
        assert found["ddp"] == listed(exact.reference(2))


# ---- quorums that change


def survive(me: Rank, store: str, victim: int) -> dict[str, Any]:
    group = a_group()
    group.configure(f"{store}/0", str(me.rank), me.rank, me.world, 0, 0, 1, None)
    first = all_reduced(group, 2.0**me.rank)
    me.say("ready")
    if me.rank == victim:
        time.sleep(60)
    tensor = torch.full((4,), 5.0)
    began_s = time.monotonic()
    with pytest.raises(PeerLost, match="PEER_LOST"):
        group.allreduce([tensor], dist.AllreduceOptions()).wait()
    seconds = time.monotonic() - began_s
    with pytest.raises(PeerLost, match="STALE_VIEW"):
        group.barrier()
    error = group.errored()
    again = sorted({0, 1, 2} - {victim}).index(me.rank)
    group.configure(f"{store}/1", str(me.rank), again, me.world - 1, 1, 0, 1, None)
    found = {
        "first": first,
        "lost in time": seconds < SOON_S,
        "kept": tensor.tolist(),
        "error": isinstance(error, PeerLost) and error.ranks,
        "errored now": group.errored(),
        "again": all_reduced(group, 2.0**me.rank),
        "size": group.size(),
    }
    group.shutdown()
    return found


@pytest.mark.parametrize("victim", [0, 2], ids=["the coordinator's rank", "another rank"])
def test_a_quorum_without_the_dead_replica_goes_on(victim: int, store: str) -> None:
    with started(survive, 3, store, victim, backend="gloo") as ranks:
        for rank in range(3):
            assert ranks.hear(rank) == "ready"
        ranks.kill(victim)
        for rank in {0, 1, 2} - {victim}:
            assert ranks.hear(rank) == {
                "first": 7.0,
                "lost in time": True,
                "kept": [5.0] * 4,
                "error": (victim,),
                "errored now": None,
                "again": 7.0 - 2.0**victim,
                "size": 2,
            }


def in_threads(world: int, act: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(world) as pool:
        return [future.result(60) for future in [pool.submit(act, r) for r in range(world)]]


def test_replicas_may_be_threads_of_one_process_and_come_and_go(store: str) -> None:
    groups = [a_group() for _ in range(3)]

    def quorum(number: int, world: int) -> list[float]:
        def act(rank: int) -> float:
            groups[rank].configure(f"{store}/threads/{number}", str(rank), rank, world, number)
            return all_reduced(groups[rank], 2.0**rank)

        return in_threads(world, act)

    assert quorum(0, 2) == [3.0, 3.0]
    assert quorum(1, 3) == [7.0, 7.0, 7.0]
    groups[2].shutdown()
    assert quorum(2, 2) == [3.0, 3.0]
    with pytest.raises(Aborted, match="shut down"):
        all_reduced(groups[2], 1.0)
    for group in groups:
        group.shutdown()


def test_the_old_form_of_configure_is_understood(store: str) -> None:
    groups = [a_group(), a_group()]

    def act(rank: int) -> float:
        groups[rank].configure(f"{store}/old", rank, 2)
        return all_reduced(groups[rank], 1.0 + rank)

    assert in_threads(2, act) == [3.0, 3.0]
    for group in groups:
        group.shutdown()


# ---- the end of a group


def test_abort_ends_an_operation_that_waits_and_configure_makes_all_well(store: str) -> None:
    groups = [a_group(), a_group()]

    def configure(number: int) -> None:
        def act(rank: int) -> None:
            groups[rank].configure(f"{store}/abort/{number}", str(rank), rank, 2, number)

        in_threads(2, act)

    configure(0)
    assert groups[0].errored() is None
    work = groups[0].allreduce([torch.ones(4)], dist.AllreduceOptions())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(work.wait)
        threading.Event().wait(0.2)
        assert not waiting.done()
        groups[0].abort()
        with pytest.raises(Aborted):
            waiting.result(SOON_S)
    assert isinstance(groups[0].errored(), Aborted)
    with pytest.raises(Aborted, match="aborted"):
        groups[0].allreduce([torch.ones(4)], dist.AllreduceOptions())
    with pytest.raises(PeerLost):
        groups[1].allreduce([torch.ones(4)], dist.AllreduceOptions()).wait()
    assert isinstance(groups[1].errored(), PeerLost)
    configure(1)
    assert groups[0].errored() is None
    assert in_threads(2, lambda rank: all_reduced(groups[rank], 1.0)) == [2.0, 2.0]
    for group in groups:
        group.shutdown()


def test_before_it_is_configured_a_group_has_no_error_and_takes_no_call() -> None:
    group = a_group()
    assert (group.rank(), group.size(), group.errored()) == (0, 1, None)
    group.set_timeout(timedelta(seconds=5))
    with pytest.raises(Misused, match="configured"):
        group.barrier()


def test_a_quorum_whose_members_do_not_come_is_an_error_in_time(store: str) -> None:
    group = ProcessGroupPCCL(timedelta(seconds=1))
    began_s = time.monotonic()
    with pytest.raises(TimedOut, match="torchft quorum 4 of replica a") as raised:
        group.configure(f"{store}/alone", "a", 1, 2, 4)
    assert time.monotonic() - began_s < SOON_S
    assert group.errored() is raised.value
    with pytest.raises(TimedOut):
        group.allreduce([torch.ones(1)], dist.AllreduceOptions())


def test_a_store_that_is_gone_is_an_error_that_says_where_it_was() -> None:
    group = ProcessGroupPCCL(timedelta(seconds=1))
    with pytest.raises(PcclDistError, match=r"the store at 127\.0\.0\.1 port 1 "):
        group.configure(f"{HOST}:1/gone", "a", 0, 2, 4)


# ---- the hook of DDP


class StubManager:
    """What the hook asks of torchft's Manager, and a group whose all-reduce is done when told."""

    def __init__(self, participating: bool = True, fails: bool = False) -> None:
        self._pg = self
        self._fails = fails
        self._participating = participating
        self.sent: list[list[float]] = []
        self.errors: list[Exception] = []
        self.future: torch.futures.Future[list[torch.Tensor]] = torch.futures.Future()

    def allreduce(self, tensors: list[torch.Tensor], opts: dist.AllreduceOptions) -> Any:
        if self._fails:
            raise PeerLost("gone")
        self.sent.append(tensors[0].tolist())
        return SimpleNamespace(get_future=lambda: self.future)

    def errored(self) -> Exception | None:
        return self.errors[-1] if self.errors else None

    def report_error(self, error: Exception) -> None:
        self.errors.append(error)

    def wait_quorum(self) -> None: ...

    def is_participating(self) -> bool:
        return self._participating

    def num_participants(self) -> int:
        return 4

    def wrap_future(self, future: Any, default: torch.Tensor) -> Any:
        return future


def hooked(manager: StubManager, buffer: torch.Tensor) -> Any:
    bucket = SimpleNamespace(buffer=lambda: buffer)
    return DistributedDataParallel._comm_hook(manager, bucket)


def test_the_hook_returns_before_the_reduction_is_done_and_gives_the_mean() -> None:
    manager, buffer = StubManager(), torch.tensor([2.0, 6.0])
    future = hooked(manager, buffer)
    assert not future.done() and manager.sent == [[2.0, 6.0]]
    manager.future.set_result([buffer.fill_(8.0)])  # the sum
    assert future.wait() is buffer and buffer.tolist() == [2.0, 2.0]


def test_a_replica_without_its_state_contributes_zeros() -> None:
    manager = StubManager(participating=False)
    hooked(manager, torch.ones(2))
    assert manager.sent == [[0.0, 0.0]]


def test_the_hook_tells_the_manager_of_an_error_and_lets_the_backward_pass_go_on() -> None:
    manager = StubManager(fails=True)
    for _ in range(3):  # buckets
        assert hooked(manager, torch.ones(2)).done()
    assert [type(error) for error in manager.errors] == [PeerLost]
