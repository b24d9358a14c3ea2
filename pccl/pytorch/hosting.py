"""A coordinator inside the process of a group's rank 0.

It must outlive this rank's own seat: what the others still have in flight when rank 0 is done, a
flush decides, and that takes a coordinator.  So a group that ends lets its coordinator *retire*: it
stays until nobody is in any more, `RETIRE_S` at most, and only the end of the process waits for it.

A group that other machines can reach is secured: by a CA that its owner has made, or by one that is
made here for this group alone, in a folder of this user's that goes with the coordinator.  The
ticket of the latter reaches the other ranks through the store that they meet at.

Invariant: after `join_retired` no coordinator of this process runs, and no CA made for one is left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from pccl.base.clock import Deadline
from pccl.base.config import LAN
from pccl.base.errors import PcclError, UsageError
from pccl.membership.messages import Underflow
from pccl.membership.service import CoordinatorOptions, CoordinatorThread
from pccl.membership.service_ca import init_ca, open_ca
from pccl.membership.service_status import fetch_status_now
from pccl.transport.address import Address, is_loopback, parse_addresses
from pccl.transport.identity import Role
from pccl.transport.join_ticket import JoinTicket, parse_ticket

# All ranks are expected, and nobody else: there is no crowd to wait for.  A rank that has died is
# noticed by its connections; what the lease is for, machines that vanish and processes that are
# stopped, may take longer than among peers that come and go, since here a loss is the end.
PROFILE = replace(LAN, initial_settle_s=0.02, lease_s=6.0, suspect_grace_s=3.0, flush_timeout_s=4.0)
RETIRE_S = 5.0  # the others are told within a flush, which takes 2 s at most
POLL_S = 0.03
STATUS_S = 1.0
STOP_S = 2.0
TICKET_S = 86_400.0  # for enrolling; who is in renews its certificate without it
_retiring: set[threading.Thread] = set()


@dataclass(frozen=True, slots=True)
class Hosted:
    """A coordinator of this process."""

    thread: CoordinatorThread
    ticket: JoinTicket | None  # this rank's; None: nothing is secured
    made: Path | None  # the folder of a CA that was made for it alone

    @property
    def address(self) -> str:
        return self.thread.address

    def stop(self) -> None:
        self.thread.stop()
        if self.made is not None:
            shutil.rmtree(self.made, ignore_errors=True)


def start_coordinator(
    host: str, world_size: int, *, ca: str | None, ticket: str, insecure: bool | None
) -> Hosted:
    """Starts the coordinator of a static group on a free port of `host`.

    Args:
        ca: the folder of the CA to secure it by, if it is the owner's own.
        ticket: this rank's own ticket of that CA; "": one is made.
        insecure: True: without encryption; False: with; None: with it if other machines can reach
            `host`, or there is a `ca`.

    Raises:
        PcclError: it cannot listen there, or the CA cannot be used.
    """
    if ca is not None:
        return _start(host, world_size, Path(ca), ticket, None)
    if insecure or (insecure is None and is_loopback(host)):
        return _start(host, world_size, None, "", None)
    try:
        folder = Path(tempfile.mkdtemp(prefix="pccl-ca-"))  # made for its owner alone
    except OSError as error:
        raise UsageError(f"cannot make a folder for the group's CA: {error}") from error
    try:
        init_ca(folder).close()
        return _start(host, world_size, folder, "", folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _start(host: str, world_size: int, ca: Path | None, ticket: str, made: Path | None) -> Hosted:
    thread = CoordinatorThread(
        CoordinatorOptions(
            listen=Address(host, 0),
            min_world=world_size,
            on_underflow=int(Underflow.RAISE),
            profile=PROFILE,
            insecure=ca is None and not is_loopback(host),
            ca=ca,
        )
    ).start()
    try:
        own = None if ca is None else _ticket_of(ca, ticket, world_size if made else 1, thread)
    except BaseException:
        thread.stop()
        raise
    return Hosted(thread, own, made)


def _ticket_of(ca: Path, ticket: str, uses: int, thread: CoordinatorThread) -> JoinTicket:
    if ticket:
        return parse_ticket(ticket)
    opened = open_ca(ca)
    try:
        return opened.make_ticket(
            Role.TRAINER, uses=uses, expires_in_s=TICKET_S, endpoints=(thread.address,)
        )
    finally:
        opened.close()


def retire(coordinator: Hosted) -> None:
    """Lets a coordinator end as soon as its members have gone; returns at once."""
    thread = threading.Thread(
        target=_retire, args=(coordinator, os.getpid()), name="pccl-retire", daemon=True
    )
    _retiring.add(thread)
    thread.start()


def join_retired() -> None:
    """Waits until the coordinators that retire have ended, which is bounded."""
    for thread in list(_retiring):
        thread.join(RETIRE_S + STATUS_S + STOP_S)  # a question may begin as the time ends


def _retire(coordinator: Hosted, pid: int) -> None:
    addresses = parse_addresses(coordinator.address)
    deadline, rounds = Deadline(RETIRE_S), threading.Event()
    while not deadline.passed() and os.getpid() == pid and coordinator.thread.failure is None:
        # One that refuses, or has no place at its port now, may well have members.
        with contextlib.suppress(PcclError, OSError):
            status = fetch_status_now(addresses, timeout_s=STATUS_S, ticket=coordinator.ticket)
            if not status["admitted"]:
                break
        rounds.wait(POLL_S)
    if os.getpid() == pid:
        coordinator.stop()
    _retiring.discard(threading.current_thread())
