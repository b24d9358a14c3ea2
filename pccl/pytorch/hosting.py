"""A coordinator inside the process of a group's rank 0.

It must outlive this rank's own seat: what the others still have in flight when rank 0 is done, a
flush decides, and that takes a coordinator.  So a group that ends lets its coordinator *retire*: it
stays until nobody is in any more, `RETIRE_S` at most, and only the end of the process waits for it.

Invariant: after `join_retired` no coordinator of this process runs.
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import replace

from pccl.base.clock import Deadline
from pccl.base.config import LAN
from pccl.base.errors import PcclError
from pccl.membership.messages import Underflow
from pccl.membership.service import CoordinatorOptions, CoordinatorThread
from pccl.membership.service_status import fetch_status_now
from pccl.transport.address import Address, is_loopback, parse_addresses

# All ranks are expected, and nobody else: there is no crowd to wait for.  A rank that has died is
# noticed by its connections; what the lease is for, machines that vanish and processes that are
# stopped, may take longer than among peers that come and go, since here a loss is the end.
PROFILE = replace(LAN, initial_settle_s=0.02, lease_s=6.0, suspect_grace_s=3.0, flush_timeout_s=4.0)
RETIRE_S = 5.0  # the others are told within a flush, which takes 2 s at most
POLL_S = 0.03
STATUS_S = 1.0
_retiring: set[threading.Thread] = set()


def start_coordinator(host: str, world_size: int) -> CoordinatorThread:
    """Starts the coordinator of a static group on a free port of `host`.

    Raises:
        PcclError: it cannot listen there.
    """
    return CoordinatorThread(
        CoordinatorOptions(
            listen=Address(host, 0),
            min_world=world_size,
            on_underflow=int(Underflow.RAISE),
            profile=PROFILE,
            insecure=not is_loopback(host),
        )
    ).start()


def retire(coordinator: CoordinatorThread) -> None:
    """Lets a coordinator end as soon as its members have gone; returns at once."""
    thread = threading.Thread(
        target=_retire, args=(coordinator, os.getpid()), name="pccl-retire", daemon=True
    )
    _retiring.add(thread)
    thread.start()


def join_retired() -> None:
    """Waits until the coordinators that retire have ended, which is bounded."""
    for thread in list(_retiring):
        thread.join(RETIRE_S + STATUS_S)


def _retire(coordinator: CoordinatorThread, pid: int) -> None:
    addresses = parse_addresses(coordinator.address)
    deadline, rounds = Deadline(RETIRE_S), threading.Event()
    with contextlib.suppress(PcclError, OSError):
        while not deadline.passed() and os.getpid() == pid:
            if not fetch_status_now(addresses, timeout_s=STATUS_S)["admitted"]:
                break
            rounds.wait(POLL_S)
    if os.getpid() == pid:
        coordinator.stop()
    _retiring.discard(threading.current_thread())
