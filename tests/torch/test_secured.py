"""torch groups in secured runs: whose coordinator runs by itself, and whose runs within rank 0."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pccl import connecting
from pccl.membership.agent_denials import Denied
from pccl.pytorch import Options, hosting, rendezvous, store_tunnel
from pccl.pytorch.errors import Misused, PcclDistError
from pccl.pytorch.group import ProcessGroupPccl
from pccl.transport import native_frames as nf
from pccl.transport.framing import frame
from pccl.transport.identity import TlsMaterial
from tests.security.laboratory import Laboratory, laboratory, native_has_tls
from tests.security.wiretap import free_port
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


def by_public_ticket(me: Rank, address: str, ticket: str) -> list[Any]:
    """As if other machines reached every address: torch's own store, too, must be out of reach."""
    rendezvous.is_loopback = lambda host: False  # type: ignore[attr-defined]
    dist.destroy_process_group()
    url = f"pccl://{address}/a-job?min=2"
    dist.init_process_group("pccl", init_method=url, pg_options=Options(ticket=ticket))
    part = dist.new_group([0, 1])  # meets at torch's store
    total = torch.ones(3) * (1 + dist.get_rank())
    dist.all_reduce(total, group=part)
    dist.barrier()
    names = {thread.name for thread in threading.enumerate()}
    refused = True
    if dist.get_rank() == 0:
        for port in served:
            for context in (None, stranger_context()):
                refused = refused and not says_anything(port, context)
    dist.barrier()
    return [total.tolist(), "pccl-store" in names, refused, len(served) == 1 - dist.get_rank()]


served: list[int] = []  # ports of tunnels that other machines reach
_serve = store_tunnel.serve


def _noted(
    host: str,
    store_port: int,
    run_id: bytes,
    material: Callable[[], TlsMaterial],
    denials: Denied | None = None,
) -> store_tunnel.StoreTunnel:
    made = _serve(host, store_port, run_id, material, denials)
    served.append(made.port)
    return made


store_tunnel.serve = _noted


def stranger_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def says_anything(port: int, context: ssl.SSLContext | None) -> bool:
    """Whether torch's store answers a question, which begins with its magic number."""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as plain:
            plain.settimeout(8)
            end = plain if context is None else context.wrap_socket(plain)
            end.sendall(bytes.fromhex("00d2b00b0a") + bytes(64))
            said = end.recv(100)
            return bool(said) and said[:1] != b"\x15"  # a TLS alert tells nothing
    except OSError:
        return False


@secured
def test_torchs_own_store_of_a_secured_group_is_within_tls(laboratory: Laboratory) -> None:
    with laboratory.coordinator() as coordinator:
        ticket = laboratory.ticket(uses=2).text
        found = run_ranks(by_public_ticket, 2, coordinator.address, ticket)
    assert found == [[[3.0] * 3, True, True, True]] * 2


# ---------------------------------------------------------------------- hosted by rank 0


def securely(kind: str) -> bool:
    """Whether the group's run is secured; what it sums is checked on the way."""
    world = dist.get_world_size()
    total = torch.arange(1000, dtype=torch.float32) + dist.get_rank()
    dist.all_reduce(total)
    expected = torch.arange(1000, dtype=torch.float32) * world + world * (world - 1) / 2
    assert torch.equal(total, expected), kind
    group = dist.group.WORLD
    assert isinstance(group, ProcessGroupPccl)
    agent = group.run.communicator.session.agent
    return agent.standing.admitted is not None and secured_ends(group)


def secured_ends(group: ProcessGroupPccl) -> bool:
    """Whether this rank's own listener has nothing but TLS for who comes without."""
    port = group.run.communicator.session.engine.port
    with socket.create_connection(("127.0.0.1", port), 5) as stranger:
        stranger.settimeout(10)
        hello = nf.NativeHello(
            purpose=nf.Purpose.DATA_LANE,
            run_id=b"r" * 16,
            peer_id=b"p" * 16,
            incarnation=1,
            secret=b"s" * 16,
        )
        stranger.sendall(frame(nf.encode(hello)))
        return b"of a secured run" in stranger.recv(4096)


def meet_again(me: Rank, options: Options, how: str) -> None:
    dist.destroy_process_group()
    if how == "file":
        store = dist.FileStore(me.setting.store + ".again", me.world)
        dist.init_process_group(
            "pccl", store=store, rank=me.rank, world_size=me.world, pg_options=options
        )
        return
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=how, RANK=str(me.rank), WORLD_SIZE=str(me.world)
    )
    dist.init_process_group("pccl", init_method="env://", pg_options=options)


