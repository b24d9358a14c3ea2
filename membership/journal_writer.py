"""Brings records to disk on one thread: at most one write is under way, and one record waits.

A record is the whole state, so a later one replaces the one that waits, and one write covers all
tokens issued before it began.  A burst of records costs two writes and not one each.

Afterwards, once the answers that rested on it have left, the journal is *settled*: moved out of the
log beside it into the file itself.  That waits for a short quiet, since the two records of a flush
follow each other closely, and the second must not queue behind the settling of the first.

Invariants: `on_durable(token)` is called only when the record of that token, or a later one, is on
disk; nothing is written after a failure; a record is settled `SETTLED_BY_S` and two writes after it
was written, or the journal has failed, or cannot do so *yet*: then it is asked again, ever later.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from pccl.base.log import get_logger
from pccl.membership.store import NotSettledYet

QUIET_S: Final = 0.02  # longer than a round trip of a LAN and a write
SETTLED_BY_S: Final = 0.2  # also where records never cease
AGAIN_FIRST_S: Final = 0.5  # after a settling that could not be yet; doubling
AGAIN_SLOWEST_S: Final = 30.0

_log = get_logger("membership")

WriteRecord = Callable[[Any], None]
"""Makes one record durable before it returns; called on the journal's thread."""


class JournalWriter:
    """Belongs to one event loop; `settle` runs on the journal's thread, as `write_record` does."""

    def __init__(
        self,
        write_record: WriteRecord,
        settle: Callable[[], None],
        *,
        on_durable: Callable[[int], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._write_record = write_record
        self._settle = settle
        self._on_durable = on_durable
        self._on_failure = on_failure
        self._waiting: tuple[int, Any] | None = None
        self._given = asyncio.Event()
        self._settle_by_s: float | None = None  # None: the file itself holds the newest record
        self._settle_not_before_s = 0.0
        self._again_s = 0.0  # how long it was put off last
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pccl-journal")

    def write(self, token: int, record: Any) -> None:
        self._waiting = (token, record)
        self._given.set()

    async def run(self) -> None:
        """Works until cancelled, or until a write fails."""
        try:
            while True:
                await self._wait_for_a_record()
                assert self._waiting is not None
                (token, record), self._waiting = self._waiting, None
                self._given.clear()
                await self._do(self._write_record, record)
                if self._settle_by_s is None:
                    self._settle_by_s = asyncio.get_running_loop().time() + SETTLED_BY_S
                self._on_durable(token)
        except Exception as error:  # whatever it is, nothing may be said on top of a lost record
            self._on_failure(error)

    def close(self) -> None:
        """Waits for the write under way: a half-written record is the journal's to avoid."""
        self._thread.shutdown(wait=True)

    async def _wait_for_a_record(self) -> None:
        loop = asyncio.get_running_loop()
        while self._settle_by_s is not None:
            quiet_s = min(self._settle_by_s, loop.time() + QUIET_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(max(quiet_s, self._settle_not_before_s)):
                    await self._given.wait()
            due_s = max(self._settle_by_s, self._settle_not_before_s)
            if self._given.is_set() and loop.time() < due_s:
                break
            await self._try_to_settle()
        await self._given.wait()

    async def _try_to_settle(self) -> None:
        try:
            await self._do(self._settle)
        except NotSettledYet as error:
            if self._again_s == 0.0:
                _log.warning("the record stays in the log beside the journal for now: %s", error)
            self._again_s = min(max(2 * self._again_s, AGAIN_FIRST_S), AGAIN_SLOWEST_S)
            self._settle_not_before_s = asyncio.get_running_loop().time() + self._again_s
        else:
            self._settle_by_s, self._settle_not_before_s, self._again_s = None, 0.0, 0.0

    async def _do(self, work: Callable[..., None], *arguments: Any) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, work, *arguments)
