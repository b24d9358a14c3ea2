"""The shell around a Member: its connection, clock, timer and thread; no decision is made here.

One daemon thread runs one event loop.  On it one task owns the machine: it takes what the
connection, the engine and the program's threads report, and performs the effects in order.  The
engine works on without this thread, so a slow moment here delays a view change, never a step.

Invariant: after `stop` returns True the thread has ended, the connection is closed and the engine's
event descriptor is watched by nobody; what waits on this agent has been woken.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pccl.base.clock import Clock, Deadline, system_clock
from pccl.base.errors import ConnectError, PcclError, RemoteError
from pccl.base.event_loop import new_event_loop
from pccl.base.log import get_logger
from pccl.membership import member_events as e
from pccl.membership import messages as m
from pccl.membership.agent_config import AgentConfig as AgentConfig
from pccl.membership.agent_config import MakeSeat
from pccl.membership.agent_config import Seat as Seat
from pccl.membership.agent_notices import Awaited, Notices
from pccl.membership.engine_effects import perform_on_engine
from pccl.membership.member import Member
from pccl.membership.standing import Standing as Standing
from pccl.membership.standing import standing_of
from pccl.transport.address import Address
from pccl.transport.channel import Channel
from pccl.transport.dial import ClientTls, dial, explain
from pccl.transport.engine_api import EngineLike
from pccl.transport.engine_events import LetterEnded, StepDecided, StreamOpened

if TYPE_CHECKING:
    from pccl.membership.agent_security import Credentials

INBOX_MAX = 64  # then the reader waits; TCP pushes back on the coordinator
DIAL_ROUND_S = 3.0  # one Dial effect; the machine spaces them
STOP_MARGIN_S = 1.0  # beyond the goodbye, for the thread to end
_log = get_logger("membership")


class MemberAgent:
    """Keeps one peer in touch with the coordinator.  Its methods may be called from any thread."""

    def __init__(
        self,
        config: AgentConfig,
        make_seat: MakeSeat,
        *,
        clock: Clock = system_clock,
        dice: random.Random | None = None,
    ) -> None:
        """Nothing runs before `start`; a simulation runs `live` on a loop of its own instead."""
        self.seat: Seat | None = None
        self.standing = Standing()
        self.steps_decided = 0  # written by the program's threads; only growth matters
        self._config = config
        self._make_seat = make_seat
        self._clock = clock
        self._dice = dice or random.Random()
        self.on_stream: Callable[[int, bytes], None] | None = None  # takes the descriptor; quick
        self._changed = threading.Condition()
        self._notices = Notices()
        self._loop: asyncio.AbstractEventLoop | None = None  # guarded by _changed
        self._task: asyncio.Task[None] | None = None  # guarded by _changed
        self._thread = threading.Thread(target=self._main, name="pccl-agent", daemon=True)
        # Below: the loop's thread only.
        self._machine: Member | None = None
        self._channel: Channel | None = None
        self._first: Channel | None = None
        self._addresses = list(config.addresses)
        self._dialled: Address | None = None  # the one of them that accepted last
        self._events: deque[e.Event] = deque()
        self._refusal = ""
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def credentials(self) -> Credentials | None:
        """What this peer proves itself by; None: the run is not secured."""
        return self._config.credentials

    @property
    def config(self) -> AgentConfig:
        """What this process asked for."""
        return self._config

    # ---- for the program's threads

    def start(self) -> None:
        self._thread.start()

    def wait_until(self, holds: Callable[[Standing], bool], timeout_s: float) -> bool:
        """Waits until `holds` or the agent has ended; returns whether either is so."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._over() or holds(self.standing), timeout=timeout_s
            )

    def look_again(self) -> None:
        """Makes those in `wait_until` ask once more whether it holds."""
        with self._changed:
            self._changed.notify_all()

    def want_world(self, world_size: int) -> None:
        """Tells the coordinator what this peer waits for; 0 = it stopped waiting."""
        self._post_from_thread(e.WantWorld(world_size))

    def when_decided(self, step: int, notify: Callable[[], None]) -> None:
        """Calls `notify` once, from any thread, when the step is decided or the agent ends."""
        assert self.seat is not None
        ask = partial(self.seat.engine.set_notify, step)
        self._notices.wait(StepDecided(step), notify, ask)

    def when_ended(self, letter: int, notify: Callable[[], None]) -> None:
        """The same of a message."""
        assert self.seat is not None
        ask = partial(self.seat.engine.set_letter_notify, letter)
        self._notices.wait(LetterEnded(letter), notify, ask)

    def leave(self, deadline_s: float, reason: str) -> None:
        """Asks to be planned out; also from a signal handler, for it waits for nothing."""
        self._post_from_thread(e.Drain(deadline_s, reason))

    def stop(self, reason: str, timeout_s: float, decided_below: int = 0) -> bool:
        """Leaves the run and ends the thread; says whether that was done in time."""
        with self._changed:
            loop, task, machine = self._loop, self._task, self._machine
        if self._thread.ident is None or threading.current_thread() is self._thread:
            return True
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just ended by itself
                if machine is None and task is not None:
                    loop.call_soon_threadsafe(task.cancel)
                else:
                    loop.call_soon_threadsafe(self._post, e.Leave(reason, decided_below))
        self._thread.join(timeout_s + STOP_MARGIN_S)
        return not self._thread.is_alive()

    def _over(self) -> bool:
        return self.standing.ended is not None or self.standing.failure is not None

    def _post_from_thread(self, event: e.Event) -> None:
        with self._changed:
            loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._post, event)

    # ---- the thread

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                runner.run(self.live())
        except Exception as error:  # there is no loop to live on
            self._finish(error)

    async def live(self) -> None:
        """The agent's whole life, on the running loop; raises nothing."""
        failure: BaseException | None = None
        try:
            await self._run()
        except (PcclError, ImportError) as error:
            failure = error
        except asyncio.CancelledError:
            failure = ConnectError("closed while connecting")
        except Exception as error:  # a mistake of ours: it must reach the program, not the void
            _log.exception("the member agent failed")
            failure = error
        self._finish(failure)

    def _finish(self, failure: BaseException | None) -> None:
        machine = self._machine
        if failure is not None and self.seat is not None:
            with contextlib.suppress(PcclError):
                self.seat.engine.fail("internal", f"the member agent failed: {failure}")
        with self._changed:
            self._loop = self._task = None
            ended = None if machine is None else machine.ended
            self._publish(Standing(self.standing.admitted, self.standing.world, ended, failure))
        self._notices.end()

    def _publish(self, standing: Standing) -> None:
        with self._changed:
            if standing != self.standing:
                self.standing = standing
                self._changed.notify_all()

    # ---- the loop

    async def _run(self) -> None:
        with self._changed:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        deadline = Deadline(self._config.connect_timeout_s, self._clock)
        try:
            self._first, self._dialled = await dial(
                self._addresses,
                timeout_s=self._config.connect_timeout_s,
                rng=self._dice,
                clock=self._clock,
                on_failure=self._nobody_yet,
                tls=await self._secure(self._config.connect_timeout_s),
            )
            self.seat = self._make_seat(self._first.local_host)
            self._keep_certificate(self.seat)
            machine = self._new_machine(self.seat, deadline)
            with self._changed:
                self._machine = machine
            await self._drive(machine, self.seat.engine)
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for channel in (self._first, self._channel):
                if channel is not None:
                    channel.abort("the agent ended")
            await asyncio.sleep(0)  # lets the loop close what was aborted

    async def _secure(self, timeout_s: float) -> ClientTls | None:
        """Returns how to dial in this run, with a valid certificate; None if it is not secured."""
        credentials = self._config.credentials
        if credentials is None:
            return None
        await credentials.enrol(self._addresses, timeout_s, self._nobody_yet)
        return credentials.client_tls()

    def _nobody_yet(self, reasons: str) -> None:
        self._publish(replace(self.standing, waits=f"no coordinator has answered yet ({reasons})"))

    def _keep_certificate(self, seat: Seat) -> None:
        if self._config.credentials is not None:
            renewed = seat.renewed or (lambda material: None)
            self._spawn(self._config.credentials.keep_fresh(self._addresses, renewed))
            self._spawn(self._config.credentials.keep_informed(self._addresses))

    def _new_machine(self, seat: Seat, deadline: Deadline) -> Member:
        config = self._config
        identity = e.Identity(
            peer_id=config.peer_id,
            data_host=seat.data_host,
            data_port=seat.data_port,
            host_key=config.host_key,
            min_world=config.min_world,
            group=config.group,
            seat=config.seat,
            on_underflow=config.on_underflow,
            straggler_s=config.straggler_s,
            hostname=socket.gethostname()[:255],
            pid=os.getpid(),
            carried_by=seat.carried_by[: m.TEXT_CHARACTERS_MAX],
        )
        return Member(
            identity,
            now_s=self._clock(),
            connect_timeout_s=max(0.1, deadline.remaining_s()),
            coordinator_grace_s=config.coordinator_grace_s,
            dice=self._dice.random,
        )

    async def _drive(self, machine: Member, engine: EngineLike) -> None:
        loop = asyncio.get_running_loop()
        event_fd = engine.event_fd
        loop.add_reader(event_fd, self._drain, engine)
        try:
            while machine.ended is None:
                await self._wait_for_news(machine.deadline_s)
                while self._events and machine.ended is None:
                    self._perform(machine.handle(self._events.popleft(), self._clock()), engine)
                self._room.set()
                now_s = self._clock()
                if machine.deadline_s is not None and now_s >= machine.deadline_s:
                    machine.handle(e.Progress(self.steps_decided), now_s)
                    self._perform(machine.on_deadline(now_s), engine)
                self._publish(standing_of(machine))
        finally:
            loop.remove_reader(event_fd)

    async def _wait_for_news(self, deadline_s: float | None) -> None:
        if not self._events:
            self._news.clear()
            wait_s = None if deadline_s is None else max(0.0, deadline_s - self._clock())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._news.wait()

    def _post(self, event: e.Event) -> None:
        self._events.append(event)
        self._news.set()

    def _drain(self, engine: EngineLike) -> None:
        for event in engine.drain_events():
            if isinstance(event, Awaited):
                self._notices.tell(event)
            elif isinstance(event, StreamOpened):
                (self.on_stream or _close)(event.fd, event.peer_id)
            else:
                self._post(event)

    # ---- effects

    def _perform(self, effects: list[e.Effect], engine: EngineLike) -> None:
        for effect in effects:
            match effect:
                case e.Send(message):
                    if self._channel is not None:
                        self._channel.send(m.peer_codec.encode(message))
                case e.Dial():
                    self._spawn(self._dial())
                case e.HangUp():
                    if self._channel is not None:
                        self._channel.close("hung up")
                        self._channel = None
                case e.HoldEngine(generation, epoch, name):
                    step = engine.hold(generation, epoch)
                    within = engine.entry_within(name) if name else 1
                    self._post(e.Held(generation, epoch, step, within))
                case e.FailEngine(code, text):
                    _log.info("membership ends (%s): %s", code, text)
                    engine.fail(code, text)
                case _:
                    perform_on_engine(effect, engine)

    def _spawn(self, work: asyncio._CoroutineLike[None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _dial(self) -> None:
        channel, self._first = self._first, None
        reasons = ["no address answered"]
        if channel is None:
            try:
                channel, self._dialled = await dial(
                    self._addresses,
                    timeout_s=DIAL_ROUND_S,
                    rng=self._dice,
                    clock=self._clock,
                    on_failure=reasons.append,
                    tls=await self._secure(DIAL_ROUND_S),
                )
            except Exception as error:  # the machine waits for an answer, whatever happens here
                if not isinstance(error, ConnectError):
                    reasons.append(explain(error))
                self._addresses.append(self._addresses.pop(0))  # it may have taken all the time
                return self._post(e.Disconnected(reasons[-1]))
        self._channel = channel
        self._post(e.Connected(channel.remote_host, channel.remote_port))
        await self._read(channel)
        return None

    def _heed_refusal(self, message: m.CoordinatorMessageBody) -> None:
        """Tells people, once, what only they can put right; this peer goes on trying."""
        if isinstance(message, m.Refused) and message.code in m.REFUSALS_FOR_NOW:
            if message.text != self._refusal:
                _log.warning("refused for now: %s", message.text)
            self._refusal = message.text

    async def _read(self, channel: Channel) -> None:
        foreign = answered = False
        dialled = self._dialled
        try:
            while (body := await channel.receive()) is not None:
                answered = True
                message = m.coordinator_codec.decode(body)
                self._heed_refusal(message)
                self._post(e.Received(message))
                while len(self._events) >= INBOX_MAX:
                    self._room.clear()
                    await self._room.wait()
            reason = channel.close_reason or "the connection ended"
        except Exception as error:
            foreign, reason = isinstance(error, RemoteError), str(error)
            if not foreign:  # a mistake of ours; a new connection may do better
                _log.exception("reading from the coordinator failed")
            channel.abort(reason)
        if not answered:  # whoever listens there may be no coordinator: begin elsewhere next time
            self._addresses.sort(key=lambda address: address is dialled)
        if channel is self._channel:  # else this end hung up, and the machine knows
            self._channel = None
            self._post(e.Disconnected(reason, foreign))


def _close(fd: int, _: bytes) -> None:
    """Nobody here takes streams."""
    os.close(fd)
