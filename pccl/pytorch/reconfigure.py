"""Members by handle, as torch asks for them from 2.14 on: a group that is made anew in place.

    handle = group.get_reconfigure_handle()                      each process; exchanged by whoever
    group.reconfigure(opts{uuid, handles, timeout})              decides who takes part

A handle names a process and where a store of its own listens.  Those named meet at the store of
the first, so nothing depends on a process that is not in; `uuid` is the name under which they meet,
and is used once.  A list of handles is in the order of the new ranks; a set is ordered by the ranks
that its members had, and then by their names.  The agreement on uuid and handles is the caller's.

The former run is left before the new one is entered: what was in flight raises Aborted, and nobody
in it can disturb the new one, which has a coordinator and connections of its own.

This module does not depend on the version of torch; from 2.14 on `group` offers it under torch's
names.

Invariant: after `reconfigure` the group is of exactly the processes named, or this raised and the
group is over until the next one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from pccl.base.clock import Deadline
from pccl.collectives.placed import Seat
from pccl.pytorch.bootstrap import address_towards, meet, seconds_of, store_host
from pccl.pytorch.completer import completer
from pccl.pytorch.errors import Misused, PcclDistError
from pccl.pytorch.run import Place, Run
from pccl.pytorch.work import PcclWork
from pccl.transport.address import is_loopback

if TYPE_CHECKING:
    from pccl.pytorch.group import ProcessGroupPccl

FORM: Final = "pccl:1"  # of a handle, with its version
DIGITS_MAX: Final = 20  # of its two numbers together
OP: Final = "reconfigure"


@dataclass(frozen=True, slots=True)
class Handle:
    """One process that may become a member."""

    rank: int  # that it had when it made the handle
    name: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{FORM}:{self.rank}:{self.name}:{self.port}:{self.host}"


def parse_handle(text: str) -> Handle:
    """Raises Misused if `text` is no handle of this backend and version."""
    parts = text.removeprefix(f"{FORM}:").split(":", 3)  # the host may hold colons
    if not text.startswith(f"{FORM}:") or len(parts) != 4 or not all(parts):
        raise Misused(f"{text!r} is no handle of the pccl backend ({FORM}:...)", op=OP)
    rank, name, port, host = parts
    if not (rank.isdecimal() and port.isdecimal() and len(rank) + len(port) <= DIGITS_MAX):
        raise Misused(f"{text!r} is no handle of the pccl backend: no rank or port", op=OP)
    return Handle(int(rank), name, host, int(port))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a reconfiguration comes to for this process."""

    uuid: int
    rank: int
    size: int
    meeting: Handle  # at whose store the members meet


def plan(uuid: int, texts: Collection[str], own: str, used: Collection[int]) -> Plan:
    """Decides rank, size and meeting place.

    Args:
        texts: a sequence in the order of the ranks, or a set.
        own: the name of this process.
        used: uuids of earlier attempts.

    Raises:
        Misused: a uuid or a handle cannot be used so.
    """
    if uuid in used:
        raise Misused(f"uuid {uuid} was already used; each reconfiguration takes a new one", op=OP)
    handles = [parse_handle(str(text)) for text in texts]
    if isinstance(texts, AbstractSet):
        handles.sort(key=lambda handle: (handle.rank, handle.name))
    elif not isinstance(texts, Sequence):
        raise Misused(f"handles are a list or a set, not {type(texts).__name__}", op=OP)
    names = [handle.name for handle in handles]
    if len(set(names)) != len(names):
        raise Misused("a process is named twice among the handles", op=OP)
    if own not in names:
        raise Misused("this process is not among the handles", op=OP)
    return Plan(uuid, names.index(own), len(names), handles[0])


@dataclass(slots=True)
class Membership:
    """What makes one process's group reconfigurable: its name, its store, the uuids of the past."""

    host: str
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    used: set[int] = field(default_factory=set)
    store: TCPStore | None = None

    def handle(self, rank: int) -> str:
        """Returns the handle, which is good for as long as this process lives."""
        if self.store is None:
            self.store = TCPStore(self.host, 0, is_master=True, wait_for_workers=False)
        return str(Handle(rank, self.name, self.host, self.store.port))


class Unmade(Run):
    """The run of a group that waits for its first reconfiguration."""

    def __init__(self, place: Place, options: Any, host: str) -> None:
        self.place = place
        self.process_id = os.getpid()
        self.options = options
        self.seat = Seat(place.rank, place.size, bytes(16))
        self.queues = []
        self.host = host

    @property
    def alive(self) -> bool:
        return True

    @property
    def busy(self) -> bool:
        return False

    def check(self, op: str) -> None:
        raise Misused(
            "the group has no members yet: it was made with enable_reconfigure; reconfigure it",
            op=op,
        )

    def close(self, reason: str, *, drain_s: float = 0.0) -> None:
        """There is nothing to leave."""


def unmade_run(place: Place, store: Any, options: Any) -> Run:
    return Unmade(place, options, options.host or address_towards(store_host(store)))


# ---- on a group


def membership_of(group: ProcessGroupPccl) -> Membership:
    if group.membership is None:
        run = group.run
        host = run.host if isinstance(run, Unmade) else run.communicator.session.data_host
        if not (is_loopback(host) or group.run.options.insecure):
            raise Misused(
                f"processes of a group that is reconfigured meet at stores of torch's, which would "
                f"listen on {host} without encryption, where other machines can reach it; say "
                "Options(insecure=True) on a network you trust, or use an elastic group",
                op=OP,
            )
        group.membership = Membership(host)
    return group.membership


def handle_of(group: ProcessGroupPccl) -> str:
    return membership_of(group).handle(group.rank())


def reconfigure(group: ProcessGroupPccl, opts: Any) -> PcclWork:
    """Makes the group one of the processes named; blocks until all of them are in.

    Args:
        opts: `uuid`, `handles`, and a `timeout` or None for the group's own.

    Returns:
        a Work that is done.

    Raises:
        Misused: the arguments cannot be used so; the group is as it was.
        TimedOut: not all of those named have come in time; the group is over.
        PcclDistError: no connection; the text says why; the group is over.
    """
    membership = membership_of(group)
    found = plan(int(opts.uuid), opts.handles, membership.name, membership.used)
    membership.handle(group.rank())  # the others may meet here
    membership.used.add(found.uuid)
    timeout_s = group.timeout_s if opts.timeout is None else seconds_of(opts.timeout)
    former = group.run
    former.close("the group was reconfigured", drain_s=0.0)
    completer.flush()
    place = Place(found.rank, found.size, former.place.group_id)
    deadline = Deadline(timeout_s)
    store = PrefixStore(f"pccl/{OP}/{found.uuid}", _store_of(found.meeting, deadline))
    group.adopt(meet(place, store, former.options, deadline, timeout_s))
    return PcclWork(group.run, OP, (), [])


def _store_of(meeting: Handle, deadline: Deadline) -> TCPStore:
    left = timedelta(seconds=max(deadline.remaining_s(), 0.001))
    try:
        return TCPStore(
            meeting.host, meeting.port, is_master=False, timeout=left, wait_for_workers=False
        )
    except dist.DistError as error:
        raise PcclDistError(
            f"the first member of the new group, at {meeting.host} port {meeting.port}, cannot be "
            f"reached: {error}",
            op=OP,
        ) from error
