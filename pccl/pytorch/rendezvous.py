"""`init_method="pccl://host:port/job?min=2&max=16"`: ranks from a coordinator that runs by itself.

Who connects there needs neither RANK nor WORLD_SIZE: the ranks are those of the first view, which
holds at least `min` processes.  torch itself wants a store for what is not ours (its own barriers,
the addresses of further groups), so rank 0 starts one and broadcasts where it is.

Invariant: the communicator made here becomes that of the default group, and of no other.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from urllib.parse import parse_qs, urlparse

import numpy as np
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore

from pccl.base.errors import DeadlineExceeded, PcclError
from pccl.communicator import Communicator
from pccl.connecting import connect
from pccl.pytorch import store_tunnel
from pccl.pytorch.errors import Misused, kind_of
from pccl.pytorch.options import Options, check_options
from pccl.pytorch.store_tunnel import LOOPBACK, material_of
from pccl.pytorch.waiting import require_reachable, told_if_slow
from pccl.state.stream import identity_of
from pccl.transport.address import is_loopback
from pccl.transport.identity import Name, Role

TIMEOUT_S: Final = 300.0
HOST_BYTES_MAX: Final = 256
WORLD_MAX: Final = 1024  # as many as a coordinator admits
_adopted: list[Communicator] = []
_elastic: list[Asked] = []


def take_adopted(rank: int, size: int) -> Communicator | None:
    """Returns the communicator of the latest rendezvous if the group being made is its own."""
    if not _adopted or dist.is_initialized():
        return None
    communicator = _adopted.pop()
    if (communicator.rank, communicator.world_size) == (rank, size):
        return communicator
    communicator.close()
    return None


def take_elastic(store: Any) -> Asked | None:
    """Returns what the latest rendezvous asked for, if the group being made is to be elastic."""
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    return _elastic.pop() if _elastic and isinstance(store, HashStore) else None


def _options_given() -> Options | None:
    """Returns the options that `init_process_group` was called with.

    A static group's ranks must meet here, before torch makes the group; a member of an elastic one
    must not, since its program is not at its first step yet.  torch hands on the address only, so
    this looks at its caller's arguments; `?elastic=1` in the address says the same.

    Raises:
        Misused: they are no Options; else this would be told only when all ranks have come.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "init_process_group":
            return check_options(frame.f_locals.get("pg_options"))
        frame = frame.f_back  # type: ignore[assignment]
    return None


def rendezvous(url: str, timeout: timedelta | None, **_: Any) -> Iterator[tuple[Store, int, int]]:
    """What torch calls for `pccl://` addresses: yields a store, the rank and the world size."""
    options = _options_given() or Options()
    asked = parse_url(url, elastic=options.elastic)
    if asked.elastic:
        _elastic[:] = [asked]
        yield HashStore(), 0, 1  # an elastic group has no use for a store, nor for these numbers
        return
    timeout_s = TIMEOUT_S if timeout is None else max(timeout.total_seconds(), 0.001)
    communicator: Communicator | None = None
    try:
        communicator = _connect(asked, options, timeout_s)
        rank, size = communicator.rank, communicator.world_size
        if size > asked.most:
            raise Misused(f"{size} processes have come to {url}, which takes {asked.most}")
        store = _store(communicator, rank, size, timedelta(seconds=timeout_s))
    except BaseException as error:
        if communicator is not None:
            communicator.close()
        if isinstance(error, PcclError):
            raise kind_of(error)(f"{url}: {error}", op="init_process_group") from error
        raise
    _adopted.append(communicator)
    yield store, rank, size


def _connect(asked: Asked, options: Options, timeout_s: float) -> Communicator:
    """Returns the seat of this process, once all ranks are in.  Raises PcclError or Misused."""
    require_reachable(options.host, asked.addresses)
    options.require_secured_if_demanded()
    with told_if_slow(lambda: f"the coordinator at {asked.addresses}", timeout_s):
        communicator = connect(
            asked.addresses,
            ticket=options.ticket,
            seat=asked.rank,
            min_world=asked.least,
            on_underflow="raise",
            straggler="wait",
            timeout_s=timeout_s,
            listen=None if options.host is None else f"{options.host}:0",
            lanes=options.lanes,
            step_timeout_s=timeout_s,
            insecure=bool(options.insecure),
            coordinator_grace_s=options.coordinator_grace_s,
        )
    try:
        with told_if_slow(lambda: _missing_words(communicator, asked), timeout_s):
            communicator.wait_for(asked.least, timeout_s)
            with communicator.step(f"torch job {asked.job}", timeout_s):
                pass
    except BaseException as error:
        communicator.close()
        if isinstance(error, DeadlineExceeded):
            raise DeadlineExceeded(f"{error}; {another_job(asked.job)}") from error
        raise
    return communicator


def _missing_words(communicator: Communicator, asked: Asked) -> str:
    world = communicator.session.agent.standing.world
    have = 0 if world is None else world.admitted
    return (
        f"{asked.least} ranks of job {asked.job!r}: {have} processes are at the coordinator "
        f"{asked.addresses}, which serves one job at a time"
    )


