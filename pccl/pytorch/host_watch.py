"""Whether the process of rank 0, which runs the coordinator of a static group, still runs.

    QUIET --an operation takes long--> ASKING --no answer, several times--> rank 0 is lost
     ^ └─ the connection ends, and the host says that nobody listens ─────> rank 0 is lost
     └──────── an answer, any at all ────┘

A process that has ended is noticed by its connections: its coordinator does not come back, as one
that runs by itself may, so nobody waits for that.  One that is stopped keeps them, and the only one
that could tell the others is stopped with it; so when an operation takes long, each rank asks the
coordinator how the run is.

Invariant: nobody is asked while operations get done; a group is given up only when what it waits
for has not been decided for the whole time, and no question was answered, or on the word of rank
0's own host.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
from typing import Final, Protocol

from pccl.base.clock import Deadline
from pccl.base.errors import PcclError
from pccl.base.log import get_logger
from pccl.membership.enrolment import EnrolmentRefused
from pccl.membership.service_status import StatusRefused, fetch_status_now
from pccl.membership.standing import Standing
from pccl.session import Session
from pccl.transport.address import Address
from pccl.transport.dial import probe
from pccl.transport.join_ticket import JoinTicket

LOOK_S: Final = (2.5, 3.5)  # an operation that is in flight at two looks takes long
ANSWER_S: Final = 3.0
SILENCE_S: Final = 9.0
LAST_WORDS_S: Final = 1.0  # for what rank 0 has sent before its end to be taken in
AGAIN_S: Final = (0.1, 0.6)  # so that hundreds of ranks do not crowd its port all the time
JOIN_S: Final = ANSWER_S + 2.0
_log = get_logger("pytorch")


class Watched(Protocol):
    """The run of a group."""

    def lose_host(self, what: str, reason: str) -> None:
        """Ends the run, since rank 0 is lost: it is `what`."""

    def host_is_in(self) -> bool:
        """False once rank 0 has left, after which its process may end as it likes."""


class HostWatch:
    """A thread of one group on a rank that does not run the coordinator itself."""

    def __init__(
        self,
        run: Watched,
        session: Session,
        addresses: tuple[Address, ...],
        name: str,
        ticket: JoinTicket | None = None,
    ) -> None:
        """`ticket`: of a secured run, which tells its state to nobody else."""
        self._run, self._session, self._addresses = run, session, addresses
        self._ticket = ticket
        self._process_id = os.getpid()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"pccl-host {name}", daemon=True)
        self._thread.start()

    def drain(self, timeout_s: float) -> None:
        """Nothing is queued here."""

    def close(self) -> None:
        self._over.set()
        self._session.agent.look_again()
        if self._thread is not threading.current_thread() and os.getpid() == self._process_id:
            self._thread.join(JOIN_S)

    def _watch(self) -> None:
        with contextlib.suppress(PcclError):  # the group has ended meanwhile
            self._look()

    def _look(self) -> None:
        before: frozenset[object] = frozenset()
        while self._rest(random.uniform(*LOOK_S)):
            now = self._session.in_flight()
            if before & now and not self._answers():
                text = f"no answer for {SILENCE_S:g} s while an operation waits"
                return self._lose("is stopped", text)
            before = now
        return None

    def _rest(self, rest_s: float) -> bool:
        """False: there is nothing to watch any more, or rank 0 was lost meanwhile."""
        agent, deadline = self._session.agent, Deadline(rest_s)
        while not self._over.is_set() and not self._session.closed:
            if deadline.passed():
                return True
            if not agent.wait_until(self._is_detached, deadline.remaining_s()):
                continue
            standing = agent.standing
            if standing.ended is not None or standing.failure is not None:
                return False
            if not standing.attached and self._run.host_is_in() and self._nobody_listens():
                return self._host_has_ended()
            self._over.wait(min(random.uniform(*AGAIN_S), deadline.remaining_s()))
        return False

    def _host_has_ended(self) -> bool:
        """Rank 0 may have ended well, and what is in flight here have come whole already."""
        last_words = Deadline(LAST_WORDS_S)
        while self._session.in_flight() and not last_words.passed():
            if self._over.wait(0.05):
                return False
        if self._run.host_is_in():
            self._lose("has ended", "nobody listens at the coordinator's port any more")
        return False

    def _is_detached(self, standing: Standing) -> bool:
        return self._over.is_set() or not standing.attached

    def _nobody_listens(self) -> bool:
        """Whether the hosts of all addresses say so, each of them twice."""
        for _ in range(2):
            for address in self._addresses:
                if asyncio.run(probe(address.host, address.port, timeout_s=ANSWER_S)):
                    return False
        return True

    def _lose(self, what: str, reason: str) -> None:
        _log.warning("the process of rank 0, which runs the coordinator, %s: %s", what, reason)
        self._run.lose_host(what, reason)

    def _answers(self) -> bool:
        """Says whether the coordinator lives; True also when that does not matter any more."""
        waiting, deadline = self._session.in_flight(), Deadline(SILENCE_S)
        while not deadline.passed():
            try:
                fetch_status_now(self._addresses, timeout_s=ANSWER_S, ticket=self._ticket)
                return True
            except (StatusRefused, EnrolmentRefused):  # who says no lives
                return True
            except (PcclError, OSError):
                pass
            if self._over.is_set() or not waiting & self._session.in_flight():
                return True
            # A crowd at its port makes a connection fail at once; so does its end, which is
            # noticed elsewhere.
            self._over.wait(random.uniform(*AGAIN_S))
        return False
