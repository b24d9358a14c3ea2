"""Puts a coordinator together and runs it: as a program's main coroutine, or in a thread.

A coordinator is a store (what it must not forget), the machine (what it decides) and the driver
(sockets, clock, timers).  `serve` is what `pccl coordinator` runs; `CoordinatorThread` gives tests,
benchmarks and demonstrations a coordinator inside their own process.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from pccl.base.clock import system_clock
from pccl.base.config import LAN, PROFILES, WAN, ControlLimits, TimeProfile
from pccl.base.errors import ConnectError, DeadlineExceeded, PcclError, UsageError
from pccl.base.event_loop import new_event_loop
from pccl.base.log import get_logger
from pccl.membership.coordinator import Coordinator
from pccl.membership.core import CoordinatorConfig
from pccl.membership.dice import SEED_BYTES, Dice
from pccl.membership.journal_sqlite import SqliteJournal
from pccl.membership.service_ca import open_ca
from pccl.membership.service_driver import CoordinatorService
from pccl.membership.service_exposure import check_exposure
from pccl.membership.service_recorder import BYTES_DEFAULT, Recorder
from pccl.membership.service_security import Security
from pccl.membership.store import MemoryStore, Store
from pccl.transport.address import Address, is_loopback, is_wildcard
from pccl.transport.dial import explain

_log = get_logger("membership")

START_TIMEOUT_S = 10.0  # opening a journal on a slow disk; a loopback port takes no time
STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorOptions:
    """How to run one coordinator."""

    listen: Address = field(default_factory=lambda: Address("127.0.0.1", 0))
    journal: Path | None = None  # None: the run is forgotten when the coordinator ends
    min_world: int = 0  # 0: the peers of the first view decide
    on_underflow: int = 0  # likewise; else an Underflow
    straggler_s: float = 0.0  # likewise; else STRAGGLER_WAIT, or how long others wait
    profile: TimeProfile = LAN
    auto_profile: bool = False  # members' round trips may choose another one
    abandon_after_s: float | None = None  # members that nobody hears are given up; None: never
    insecure: bool = False  # may listen off loopback
    ca: Path | None = None  # folder of the run's CA: then everything on the port is TLS
    plain_engines: bool = False  # the native connections need no TLS; for tests alone
    limits: ControlLimits = field(default_factory=ControlLimits)
    record: Path | None = None  # the flight recorder's file; it will hold secrets
    record_bytes: int = BYTES_DEFAULT

    def __post_init__(self) -> None:
        """Raises UsageError for what contradicts itself, or if members might be given up that are
        alive and merely cut off."""
        if self.ca is not None and self.insecure:
            raise UsageError(
                "--ca (ca=) secures the run, and --insecure (insecure=True) is for a run that "
                "nothing secures; give one of them: with --ca any address may be listened on"
            )
        profiles = PROFILES.values() if self.auto_profile else (self.profile,)
        least_s = max(profile.abandon_least_s for profile in profiles)
        name = "auto" if self.auto_profile else self.profile.name
        if self.abandon_after_s is not None and self.abandon_after_s < least_s:
            raise UsageError(
                f"abandon_after_s (--abandon-after) must be at least {least_s:g} s "
                f"with profile {name}, not {self.abandon_after_s:g} s: members that are "
                "cut off give up only then"
            )


def choose_profile(name: str, host: str) -> TimeProfile:
    """Returns the profile called `name`; "auto" looks at where the coordinator listens: LAN for
    loopback, private and unspecified addresses and for plain host names, WAN for public ones."""
    if name != "auto":
        return PROFILES[name]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return LAN if is_loopback(host) or "." not in host else WAN
    return LAN if address.is_private or address.is_unspecified else WAN


async def serve(
    options: CoordinatorOptions,
    *,
    stop: asyncio.Event,
    on_listening: Callable[[Address], None],
) -> None:
    """Runs a coordinator until `stop` is set.

    Args:
        on_listening: told the address, with the port it got, once peers can connect.

    Raises:
        UsageError: the address is not on loopback and `insecure` is not set, or the recording
            cannot be begun.
        OSError: the port is taken, or the host is not one of this machine.
        StoreError: the journal cannot be opened or read.
        PcclError: it ran, and had to stop: the journal cannot be written any more.
    """
    secured = options.ca is not None
    check_exposure(options.listen, insecure=options.insecure, secured=secured)
    security = await asyncio.to_thread(open_security, options)
    try:
        await _serve_secured(options, security, stop, on_listening)
    finally:
        if security is not None:
            await asyncio.to_thread(security.close)


async def _serve_secured(
    options: CoordinatorOptions,
    security: Security | None,
    stop: asyncio.Event,
    on_listening: Callable[[Address], None],
) -> None:
    store = await asyncio.to_thread(_open_store, options)
    machine: Coordinator | Recorder | None = None
    try:
        run_id = None if security is None else security.run_id
        machine = await asyncio.to_thread(_make_machine, options, store, run_id)
        service = CoordinatorService(
            machine,
            store.save,
            settle=store.settle,
            limits=options.limits,
            security=security,
        )
        bound = await service.listen(options.listen, insecure=options.insecure)
        try:
            if security is not None and not is_wildcard(bound.host):
                await security.listening(str(bound))
            if isinstance(machine, Recorder):  # not before: a start in vain moves no older files
                _start(machine, options)
            on_listening(bound)
        except BaseException:
            await service.stop_listening()
            raise
        await run_until(service, stop)
    finally:
        if isinstance(machine, Recorder):
            await asyncio.to_thread(machine.close)
        await asyncio.to_thread(store.close)


def _open_store(options: CoordinatorOptions) -> Store:
    return MemoryStore() if options.journal is None else SqliteJournal(options.journal)


def open_security(options: CoordinatorOptions) -> Security | None:
    """Opens the CA's folder, if the run is to be secured.

    Raises:
        UsageError: it is no such folder.
    """
    if options.ca is None:
        return None
    return Security(open_ca(options.ca), plain_engines=options.plain_engines, limits=options.limits)


def _make_machine(
    options: CoordinatorOptions, store: Store, run_id: bytes | None
) -> Coordinator | Recorder:
    record = store.load()
    if run_id is not None and record is not None and record.run_id != run_id:
        raise UsageError(
            f"journal {options.journal} holds run {record.run_id.hex()}, and the CA in "
            f"{options.ca} is that of run {run_id.hex()}; give this run a journal of its own"
        )
    if options.journal is not None and record is None:
        _log.info(
            "journal %s knows no run: a new one begins (if a journal was lost, stop this one, and "
            "let another coordinator adopt the run: pccl coordinator adopt)",
            options.journal,
        )
    config = CoordinatorConfig(
        run_id=run_id,
        min_world=options.min_world,
        on_underflow=options.on_underflow,
        straggler_s=options.straggler_s,
        profile=options.profile,
        auto_profile=options.auto_profile,
        abandon_after_s=options.abandon_after_s,
        began_anew=record is None,
    )
    machine = Coordinator(
        config,
        generation=store.generation,
        record=record,
        token_bytes=Dice(os.urandom(SEED_BYTES)),
        now_s=system_clock(),
    )
    if options.record is None:
        return machine
    return Recorder(machine, options.record, bytes_max=options.record_bytes)


def _start(recorder: Recorder, options: CoordinatorOptions) -> None:
    try:
        recorder.start()
    except BlockingIOError as error:
        raise UsageError(
            f"cannot record to {options.record}: another coordinator does; name another file"
        ) from error
    except OSError as error:
        raise UsageError(
            f"cannot record to {options.record}: {explain(error)}; give --record a file in a "
            "folder that exists and may be written to"
        ) from error


async def run_until(service: CoordinatorService, stop: asyncio.Event) -> None:
    """Runs a service until it fails or `stop` is set."""
    running = asyncio.create_task(service.run())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


class CoordinatorThread:
    """A coordinator in a background thread of this process, on a free loopback port.

    Use it as a context manager; `address` is what peers connect to.
    Threads: `start` and `stop` from one thread; `address` and `failure` from any.
    """

    def __init__(self, options: CoordinatorOptions | None = None) -> None:
        self._options = options or CoordinatorOptions()
        self._address: Address | None = None
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="pccl-coordinator", daemon=True)

    @property
    def address(self) -> str:
        """Where peers connect, as `host:port`."""
        if self._address is None:
            raise PcclError("the coordinator is not running; call start() first")
        return str(self._address)

    @property
    def failure(self) -> BaseException | None:
        """What ended the coordinator, if it did not end because it was told to."""
        return self._failure

    def start(self) -> Self:
        """Returns once peers can connect.

        Raises:
            UsageError, ConnectError, PcclError: it could not start; the thread has ended.
            DeadlineExceeded: it is still not listening after `START_TIMEOUT_S`.
        """
        self._thread.start()
        if not self._ready.wait(START_TIMEOUT_S):
            self.stop()
            raise DeadlineExceeded(f"the coordinator did not start within {START_TIMEOUT_S:g} s")
        if self._address is None:
            self._thread.join(STOP_TIMEOUT_S)
            error = self._failure
            if isinstance(error, OSError) and not isinstance(error, PcclError):
                where = self._options.listen
                raise ConnectError(f"cannot listen on {where}: {explain(error)}") from error
            assert error is not None
            raise error
        return self

    def stop(self) -> None:
        """Ends the coordinator without a word to its peers, as a crash would; idempotent."""
        self._stopped = True
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                loop.call_soon_threadsafe(stop.set)
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                runner.run(self._main())
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        if self._stopped:  # whoever started it has given up meanwhile
            return
        await serve(self._options, stop=self._stop, on_listening=self._on_listening)

    def _on_listening(self, address: Address) -> None:
        self._address = address
        self._ready.set()