def by_own_ca(me: Rank, how: str, insecure: bool | None, public: bool) -> list[bool]:
    hosted: list[hosting.Hosted] = []
    start = hosting.start_coordinator

    def noted(*args: Any, **named: Any) -> hosting.Hosted:
        hosted.append(start(*args, **named))
        return hosted[-1]

    hosting.start_coordinator = noted
    if public:  # as if other machines reached every address
        for module in (hosting, connecting):
            module.is_loopback = lambda host: False  # type: ignore[attr-defined]
    meet_again(me, Options(insecure=insecure), how)
    found = [securely("world")]
    part = dist.new_group([0, 1])  # of its own CA
    total = torch.ones(3)
    dist.all_reduce(total, group=part)
    found.append(total.tolist() == [2.0] * 3)
    folders = [one.made for one in hosted]
    made = [folder.stat().st_mode & 0o777 == 0o700 for folder in folders if folder is not None]
    dist.destroy_process_group()
    hosting.join_retired()
    gone = not any(folder.exists() for folder in folders if folder is not None)
    return [*found, len(made) == (2 if me.rank == 0 and found[0] else 0), all(made), gone]


@secured
@pytest.mark.parametrize("how", ["file", "env"])
def test_rank_0_secures_a_group_by_a_ca_of_its_own_that_goes_with_it(how: str) -> None:
    found = run_ranks(by_own_ca, 2, "file" if how == "file" else str(free_port()), False, False)
    assert found == [[True] * 5] * 2


@secured
@pytest.mark.parametrize(("insecure", "safe"), [(None, True), (True, False)])
def test_a_group_that_other_machines_reach_is_secured_unless_told_otherwise(
    insecure: bool | None, safe: bool
) -> None:
    found = run_ranks(by_own_ca, 2, "file", insecure, True)
    assert found == [[safe, True, True, True, True]] * 2


def by_given_ca(me: Rank, folder: str, tickets: list[str]) -> str:
    options = Options(ca=folder if me.rank == 0 else None, ticket=tickets[me.rank])
    try:
        meet_again(me, options, "file")
    except PcclDistError as error:
        return str(error)
    return str(securely("given"))


@secured
@pytest.mark.parametrize("own", [True, False])
def test_rank_0_secures_a_group_by_the_ca_that_it_is_given(
    laboratory: Laboratory, own: bool
) -> None:
    first, second = (laboratory.ticket().text for _ in range(2))
    tickets = [first if own else "", second]
    assert run_ranks(by_given_ca, 2, str(laboratory.folder), tickets) == ["True"] * 2
    assert len(laboratory.audit("admitted")) == 2


def without_one(me: Rank, folder: str, tickets: list[str]) -> str:
    dist.destroy_process_group()
    options = Options(ca=(folder or None) if me.rank == 0 else None, ticket=tickets[me.rank])
    store = dist.FileStore(me.setting.store + ".again", me.world)
    with pytest.raises(PcclDistError) as caught:
        dist.init_process_group(
            "pccl",
            store=store,
            rank=me.rank,
            world_size=me.world,
            pg_options=options,
            timeout=timedelta(seconds=4),
        )
    return str(caught.value)


@secured
def test_a_rank_without_a_ticket_or_with_one_that_nobody_knows_is_told_so(
    laboratory: Laboratory,
) -> None:
    ticket = laboratory.ticket().text
    _, text = run_ranks(without_one, 2, str(laboratory.folder), [ticket, ""])
    assert "give this rank a ticket of it" in text
    _, text = run_ranks(without_one, 2, "", ["", ticket])
    assert "has not been given the ticket's CA" in text
    first, second = run_ranks(without_one, 2, "", [ticket, ticket])
    assert "Options(ca=DIR)" in first and "Options(ca=DIR)" in second


def test_encryption_that_is_demanded_and_cannot_be_had_is_an_error() -> None:
    for elastic in (False, True):
        options = Options(insecure=False, elastic=elastic, ticket="")
        with pytest.raises(Misused, match="demands encryption"):
            url = "pccl://127.0.0.1:1/a-job?min=1"
            dist.init_process_group("pccl", init_method=url, pg_options=options)
    for wrong in ({"ca": 3}, {"ca": "d", "insecure": True}, {"ca": "d", "elastic": True}):
        with pytest.raises(Misused, match="ca "):
            Options(**wrong)
    with pytest.raises(Misused, match="insecure must be"):
        Options(insecure="no")  # type: ignore[arg-type]


def test_a_ticket_is_text() -> None:
    with pytest.raises(Misused, match="ticket must be"):
        Options(ticket=3)  # type: ignore[arg-type]
