"""From torch's store to a group: how the ranks of one group find each other.

    rank 0: starts a coordinator in its process, writes its address into the group's store, and the
            ticket of a CA made for this group if other machines can reach it
    others: wait for that address                                  all: connect, enter together

Each group is a run of its own, so its steps are numbered for it alone and what it loses concerns no
other group.  Where the coordinator and the data listen follows the store: on the loopback address
if the ranks meet there, else on the address of this machine that leads to the store.

Invariant: `create_group` returns a group whose ranks are all in, or raises within the group's
timeout and has left nothing behind.  Keys in the store are used once: each making of a group on the
same store and prefix has its own number, so nobody reads the address of an earlier one.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from pccl.base.clock import Deadline
from pccl.base.errors import PcclError
from pccl.communicator import Communicator
from pccl.connecting import connect
from pccl.outcome import Peer
from pccl.pytorch import hosting, rendezvous
from pccl.pytorch.errors import Misused, PcclDistError, TimedOut, kind_of
from pccl.pytorch.group import ProcessGroupPccl
from pccl.pytorch.host_watch import HostWatch
from pccl.pytorch.hosting import Hosted
from pccl.pytorch.options import Options, check_options
from pccl.pytorch.run import Place, Run
from pccl.pytorch.waiting import require_reachable
from pccl.transport.address import is_loopback, parse_addresses
from pccl.transport.join_ticket import JoinTicket, parse_ticket

LOOPBACK = "127.0.0.1"
ENTRY = "torch group"  # the name of the step in which all ranks come in
FAILED = "failed: "
PLAIN = "plain"  # how to come in: without anything,
OWN_TICKET = "secured"  # by a ticket that each rank has, else by the one that stands there
COORDINATOR_GRACE_S = 3.0  # it ended with a process that does not come back
TIMEOUT_S_MAX = 10 * 365 * 86400.0


def create_group(backend_options: Any, pg_options: object) -> ProcessGroupPccl:
    """What torch calls to make a group.

    Raises:
        Misused: `pg_options` are those of another backend.
        TimedOut: the other ranks did not come in time.
        PcclDistError: no connection; the text says why.
    """
    options = check_options(pg_options) or _inherited()
    place = Place(
        int(backend_options.group_rank),
        int(backend_options.group_size),
        str(backend_options.group_id),
    )
    timeout_s = seconds_of(backend_options.timeout)
    elastic = rendezvous.take_elastic(backend_options.store)
    if options.elastic or elastic is not None:
        from pccl.pytorch.elastic.bootstrap import create_elastic

        return create_elastic(place.group_id, options, elastic, timeout_s)
    _refuse_part_of_elastic()
    adopted = rendezvous.take_adopted(place.rank, place.size)
    if adopted is not None:
        run = Run(place, adopted, options, None, hosted=False)
    elif getattr(backend_options, "enable_reconfigure", False):  # torch 2.14: members by handles
        from pccl.pytorch.reconfigure import unmade_run

        run = unmade_run(place, backend_options.store, options)
    else:
        run = meet(place, backend_options.store, options, Deadline(timeout_s), timeout_s)
    return ProcessGroupPccl(run, timeout_s)


def seconds_of(timeout: timedelta) -> float:
    return min(max(timeout.total_seconds(), 0.001), TIMEOUT_S_MAX)


def _refuse_part_of_elastic() -> None:
    world = dist.group.WORLD
    if isinstance(world, ProcessGroupPccl) and world.run.options.elastic:
        raise Misused(
            "the default group is elastic, so a part of it would keep ranks that change; make the "
            "static group first and the elastic one by new_group, or another elastic one",
            op="new_group",
        )


def _inherited() -> Options:
    """The options of the default group.  If that is secured, a part of it is, too: by a CA made for
    it, since its coordinator is within one of the ranks, which has not that of the ticket."""
    world = dist.group.WORLD
    if not isinstance(world, ProcessGroupPccl) or world.run.options.elastic:
        return Options()
    options = world.run.options
    if world.run.communicator.session.agent.credentials is None:
        return options
    return replace(options, ticket="", ca=None, insecure=False)


def meet(place: Place, store: Any, options: Options, deadline: Deadline, timeout_s: float) -> Run:
    """Makes the run of the ranks that meet at a store.  Raises PcclDistError."""
    coordinator: Hosted | None = None
    communicator: Communicator | None = None
    made = False
    try:
        # How often this rank has made a group here: alike on all ranks.
        number = store.add(f"pccl/{place.rank}/made", 1)
        key = f"pccl/{number}/coordinator"
        if place.rank == 0:
            coordinator = _host(store, key, options, place)
            address, ticket = coordinator.address, coordinator.ticket
        else:
            address, how = _address_of(store, key, place, deadline)
            ticket = _way_in(how, options, place)
        communicator = _connect(address, ticket, place, options, deadline, timeout_s)
        members = _enter(communicator, place, deadline)
        run = Run(place, communicator, options, coordinator, members)
        if coordinator is None:
            addresses = parse_addresses(address)
            watch = HostWatch(run, communicator.session, addresses, place.group_id, ticket)
            run.queues.append(watch)
        made = True
        return run
    except PcclError as error:
        kind = kind_of(error)
        raise kind(f"group {place.group_id!r}: {error}", op="init_process_group") from error
    finally:
        if not made:
            if communicator is not None:
                communicator.close()
            if coordinator is not None:
                coordinator.stop()


def _host(store: Any, key: str, options: Options, place: Place) -> Hosted:
    """Starts the coordinator and tells the others where it is, and by which ticket they come in if
    not by their own; or that there is none.

    Raises:
        Misused: there is a ticket, and no CA that it is of.
    """
    host = options.host or address_towards(store_host(store))
    ticket = options.own_ticket
    try:
        if ticket and options.ca is None:
            raise Misused(
                f"group {place.group_id!r}: there is a join ticket, but the coordinator of this "
                "group runs within its rank 0: give that the ticket's CA, too (Options(ca=DIR)); "
                "or start `pccl coordinator --ca` and pass init_method='pccl://host:port/job'; or "
                "say Options(ticket='') for a group without this ticket",
                op="init_process_group",
            )
        coordinator = hosting.start_coordinator(
            host, place.size, ca=options.ca, ticket=ticket, insecure=options.insecure
        )
    except BaseException as error:
        store.set(key, f"{FAILED}{error}")
        raise
    if coordinator.ticket is None:
        how = PLAIN
    else:
        how = OWN_TICKET if coordinator.made is None else coordinator.ticket.text
    try:
        store.set(key, f"{coordinator.address} {how}")
    except BaseException:
        coordinator.stop()
        raise
    return coordinator


def _way_in(how: str, options: Options, place: Place) -> JoinTicket | None:
    """Returns the ticket by which this rank comes in, None for a group without encryption.

    Raises:
        Misused: this rank has a ticket where the others have none, or the other way round.
    """
    ticket = options.own_ticket
    if how == OWN_TICKET and not ticket:
        text = (
            "rank 0 secures this group by a CA of its own: give this rank a ticket of it, "
            "Options(ticket=...) or PCCL_TICKET (`pccl ca ticket` makes one)"
        )
    elif how != OWN_TICKET and ticket:
        text = (
            "this rank has a join ticket, but rank 0, which runs the group's coordinator, has not "
            "been given the ticket's CA (Options(ca=DIR)); say Options(ticket='') to do without"
        )
    elif how == PLAIN and options.insecure is False:
        text = "Options(insecure=False) demands encryption, and rank 0 has not demanded it"
    else:
        own = ticket if how == OWN_TICKET else "" if how == PLAIN else how
        return parse_ticket(own) if own else None
    raise Misused(f"group {place.group_id!r}: {text}", op="init_process_group")


def _address_of(store: Any, key: str, place: Place, deadline: Deadline) -> tuple[str, str]:
    """Returns what `_host` has told: where, and how to come in."""
    left_s = max(deadline.remaining_s(), 0.001)
    try:
        store.wait([key], timedelta(seconds=left_s))
        text: str = store.get(key).decode()
    except RuntimeError as error:  # a store in a file raises no kind of its own
        raise TimedOut(
            f"group {place.group_id!r}: rank 0 of the group has not told where its coordinator is "
            f"within the group's timeout: {error}",
            op="init_process_group",
        ) from error
    if text.startswith(FAILED):
        raise PcclDistError(
            f"group {place.group_id!r}: rank 0 could not start a coordinator: "
            f"{text.removeprefix(FAILED)}",
            op="init_process_group",
        )
    address, _, how = text.partition(" ")
    return address, how


def _connect(
    address: str,
    ticket: JoinTicket | None,
    place: Place,
    options: Options,
    deadline: Deadline,
    timeout_s: float,
) -> Communicator:
    require_reachable(options.host, address)
    return connect(
        address,
        ticket="" if ticket is None else ticket.text,
        seat=place.rank,
        min_world=place.size,
        on_underflow="raise",
        straggler="wait",
        timeout_s=max(deadline.remaining_s(), 0.001),
        listen=None if options.host is None else f"{options.host}:0",
        lanes=options.lanes,
        insecure=bool(options.insecure),
        step_timeout_s=timeout_s,
        coordinator_grace_s=options.coordinator_grace_s or COORDINATOR_GRACE_S,
    )


def _enter(communicator: Communicator, place: Place, deadline: Deadline) -> tuple[Peer, ...]:
    """The first step, in which all ranks become members; returns these.

    By the time that a slow rank hears of it, a quick one may have left again; so what counts is
    who was in the step, and not who is there now.
    """
    with communicator.step(ENTRY, max(deadline.remaining_s(), 0.001)) as entry:
        pass
    members = entry.outcome.contributors
    rank = members.index(communicator.peer_id)
    if (rank, len(members)) != (place.rank, place.size):
        raise PcclDistError(
            f"group {place.group_id!r}: the run gave this process rank {rank} of {len(members)}, "
            f"torch rank {place.rank} of {place.size}; do two groups share one store and prefix?",
            op="init_process_group",
        )
    return members


# ---- where


def store_host(store: Any) -> str:
    """Returns the host of the store that the ranks meet at; "" if it has none (a file)."""
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    return store.host if isinstance(store, TCPStore) else ""


def address_towards(host: str) -> str:
    """Returns the address of this machine that leads to `host`, the loopback one without any."""
    if not host or is_loopback(host):
        return LOOPBACK
    try:
        found = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
    except OSError:
        return LOOPBACK
    for family, kind, protocol, _, address in sorted(found, key=lambda f: f[0] != socket.AF_INET):
        try:
            with socket.socket(family, kind, protocol) as probe:  # nothing is sent by this
                probe.connect(address)
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return LOOPBACK