def another_job(job: str) -> str:
    """Says why members may wait in vain although enough processes have come."""
    return (
        f"or the coordinator serves another job than {job!r}: it serves one at a time, so start "
        "one for each"
    )


def _store(communicator: Communicator, rank: int, size: int, timeout: timedelta) -> TCPStore:
    """Returns the store of torch's own, on rank 0's machine; in a secured group whose ranks reach
    each other from other machines, through a tunnel of TLS."""
    told = np.zeros(HOST_BYTES_MAX, np.uint8)
    session = communicator.session
    server: TCPStore | None = None
    if rank == 0:
        material = material_of(session)
        if material is None or is_loopback(session.data_host):
            server = TCPStore(session.data_host, 0, size, True, timeout, wait_for_workers=False)
            port = server.port
        else:
            server = _hidden_store(size, timeout)
            run_id = identity_of(session, None).run_id
            credentials = session.agent.credentials
            denials = None if credentials is None else credentials.denials
            where = session.data_host, server.port
            port = store_tunnel.serve(*where, run_id, material, denials).port
        text = f"{session.data_host} {port}".encode()
        told[: len(text)] = np.frombuffer(text, np.uint8)
    communicator.broadcast(told, 0)
    if server is not None:
        return server
    host, port_text = told.tobytes().rstrip(b"\0").decode().split(" ")
    return _store_at(communicator, host, int(port_text), size, timeout)


def _hidden_store(size: int, timeout: timedelta) -> TCPStore:
    """Rank 0's own, where only this machine reaches it."""
    listener = store_tunnel.loopback_listener()
    port = listener.getsockname()[1]
    return TCPStore(
        LOOPBACK,
        port,
        size,
        True,
        timeout,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def _store_at(
    communicator: Communicator, host: str, port: int, size: int, timeout: timedelta
) -> TCPStore:
    material = material_of(communicator.session)
    if material is not None and not is_loopback(host):
        run_id = identity_of(communicator.session, None).run_id
        first = Name(run_id, bytes(communicator.view.members[0]), Role.TRAINER)
        host, port = LOOPBACK, store_tunnel.towards(host, port, first, material).port
    return TCPStore(host, port, size, False, timeout)


@dataclass(frozen=True, slots=True)
class Asked:
    """What an address says."""

    addresses: str
    job: str
    least: int
    most: int
    rank: int | None
    elastic: bool = False
    start: int = 1  # of an elastic group: members without which its first step does not begin
    said: frozenset[str] = frozenset()  # what is no default: names of the query, and "job"


def parse_url(url: str, *, elastic: bool = False) -> Asked:
    """
    Args:
        url: torch has added the rank and the world size that a program has passed.
        elastic: the program's options say so, whether or not the address does.

    Raises:
        Misused: it is not `pccl://host:port[,host:port]/job?min=2&max=16`, with `start` and
            `elastic` for elastic groups; or a fixed group's address does not say its size.
    """
    try:
        parts = urlparse(url)
        query = parse_qs(parts.query)
    except ValueError as error:  # brackets that hold no address, or more fields than anybody has
        raise Misused(f"{url!r}: {error}; write pccl://host:port/job?min=2&max=16") from error
    unknown = set(query) - {"min", "max", "start", "elastic", "rank", "world_size"}
    if not parts.netloc or unknown:
        what = f"unknown {', '.join(sorted(unknown))}" if unknown else "no address"
        raise Misused(
            f"{url!r}: {what}; write pccl://host:port/job?min=2&max=16, for an elastic group also "
            "start=4 and elastic=1"
        )
    try:
        numbers = {name: int(values[0]) for name, values in query.items()}
    except ValueError:
        raise Misused(f"{url!r}: min, max, start and elastic are whole numbers") from None
    elastic = elastic or bool(numbers.get("elastic", 0))
    world = None if elastic else numbers.get("world_size")
    least = numbers.get("min", 1) if world is None else world
    most = numbers.get("max", WORLD_MAX) if world is None else world
    start = numbers.get("start", 1)
    if not elastic:
        _require_size(url, numbers)
    if not (1 <= least <= most and 1 <= start <= most):
        raise Misused(f"{url!r}: min and start are at least 1 and not above max")
    job = parts.path.strip("/")
    said = frozenset(numbers) | (frozenset({"job"}) if job else frozenset())
    return Asked(
        parts.netloc, job or "default", least, most, numbers.get("rank"), elastic, start, said
    )


def _require_size(url: str, numbers: Mapping[str, int]) -> None:
    """Each process would else be a world of its own, and train alone without a word."""
    if "start" in numbers:
        raise Misused(
            f"{url!r}: start is for elastic groups (Options(elastic=True), or elastic=1 in the "
            "address); a fixed group begins with min ranks"
        )
    if not {"min", "world_size"} & set(numbers):
        raise Misused(
            f"{url!r}: pass ?min=N, the number of ranks, or world_size=N to init_process_group; "
            "without it each process would be a world of its own"
        )
