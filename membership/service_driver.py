"""Drives the coordinator machine on asyncio: sockets, clock, timer and journal; no decisions.

One task owns the machine, so it needs no lock.  Connections put events into an inbox; the task
takes them out, hands them in, and performs the effects in order.  It owes the machine three things:

* input before timers: a deadline is acted upon only after all that had arrived was handed in, so
  that a coordinator which was late itself does not take that for the silence of others;
* honesty about its own pauses: they are reported as Paused before anything else;
* output commit: after a Persist nothing more is sent until the record is durable.

Invariant: every effect is performed at most once, and none after the journal failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, assert_never

from pccl.base.clock import Clock, system_clock
from pccl.base.config import ControlLimits
from pccl.base.errors import DeadlineExceeded, PcclError
from pccl.base.log import get_logger
from pccl.membership.events import (
    Close,
    ConnDown,
    ConnUp,
    Denied,
    Dialled,
    Effect,
    Event,
    Log,
    Lost,
    Paused,
    Persist,
    ProbeListener,
    Send,
    SendNative,
    Synced,
)
from pccl.membership.inbox import Inbox
from pccl.membership.journal_writer import JournalWriter, WriteRecord
from pccl.membership.messages import (
    Admitted,
    Evicted,
    Refused,
    coordinator_codec,
)
from pccl.membership.outdated import still_due
from pccl.membership.output_commit import OutputCommit
from pccl.membership.precedence import Precedence
from pccl.membership.service_connections import with_connections
from pccl.membership.service_exposure import check_exposure
from pccl.membership.service_guard import TOLD_S, Guard
from pccl.membership.service_machine import Machine
from pccl.membership.service_refusals import read, read_first, refuse
from pccl.membership.service_security import Security
from pccl.transport import native_frames
from pccl.transport.address import Address
from pccl.transport.channel import Channel
from pccl.transport.dial import probe
from pccl.transport.server import FrameServer
from pccl.transport.token_bucket import TokenBucket

PAUSE_MIN_S: Final = 0.5  # shorter gaps are ordinary scheduling
TICK_S: Final = 0.1
STATUS_IDLE_S: Final = 30.0  # who only asks for the status may keep a connection for this long
STRANGERS_TURN_S: Final = 0.001  # after one of them has been heard, members come first again
DRAIN_TURNS: Final = 4  # of the loop, from a readable socket to the inbox
STRANGER_ROUNDS_MAX: Final = 8
DRAIN_ROUNDS_MAX: Final = 64  # then time passes anyway: a flood of messages must not stop it
_log = get_logger("membership")


@dataclass(slots=True)
class _Connection:
    channel: Channel
    native: bool
    guard: Guard | None = None  # in a secured run


class CoordinatorService:
    """One coordinator on one listening port."""

    def __init__(
        self,
        machine: Machine,
        write_record: WriteRecord,
        *,
        settle: Callable[[], None] = lambda: None,
        limits: ControlLimits | None = None,
        clock: Clock = system_clock,
        security: Security | None = None,  # then everything on the port is TLS
    ) -> None:
        self._security = security
        self._machine = machine
        self._clock = clock
        self._server = FrameServer(
            self._serve,
            limits=limits,
            clock=clock,
            on_misfit=machine.dropped_frame,
            tls=None if security is None else security.door,
            on_refused=None if security is None else security.refused,
        )
        self._connections: dict[int, _Connection] = {}
        self._next_conn = 1
        self._inbox = Inbox()
        self._precedence = Precedence()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._outbox: OutputCommit[Effect] = OutputCommit()
        self._journal = JournalWriter(
            write_record,
            settle,
            on_durable=lambda token: self._post(Synced(token)),
            on_failure=self._fail,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._ticked_s = clock()
        self._paused_s = 0.0
        self._drained = 0

    @property
    def drops(self) -> dict[str, int]:
        """Dropped connections by reason."""
        return dict(self._server.drops)

    @property
    def half_open(self) -> int:
        """Connections that have not said who they are."""
        return self._server.half_open

    async def listen(self, address: Address, *, insecure: bool = False) -> Address:
        """Binds; returns the address with the port it got.

        Raises:
            UsageError: the address can be reached from other machines and `insecure` is not set.
            OSError: the port is taken or the host is not one of this machine.
        """
        check_exposure(address, insecure=insecure, secured=self._security is not None)
        return await self._server.listen(address)

    async def stop_listening(self) -> None:
        """Gives the address back; for a service that is not going to run."""
        await self._server.close()

    async def run(self) -> None:
        """Serves until cancelled.  Raises PcclError if the journal cannot be written any more."""
        self._ticked_s = self._clock()
        own = [asyncio.create_task(work) for work in (self._tick(), self._journal.run())]
        if self._security is not None:
            own.append(asyncio.create_task(self._security.watch(self._deny)))
        try:
            while True:
                await self._wait()
                self._take_input()
                await self._heed_deadline()
        finally:
            for task in own:
                task.cancel()
            await self._server.close()
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*own, *self._tasks, return_exceptions=True)
            self._journal.close()

    # ------------------------------------------------------------------ the machine's task
    async def _wait(self) -> None:
        """Yields to the readers, and returns when there is input or a deadline has passed."""
        await asyncio.sleep(0)
        held_s = self._precedence.until_s
        if self._inbox.has_members or (self._inbox and held_s is None):
            return
        times = [t for t in (self._machine.deadline_s, held_s) if t is not None]
        timeout_s = max(0.0, min(times) - self._clock()) if times else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._arrived.wait()

    def _take_input(self) -> None:
        """Hands in what is in the inbox now."""
        if self._failure is not None:
            raise PcclError(
                f"the journal cannot be written ({self._failure}); the coordinator stops rather "
                "than decide what it could forget"
            ) from self._failure
        self._time()
        for event in self._inbox.members():
            self._hand_in(event)
        held = self._heed_precedence()
        until_s = self._clock() + STRANGERS_TURN_S
        for event in () if held else self._inbox.strangers():
            self._hand_in(event)
            if self._clock() >= until_s:
                break
        self._room.set()
        if not self._inbox or (held and not self._inbox.has_members):
            self._arrived.clear()

    def _heed_precedence(self) -> bool:
        """Takes nobody in while members wait for a decision; says whether that is so now."""
        held = self._precedence.until_s is not None
        # What was decided is not said yet while it waits for the disk.
        waits = self._machine.urgent or (held and self._outbox.held > 0)
        hold = self._precedence.note(waits, self._clock())
        if hold != held:
            self._server.shut() if hold else self._server.reopen()
        return hold

    async def _heed_deadline(self) -> None:
        """Lets time pass for the machine, once the sockets hold nothing that came before."""
        if not self._overdue():
            self._drained = 0
            return
        for _ in range(DRAIN_TURNS):
            await asyncio.sleep(0)
        self._drained += 1
        self._note_time()
        stale = self._inbox.has_members or self._paused_s > 0
        # A member may be among the strangers, on its way back; a crowd of them must not stop time.
        stale = stale or (bool(self._inbox) and self._drained < STRANGER_ROUNDS_MAX)
        if stale and self._drained < DRAIN_ROUNDS_MAX:
            return
        self._drained = 0
        now_s = self._time()
        if (at_s := self._machine.deadline_s) is not None and now_s >= at_s:
            self._perform(self._machine.on_deadline(now_s))

    def _overdue(self) -> bool:
        deadline_s = self._machine.deadline_s
        return deadline_s is not None and self._clock() >= deadline_s

    def _hand_in(self, event: Event) -> None:
        if isinstance(event, Synced):
            self._outbox.synced(event.token)
        self._perform(self._machine.handle(event, self._time()))

    def _time(self) -> float:
        """Returns the time that the machine may be told.

        A pause is told before any time that contains it, also where the process stood still between
        two events of one turn: else the machine would take its own absence for everybody's silence.
        """
        self._note_time()
        if self._paused_s > 0:
            paused_s, self._paused_s = self._paused_s, 0.0
            _log.warning("the coordinator itself did not run for %.1f s", paused_s)
            self._perform(self._machine.handle(Paused(paused_s), self._ticked_s))
        return self._ticked_s

    def _post(self, event: Event) -> None:
        self._inbox.post(event)
        self._arrived.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._note_time()
            if self._paused_s > 0:
                self._arrived.set()

    def _note_time(self) -> None:
        now_s = self._clock()
        gap_s, self._ticked_s = now_s - self._ticked_s, now_s
        if gap_s > PAUSE_MIN_S + TICK_S:
            self._paused_s += gap_s

    # ------------------------------------------------------------------ effects

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Persist(token, record):
                    self._outbox.write(token)
                    self._journal.write(token, record)
                case Log(level, text):
                    _log.log(logging.getLevelNamesMapping()[level.upper()], "%s", text)
                case _:
                    self._outbox.send(effect)
        for effect in still_due(self._outbox.release(), self._machine.outdated):
            self._act(effect)

    def _act(self, effect: Effect) -> None:
        match effect:
            case Send(conn, msg):
                connection = self._connections.get(conn)
                if connection is not None and not connection.native:
                    if isinstance(msg, Admitted):
                        self._let_in(conn, connection)
                    elif connection.guard is not None and isinstance(msg, Refused | Evicted):
                        connection.guard.turned_away(msg)
                    count = len(self._connections)
                    full = with_connections(msg, count, self._server, self._security)
                    connection.channel.send(coordinator_codec.encode(full))
            case SendNative(conn, frame):
                connection = self._connections.get(conn)
                if connection is not None and connection.native:
                    if isinstance(frame, native_frames.Welcome):
                        self._let_in(conn, connection)
                    connection.channel.send(native_frames.encode(frame))
            case Close(conn):
                connection = self._connections.get(conn)
                if connection is not None:
                    connection.channel.close("closed by the coordinator")
            case ProbeListener():
                self._start(self._probe(effect))
            case Lost(peer_id, text):
                if self._security is not None:
                    self._security.audit.lost(peer_id, text)
            case Persist() | Log():
                raise AssertionError("performed at once")
            case _:
                assert_never(effect)

    def _let_in(self, conn: int, connection: _Connection) -> None:
        self._inbox.let_in(conn)
        if connection.guard is not None:
            connection.guard.let_in(native=connection.native)

    def _deny(self, peer_ids: frozenset[bytes]) -> None:
        """Has the machine put peers out, and ends what connections they have left after that."""

        def cut_off() -> None:
            for connection in list(self._connections.values()):
                if connection.guard is not None and connection.guard.peer_id in peer_ids:
                    connection.channel.abort("revoked")

        self._post(Denied(tuple(sorted(peer_ids))))
        asyncio.get_running_loop().call_later(TOLD_S, cut_off)

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._arrived.set()

    async def _probe(self, effect: ProbeListener) -> None:
        alive = await probe(effect.host, effect.port, timeout_s=effect.timeout_s)
        self._post(Dialled(effect.peer_id, effect.incarnation, alive))

    # ------------------------------------------------------------------ connections

    async def _serve(self, channel: Channel, first: bytes) -> None:
        """One connection from its first frame to its end."""
        if self._security is None:
            await self._converse(channel, first, None)
        elif (guard := await self._security.enter(channel, first)) is not None:
            with guard:
                await self._converse(channel, guard.first, guard)

    async def _converse(self, channel: Channel, first: bytes, guard: Guard | None) -> None:
        native = native_frames.is_native(first)
        idle_s = STATUS_IDLE_S if read_first(channel, first) else None
        bucket = (guard or self._server).bucket(native=native)
        conn, self._next_conn = self._next_conn, self._next_conn + 1
        self._connections[conn] = _Connection(channel, native, guard)
        self._post(ConnUp(conn, channel.remote_host))
        try:
            body: bytes | None = first
            while body is not None:
                await self._admit(conn, bucket)
                event = read(conn, channel, body, native=native)
                if guard is not None:
                    guard.check(event, body)
                self._post(event)
                body = await self._next_body(channel, idle_s)
        finally:
            del self._connections[conn]
            self._post(ConnDown(conn))

    async def _next_body(self, channel: Channel, idle_s: float | None) -> bytes | None:
        try:
            return await channel.receive(idle_s)
        except DeadlineExceeded:
            channel.close("idle")
        return None

    async def _admit(self, conn: int, bucket: TokenBucket) -> None:
        """Waits for room in the inbox, and holds the connection to its rate."""
        while self._inbox.is_full_for(conn):
            self._room.clear()
            await self._room.wait()
        connection = self._connections[conn]
        wait_s = bucket.take(self._clock())
        if wait_s > 0 and not connection.native:
            refuse(
                connection.channel, "limit", "it sends more messages than any peer has reason to"
            )
        while wait_s > 0:
            await asyncio.sleep(wait_s)
            wait_s = bucket.take(self._clock())
