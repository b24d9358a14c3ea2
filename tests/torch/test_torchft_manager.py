"""Training under torchft's Manager on pccl: replicas are killed and come late, the rest go on.

Every replica reports which steps it has committed; one process replays them, bit by bit.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from tests.torch import exact
from tests.torch.ranks import Rank, started

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of what torchft imports
        import torchft
        from torchft.coordination import LighthouseServer

        from pccl.pytorch.torchft import DistributedDataParallel, ProcessGroupPCCL
except ImportError as missing:
    pytest.skip(
        f"torchft is not installed, or not whole ({missing}); ./dev installs it where it has a "
        "wheel",
        allow_module_level=True,
    )

HOST = "127.0.0.1"
STEPS = 8
LATE_AT = 3  # the step before which the others wait for a replica that comes late


def listed(tensors: Sequence[torch.Tensor]) -> list[Any]:
    return [tensor.tolist() for tensor in tensors]


def train_under_manager(
    me: Rank, lighthouse: str, victim: int | None, dies_at: int, late: int | None
) -> dict[str, Any]:
    """One replica of one rank; says of each committed step whether it contributed, and the
    divisor: replicas that are still getting their state count, with gradients of zero."""
    dist.destroy_process_group()
    if me.rank == late:
        me.meet("the others are under way")
    server = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    model = exact.make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=exact.RATE)
    manager = torchft.Manager(
        pg=ProcessGroupPCCL(timedelta(seconds=20)),
        load_state_dict=lambda state: load(model, optimizer, state),
        state_dict=lambda: {"model": model.state_dict(), "optimizer": optimizer.state_dict()},
        min_replica_size=2,
        timeout=timedelta(seconds=20),
        quorum_timeout=timedelta(seconds=60),
        rank=0,
        world_size=1,
        store_addr=HOST,
        store_port=server.port,
        lighthouse_addr=lighthouse,
        replica_id=f"replica{me.rank}",
        hostname=HOST,
    )
    ddp = DistributedDataParallel(manager, model, bucket_cap_mb=1e-4)
    stepper = torchft.Optimizer(manager, optimizer)
    last: Any = list(model.parameters())[-1]

    def die(_: torch.Tensor) -> None:
        if me.rank == victim and manager.current_step() == dies_at:
            manager.wait_quorum()  # the others have it in the step that it does not finish
            os.kill(os.getpid(), signal.SIGKILL)

    last.register_hook(die)
    # torchft waits for all that it knows to be alive; so none begins before it knows them.
    if late is None or me.rank == late:
        me.meet("all are known")
    waits = late is not None and me.rank != late
    dropped = 0
    while manager.current_step() < STEPS:
        if waits and manager.current_step() == LATE_AT:
            me.meet("the others are under way")
            me.meet("all are known")
            waits = False
        stepper.zero_grad()
        inputs = exact.batch(me.rank, manager.current_step())
        exact.loss_of(ddp, inputs).backward()
        step, contributed = manager.current_step(), manager.is_participating()
        divisor = manager.num_participants()
        stepper.step()
        if manager.current_step() > step:
            me.say((step, contributed, divisor))
        else:
            dropped += 1
    manager.shutdown()
    manager._pg.shutdown()
    parameters = listed([parameter.detach() for parameter in model.parameters()])
    return {"dropped": dropped, "parameters": parameters}


def load(model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: Any) -> None:
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])


Committed = dict[int, tuple[set[int], int]]  # step -> who contributed, the divisor


def heard_of(ranks: Any, rank: int, committed: Committed) -> Any:
    """Notes the steps that a replica has committed; returns its result, None if it died."""
    while True:
        try:
            said = ranks.hear(rank)
        except AssertionError as ended:
            assert f"rank {rank} ended" in str(ended), ended
            return None
        if isinstance(said, dict):
            return said
        step, contributed, divisor = said
        who, agreed = committed.setdefault(step, (set(), divisor))
        assert agreed == divisor, (step, agreed, divisor)
        who |= {rank} if contributed else set()


def replayed(committed: Committed) -> list[Any]:
    """The parameters that the committed steps lead to, in one process."""
    model = exact.make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=exact.RATE)
    for step in range(STEPS):
        who, divisor = committed[step]
        optimizer.zero_grad()
        for rank in who:
            loss: Any = exact.loss_of(model, exact.batch(rank, step))
            loss.backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad /= divisor
        optimizer.step()
    return listed([parameter.detach() for parameter in model.parameters()])


@pytest.fixture
def lighthouse() -> Iterator[str]:
    server = LighthouseServer(
        bind=f"{HOST}:0", min_replicas=2, join_timeout_ms=5000, heartbeat_timeout_ms=1000
    )
    yield server.address()
    server.shutdown()


@pytest.mark.parametrize("victim", [0, 2])
def test_replicas_of_torchfts_manager_go_on_without_one_that_was_killed(
    victim: int, lighthouse: str
) -> None:
    committed: Committed = {}
    with started(train_under_manager, 3, lighthouse, victim, 3, None, backend="gloo") as ranks:
        results = [heard_of(ranks, rank, committed) for rank in range(3)]
    assert results[victim] is None
    assert victim in committed[2][0] and victim not in committed[3][0]
    wanted = replayed(committed)
    for rank in {0, 1, 2} - {victim}:
        assert results[rank]["parameters"] == wanted, committed
        if rank in committed[2][0]:  # the step in which it died was dropped, and run again
            assert results[rank]["dropped"] >= 1


def test_a_replica_that_comes_late_gets_the_state_and_takes_part(lighthouse: str) -> None:
    committed: Committed = {}
    with started(train_under_manager, 3, lighthouse, None, 0, 2, backend="gloo") as ranks:
        results = [heard_of(ranks, rank, committed) for rank in range(3)]
    assert all(2 not in committed[step][0] for step in range(LATE_AT))
    assert committed[STEPS - 1] == ({0, 1, 2}, 3)
    wanted = replayed(committed)
    assert [result["parameters"] for result in results] == [wanted] * 3, committed
