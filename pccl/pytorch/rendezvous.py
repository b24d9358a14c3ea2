"""`init_method="pccl://host:port/job?min=2&max=16"`: ranks from a coordinator that runs by itself.

Who connects there needs neither RANK nor WORLD_SIZE: the ranks are those of the first view, which
holds at least `min` processes.  torch itself wants a store for what is not ours (its own barriers,
the addresses of further groups), so rank 0 starts one and broadcasts where it is.

Invariant: the communicator made here becomes that of the default group, and of no other.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from urllib.parse import parse_qs, urlparse

import numpy as np
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore

from pccl.base.errors import PcclError
from pccl.communicator import Communicator
from pccl.connecting import connect
from pccl.pytorch.errors import Misused, kind_of
from pccl.pytorch.options import Options
from pccl.transport.address import is_loopback, parse_addresses

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


def _elastic_options_given() -> bool:
    """Says whether `init_process_group` was called with elastic options.

    A static group's ranks must meet here, before torch makes the group; a member of an elastic one
    must not, since its program is not at its first step yet.  torch hands on the address only, so
    this looks at its caller's arguments; `?elastic=1` in the address says the same.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "init_process_group":
            options = frame.f_locals.get("pg_options")
            return isinstance(options, Options) and options.elastic
        frame = frame.f_back  # type: ignore[assignment]
    return False


def rendezvous(url: str, timeout: timedelta | None, **_: Any) -> Iterator[tuple[Store, int, int]]:
    """What torch calls for `pccl://` addresses: yields a store, the rank and the world size."""
    asked = parse_url(url)
    if asked.elastic or _elastic_options_given():
        _elastic[:] = [asked]
        yield HashStore(), 0, 1  # an elastic group has no use for a store, nor for these numbers
        return
    timeout_s = TIMEOUT_S if timeout is None else max(timeout.total_seconds(), 0.001)
    communicator: Communicator | None = None
    try:
        communicator = connect(
            asked.addresses,
            seat=asked.rank,
            min_world=asked.least,
            on_underflow="raise",
            straggler="wait",
            timeout_s=timeout_s,
            step_timeout_s=timeout_s,
            insecure=not all(is_loopback(a.host) for a in parse_addresses(asked.addresses)),
        )
        communicator.wait_for(asked.least, timeout_s)
        with communicator.step(f"torch job {asked.job}", timeout_s):
            pass
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


def _store(communicator: Communicator, rank: int, size: int, timeout: timedelta) -> TCPStore:
    """Returns the store of torch's own, on rank 0's machine."""
    told = np.zeros(HOST_BYTES_MAX, np.uint8)
    server: TCPStore | None = None
    if rank == 0:
        host = communicator.session.data_host
        server = TCPStore(host, 0, size, True, timeout, wait_for_workers=False)
        text = f"{host} {server.port}".encode()
        told[: len(text)] = np.frombuffer(text, np.uint8)
    communicator.broadcast(told, 0)
    if server is not None:
        return server
    host, port = told.tobytes().rstrip(b"\0").decode().split(" ")
    return TCPStore(host, int(port), size, False, timeout)


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


def parse_url(url: str) -> Asked:
    """Raises Misused if the address is not `pccl://host:port[,host:port]/job?min=2&max=16`.

    torch adds the rank and the world size that a program has passed.
    """
    parts = urlparse(url)
    query = parse_qs(parts.query)
    unknown = set(query) - {"min", "max", "start", "elastic", "rank", "world_size"}
    if not parts.netloc or unknown:
        what = f"unknown {', '.join(sorted(unknown))}" if unknown else "no address"
        raise Misused(f"{url!r}: {what}; write pccl://host:port/job?min=2&max=16")
    try:
        numbers = {name: int(values[0]) for name, values in query.items()}
    except ValueError:
        raise Misused(f"{url!r}: min and max are whole numbers") from None
    elastic = bool(numbers.get("elastic", 0))
    world = None if elastic else numbers.get("world_size")
    least = numbers.get("min", 1) if world is None else world
    most = numbers.get("max", WORLD_MAX) if world is None else world
    if not 1 <= least <= most:
        raise Misused(f"{url!r}: min is at least 1 and not above max")
    job = parts.path.strip("/") or "default"
    return Asked(
        parts.netloc, job, least, most, numbers.get("rank"), elastic, numbers.get("start", 1)
    )
