"""What a process is told while it comes in: what it waits for, or why it cannot be reached.

Invariant: nothing here outlives the block that it watches.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from pccl.base.log import get_logger
from pccl.pytorch.errors import Misused
from pccl.transport.address import is_loopback, parse_addresses

QUIET_S = 10.0  # a start takes a few seconds where processes load torch; longer looks like a hang
_log = get_logger("pytorch")


@contextlib.contextmanager
def told_if_slow(what: Callable[[], str], timeout_s: float) -> Iterator[None]:
    """Logs a warning if the block takes long: what it waits for, and until when.

    Args:
        what: called on another thread, when the block has taken long.
        timeout_s: for how long the block waits at most.
    """
    until = time.strftime("%H:%M:%S", time.localtime(time.time() + timeout_s))

    def tell() -> None:
        _log.warning("for %g s this process waits, until %s, for %s", QUIET_S, until, what())

    timer = threading.Timer(QUIET_S, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def require_reachable(host: str | None, addresses: str) -> None:
    """Raises Misused if others could not come together with a process that listens at `host`.

    A coordinator on the loopback address takes processes of this machine only, and what other
    machines can reach is a choice that the coordinator's address makes for the whole group.
    """
    if host is None or is_loopback(host):
        return
    if all(is_loopback(address.host) for address in parse_addresses(addresses)):
        raise Misused(
            f"Options(host={host!r}) is an address for other machines, but the coordinator at "
            f"{addresses} takes processes of this machine only: run the coordinator on an address "
            "that they reach, or leave host out",
            op="init_process_group",
        )
