"""One modelled peer process: program, member agent and native control thread around ModelEngine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pccl.membership.messages import (
    PROTOCOL_VERSION,
    Activate,
    Admitted,
    AtEntry,
    CancelPlan,
    CoordinatorMessageBody,
    Evicted,
    Hello,
    Hold,
    HoldFrom,
    Install,
    Installed,
    Leaving,
    LinksUp,
    MemberInfo,
    Refused,
    Switched,
    ViewPlan,
)
from pccl.transport.native_frames import (
    EvictedFrame,
    Flush,
    Frame,
    Heartbeat,
    NativeHello,
    RefusedFrame,
    Suspect,
    SuspectCode,
    Welcome,
)
from tests.sim.model_engine import Done, Hooks, ModelEngine, Post
from tests.sim.native_engine import NativeEngine

if TYPE_CHECKING:
    from tests.sim.world import World

ENTRY_NAMES = ("outer", "inner", "inner")  # of steps 0, 1, 2, 3, ...: what every program runs


class ModelPeer:
    def __init__(self, world: World, peer_id: bytes) -> None:
        self.world = world
        self.peer_id = peer_id
        self.alive = True
        self.killed_s = 0.0
        self.stopped_until_s = 0.0
        self.busy_until_s = 0.0  # the program computes
        self.admitted: Admitted | None = None
        self.engine: ModelEngine | NativeEngine | None = None
        self.agent: int | None = None  # connections
        self.native: int | None = None
        self.redial_s = {"agent": 0.1, "native": 0.1}
        self.plan: ViewPlan | None = None
        self.links_up: int = 0
        self.entered: Switched | None = None
        self.leaving = False
        self.began_s: dict[int, float] = {}
        self.first_step: int | None = None
        self.lineage = 0
        world.after(self, world.rng.uniform(0, 0.05), self._dial_agent)

    def __repr__(self) -> str:
        return f"peer {self.peer_id[0]}.{self.engine.incarnation if self.engine else 0}"

    # ------------------------------------------------------------ connections

    def _dial_agent(self) -> None:
        if self.agent is None:
            self.world.dial(self, native=False)

    def _dial_native(self) -> None:
        if self.native is None:
            self.world.dial(self, native=True)

    def connected(self, conn: int, *, native: bool) -> None:
        world = self.world
        if native:
            assert self.admitted is not None and self.engine is not None
            self.native = conn
            world.to_coordinator(
                conn,
                NativeHello(
                    0,
                    self.admitted.run_id,
                    self.peer_id,
                    self.engine.incarnation,
                    self.admitted.secret,
                ),
            )
            return
        self.agent = conn
        engine = self.engine
        world.to_coordinator(
            conn,
            Hello(
                protocol=PROTOCOL_VERSION,
                run_id=b"",
                peer_id=self.peer_id,
                incarnation=0 if engine is None else engine.incarnation,
                generation=0 if engine is None else engine.generation,
                epoch=0 if engine is None else engine.epoch,
                data_host="127.0.0.1",
                data_port=4000,
                host_key=0,
                min_world=0,
                hostname="model",
                pid=1,
                secret=b"" if self.admitted is None else self.admitted.secret,
            ),
        )

    def disconnected(self, conn: int) -> None:
        for kind in ("agent", "native"):
            if getattr(self, kind) == conn:
                setattr(self, kind, None)
                self.dial_failed(native=kind == "native")

    def dial_failed(self, *, native: bool) -> None:
        kind = "native" if native else "agent"
        delay_s = self.redial_s[kind] * self.world.rng.uniform(0.5, 1.5)
        self.redial_s[kind] = min(2 * self.redial_s[kind], 2.0)
        self.world.after(self, delay_s, self._dial_native if native else self._dial_agent)

    def _tell(self, message: object) -> None:
        if self.agent is not None and self.admitted is not None:
            self.world.to_coordinator(self.agent, message)

    # ------------------------------------------------------------ the agent

    def on_message(self, msg: CoordinatorMessageBody) -> None:
        engine = self.engine
        match msg:
            case Admitted():
                self._on_admitted(msg)
            case Evicted() | Refused():
                self.world.process_ended(self, told=True)
            case ViewPlan(generation, epoch):
                assert engine is not None
                if generation < engine.generation or epoch <= engine.epoch:
                    return
                self.plan = msg
                self.world.after(
                    self, self.world.rng.uniform(0.001, 0.05), lambda: self._open_links(msg)
                )
            case Hold(generation, epoch):
                assert engine is not None
                if generation >= engine.generation and epoch > engine.epoch:
                    self._tell(HoldFrom(epoch, engine.hold(generation, epoch)))
            case Activate(generation, epoch, members, step, name):
                assert engine is not None
                if self.entered is not None and self.entered.epoch == epoch == engine.epoch:
                    self._tell(self.entered)
                else:
                    engine.activate(generation, epoch, members, step, name)
            case CancelPlan(generation, epoch):
                assert engine is not None
                engine.cancel_plan(generation, epoch)
            case Install():
                assert engine is not None
                engine.install(msg)
                if engine.epoch == msg.epoch:
                    self._tell(Installed(msg.epoch))
        self.run_program()

    def _on_admitted(self, msg: Admitted) -> None:
        assert self.engine is None or msg.generation >= self.engine.generation
        if self.engine is None:
            hooks = Hooks(
                to_peer=lambda peer, m: self.world.to_peer(self, peer, m),
                decided=lambda *a: self.world.history.decided(self, *a),
                undone=lambda step: self.world.history.undone(),
                entered=self._entered,
                in_force=self._in_force,
            )
            self.engine = self.world.make_engine(self.peer_id, msg.incarnation, hooks)
            self.world.admitted(self)
            self._beat()
        self.admitted = msg
        self.redial_s["agent"] = 0.1
        self._dial_native()

    def _open_links(self, plan: ViewPlan) -> None:
        others = [m.incarnation for m in plan.members]
        if self.plan is plan and all(self.world.reachable(i) for i in others):
            self._tell(LinksUp(plan.epoch))

    def _entered(self, epoch: int, step: int) -> None:
        self.entered = Switched(epoch, step)
        self._tell(self.entered)

    def _in_force(self, epoch: int, members: tuple[MemberInfo, ...]) -> None:
        self.world.history.in_force(self, epoch, members)

    # ------------------------------------------------------------ the native control thread

    def on_frame(self, frame: Frame) -> None:
        match frame:
            case Welcome(generation):
                assert self.engine is not None
                self.redial_s["native"] = 0.1
                self.engine.generation = max(self.engine.generation, generation)
            case Flush(generation, target):
                assert self.engine is not None
                report = self.engine.fence(generation, target)
                if report is not None and self.native is not None:
                    self.world.to_coordinator(self.native, report)
            case EvictedFrame() | RefusedFrame():
                self.world.process_ended(self, told=True)

    def _beat(self) -> None:
        engine, world = self.engine, self.world
        assert engine is not None
        if self.native is not None:
            world.to_coordinator(
                self.native,
                Heartbeat(engine.generation, engine.epoch, engine.watermark, engine.next_step, 0),
            )
            overdue = [
                s
                for s in engine.open
                if world.now_s > self.began_s.get(s, world.now_s) + world.step_deadline_s
            ]
            if overdue and not engine.frozen and not engine.paused:
                step = min(overdue)
                self.began_s[step] = world.now_s
                text = f"step {step} ran out of time"
                suspect = Suspect(engine.epoch, step, SuspectCode.DEADLINE, (), text)
                world.to_coordinator(self.native, suspect)
        if (not engine.is_member() or engine.paused) and not self.leaving:
            step = engine.next_step
            waiting = [s for s, a in engine.open.items() if a.waiting]
            if waiting:
                self._tell(AtEntry(engine.open[min(waiting)].name, step))
            elif not engine.is_member():
                self._tell(AtEntry(ENTRY_NAMES[0], 0))
            elif world.now_s >= self.busy_until_s:
                self._tell(AtEntry(ENTRY_NAMES[step % len(ENTRY_NAMES)], step))
        self.run_program()
        world.after(self, world.profile.heartbeat_s, self._beat)

    # ------------------------------------------------------------ the program

    def run_program(self) -> None:
        """Begins steps in program order while the gate lets it and it has done computing."""
        engine, world = self.engine, self.world
        if engine is None or not self.alive or self.leaving:
            return
        while world.now_s >= self.busy_until_s and len(engine.open) < world.open_steps:
            step = engine.next_step
            if not engine.begin(ENTRY_NAMES[step % len(ENTRY_NAMES)]):
                return
            self.began_s[step] = world.now_s
            self.busy_until_s = world.now_s + world.think_s()
            world.after(self, self.busy_until_s - world.now_s, self.run_program)

    def on_peer(self, message: Post | Done) -> None:
        if self.engine is None:
            return
        if isinstance(message, Post):
            self.engine.on_post(message)
        else:
            self.engine.on_done(message)
        self.run_program()

    def leave(self) -> None:
        if self.agent is None or self.admitted is None:
            self.world.kill(self)
            return
        self.leaving = True
        self._tell(Leaving("done"))
        self.world.after(self, 2.0, lambda: self.world.process_ended(self, told=False))
