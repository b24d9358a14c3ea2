"""Carries out what a member machine asks of its engine."""

from __future__ import annotations

from pccl.membership import member_events as e
from pccl.membership import messages as m
from pccl.transport.engine_api import RAISES, RUNS, WAITS, EngineLike, MemberTuple

EngineEffect = (
    e.AdmitEngine | e.PrepareView | e.ActivateView | e.CancelView | e.InstallView | e.ExcludeEngine
)


def perform_on_engine(effect: EngineEffect, engine: EngineLike) -> None:
    match effect:
        case e.AdmitEngine(admitted, host, port):
            engine.admit(
                run_id=admitted.run_id,
                incarnation=admitted.incarnation,
                secret=admitted.secret,
                generation=admitted.generation,
                host=host,
                port=port,
                heartbeat_s=admitted.heartbeat_s,
                lease_s=admitted.lease_s,
            )
        case e.PrepareView(plan):
            engine.prepare_view(plan.generation, plan.epoch, _tuples(plan.members))
        case e.ActivateView(a):
            engine.activate(a.generation, a.epoch, _tuples(a.members), a.step, a.name, _pause(a))
        case e.CancelView(generation, epoch):
            engine.cancel_plan(generation, epoch)
        case e.ExcludeEngine(x):
            engine.exclude(x.generation, x.epoch, x.text, x.code)
        case e.InstallView(i):
            decisions = [(d.step, int(d.outcome), d.code, d.text) for d in i.decisions]
            engine.install(
                i.generation,
                i.epoch,
                _tuples(i.members),
                _pause(i),
                i.committed_below,
                decisions,
            )


def _pause(view: m.Activate | m.Install) -> int:
    if not view.paused:
        return RUNS
    return RAISES if view.raises else WAITS


def _tuples(members: tuple[m.MemberInfo, ...]) -> list[MemberTuple]:
    return [
        (x.peer_id, x.incarnation, x.secret, x.host, x.port, x.host_key, x.first_step, x.group)
        for x in members
    ]
