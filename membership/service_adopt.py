"""Gathers testimony on the coordinator's address and writes the journal that it makes possible."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pccl.base.clock import system_clock
from pccl.membership.adoption import Adoption, AdoptionError
from pccl.membership.events import Effect, Event
from pccl.membership.journal_sqlite import SqliteJournal
from pccl.membership.service import CoordinatorOptions, open_security, run_until
from pccl.membership.service_driver import CoordinatorService
from pccl.membership.service_exposure import check_exposure
from pccl.membership.service_security import Security
from pccl.transport.address import Address


class _Watched:
    """An adoption that says when it has heard enough."""

    def __init__(self, adoption: Adoption, done: asyncio.Event) -> None:
        self._adoption = adoption
        self._done = done

    @property
    def deadline_s(self) -> float | None:
        return self._adoption.deadline_s

    @property
    def urgent(self) -> bool:
        return False  # it decides nothing for anybody

    @property
    def outdated(self) -> str:
        return ""

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        return self._told(self._adoption.handle(event, now_s))

    def on_deadline(self, now_s: float) -> list[Effect]:
        return self._told(self._adoption.on_deadline(now_s))

    def dropped_frame(self) -> None:
        self._adoption.dropped_frame()

    def _told(self, effects: list[Effect]) -> list[Effect]:
        if self._adoption.finished:
            self._done.set()
        return effects


async def adopt(
    options: CoordinatorOptions,
    *,
    wait_s: float,
    expect: int,
    force: bool,
    stop: asyncio.Event,
    on_listening: Callable[[Address], None],
) -> Adoption | None:
    """Rebuilds `options.journal` from the peers that dial `options.listen`.

    Returns:
        Who testified to what, or None if `stop` was set before; the journal is then as it was.

    Raises:
        AdoptionError: the journal holds a record and `force` is not set, or no record can be made
            of what was testified.
        UsageError, OSError: see `serve`.
        StoreError: the journal cannot be opened or written.
    """
    assert options.journal is not None
    secured = options.ca is not None
    check_exposure(options.listen, insecure=options.insecure, secured=secured)
    security = await asyncio.to_thread(open_security, options)
    try:
        return await _adopt(options, wait_s, expect, force, stop, on_listening, security)
    finally:
        if security is not None:
            await asyncio.to_thread(security.close)


async def _adopt(
    options: CoordinatorOptions,
    wait_s: float,
    expect: int,
    force: bool,
    stop: asyncio.Event,
    on_listening: Callable[[Address], None],
    security: Security | None,
) -> Adoption | None:
    assert options.journal is not None
    journal = await asyncio.to_thread(SqliteJournal, options.journal)
    try:
        if not force and await asyncio.to_thread(journal.load) is not None:
            raise AdoptionError(
                f"journal {options.journal} holds a run already; start `pccl coordinator` on it, "
                "or give --force to replace it by what the peers testify"
            )
        adoption = Adoption(wait_s=wait_s, expect=expect, now_s=system_clock())
        done = asyncio.Event()
        machine = _Watched(adoption, done)
        service = CoordinatorService(
            machine, lambda record: None, limits=options.limits, security=security
        )
        on_listening(await service.listen(options.listen, insecure=options.insecure))
        stopping = asyncio.create_task(_set_after(stop, done))
        try:
            await run_until(service, done)
        finally:
            stopping.cancel()
        if stop.is_set():
            return None
        await asyncio.to_thread(journal.adopt, adoption.record())
        return adoption
    finally:
        await asyncio.to_thread(journal.close)


async def _set_after(first: asyncio.Event, then: asyncio.Event) -> None:
    await first.wait()
    then.set()
