"""How ranks find each other, where that takes an unlucky moment."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from pccl.communicator import Communicator
from pccl.pytorch import Options, PeerLost, hosting
from pccl.pytorch.bootstrap import _host, create_group
from pccl.pytorch.run import Place
from pccl.transport.address import parse_address
from tests.integration.coordinator_processes import free_address
from tests.torch.members import Member, Members

WAIT_S = 20.0


def test_a_rank_that_is_slow_to_enter_belongs_to_a_group_that_a_quick_one_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = threading.Event()
    step = Communicator.step

    @contextlib.contextmanager
    def slow_step(self: Communicator, *args: Any) -> Iterator[Any]:
        with step(self, *args) as entry:
            yield entry
        if self.rank == 1:  # it has been told that all are in, and now looks away
            assert left.wait(WAIT_S)
            until_s = time.monotonic() + WAIT_S
            while len(self.view.members) == 2 and time.monotonic() < until_s:
                time.sleep(0.01)

    monkeypatch.setattr(Communicator, "step", slow_step)
    store = HashStore()

    def make(rank: int) -> Any:
        asked = SimpleNamespace(
            store=store,
            group_rank=rank,
            group_size=2,
            group_id="slow",
            timeout=timedelta(seconds=WAIT_S),
        )
        group = create_group(asked, None)
        if rank == 0:
            group.shutdown()
            left.set()
        return group

    with ThreadPoolExecutor(2) as pool:
        _, slow = pool.map(make, range(2))
    assert (slow.rank(), slow.size()) == (1, 2)
    with pytest.raises(PeerLost, match="rank 0"):
        slow.allreduce([torch.ones(1)]).wait()
    slow.shutdown()


class LostStore:
    """One that is lost before rank 0 has told where its coordinator is."""

    def set(self, key: str, value: str) -> None:
        raise RuntimeError("the store has ended")


def test_rank_0_leaves_no_coordinator_behind_where_it_cannot_tell_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    hosted: list[hosting.Hosted] = []
    start = hosting.start_coordinator

    def noted(*arguments: Any, **named: Any) -> hosting.Hosted:
        hosted.append(start(*arguments, **named))
        assert list(tmp_path.iterdir()) == [hosted[-1].made]
        return hosted[-1]

    monkeypatch.setattr(hosting, "start_coordinator", noted)
    options = Options(ticket="", insecure=False)
    with pytest.raises(RuntimeError, match="has ended"):
        _host(LostStore(), "key", options, Place(0, 2, "a group"))
    (one,) = hosted
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConnectionRefusedError):
        address = parse_address(one.address)
        socket.create_connection((address.host, address.port), 5)


def by_address(me: Member, at: str) -> list[float]:
    dist.init_process_group("pccl", init_method=f"tcp://{at}", rank=me.number, world_size=2)
    tensor = torch.full((3,), float(me.number + 1))
    dist.all_reduce(tensor)
    return tensor.tolist()


def test_ranks_meet_at_a_tcp_address() -> None:
    with Members(by_address, free_address()) as members:
        members.start(0, 1)
        assert [members.result(number) for number in range(2)] == [[3.0] * 3] * 2
