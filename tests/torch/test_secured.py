"""torch groups in secured runs need a coordinator by itself; one within rank 0 takes no ticket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pccl.pytorch import Options
from pccl.pytorch.errors import Misused
from tests.security.laboratory import Laboratory, laboratory, native_has_tls
from tests.torch.ranks import Rank, run_ranks

__all__ = ["laboratory"]
secured = pytest.mark.skipif(not native_has_tls(), reason="the native core has no TLS here")


def by_ticket(me: Rank, address: str, ticket: str, elastic: bool) -> list[Any]:
    dist.destroy_process_group()
    options = Options(elastic=elastic, ticket=ticket)
    url = f"pccl://{address}/a-job?min=2"
    if elastic:
        dist.init_process_group("pccl", init_method=url, pg_options=options)
        return [ticket not in repr(options)]
    dist.init_process_group("pccl", init_method=url, pg_options=options)
    total = torch.tensor([1.0 + dist.get_rank()])
    dist.all_reduce(total)
    return [dist.get_world_size(), total.item()]


@secured
def test_ranks_with_a_ticket_meet_at_a_secured_coordinator(laboratory: Laboratory) -> None:
    with laboratory.coordinator() as coordinator:
        ticket = laboratory.ticket(uses=2).text
        found = run_ranks(by_ticket, 2, coordinator.address, ticket, False)
    assert found == [[2, 3.0]] * 2
    assert len(laboratory.audit("admitted")) == 2


@secured
def test_an_elastic_group_comes_in_by_its_ticket(laboratory: Laboratory) -> None:
    with laboratory.coordinator() as coordinator:
        ticket = laboratory.ticket(uses=2).text
        assert run_ranks(by_ticket, 2, coordinator.address, ticket, True) == [[True]] * 2
    assert len(laboratory.audit("admitted")) == 2


@pytest.mark.parametrize("by_environment", [True, False])
def test_a_group_whose_coordinator_is_within_rank_0_takes_no_ticket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_environment: bool
) -> None:
    monkeypatch.delenv("PCCL_TICKET", raising=False)
    if by_environment:
        monkeypatch.setenv("PCCL_TICKET", "pccl1_anything")
    options = Options() if by_environment else Options(ticket="pccl1_anything")
    store = dist.FileStore(str(tmp_path / "store"), 1)
    with pytest.raises(Misused, match="secures nothing; start `pccl coordinator --ca`"):
        dist.init_process_group("pccl", store=store, rank=0, world_size=1, pg_options=options)


def test_a_ticket_is_text() -> None:
    with pytest.raises(Misused, match="ticket must be"):
        Options(ticket=3)  # type: ignore[arg-type]
