"""Single situations on the simulated world, with what must come of them."""

from __future__ import annotations

from typing import Any

from pccl.transport.engine_events import EngineEvent, LinksOpened
from tests.sim.faults import boot, play
from tests.sim.peer_process import PeerProcess, start_peer
from tests.sim.run import make_world
from tests.sim.script import Fault, Script
from tests.sim.verdict import check_after, is_well
from tests.sim.world import World


def a_running_world(seed: int, peers: int, **knobs: object) -> World:
    world = make_world(Script(seed, **knobs))  # type: ignore[arg-type]  # the knobs by name
    boot(world)
    for _ in range(peers):
        start_peer(world)
    world.run_until(3.0)
    assert all(p.engine.is_member() for p in world.living())
    return world


def marks(world: World) -> list[int]:
    return [p.engine.watermark for p in world.living()]


def view_of(peer: PeerProcess) -> list[int]:
    return [m.incarnation for m in peer.engine.members]


def test_one_survivor_of_four_waits_for_min_world_and_goes_on_with_newcomers() -> None:
    for seed in range(15):
        world = a_running_world(seed, 4, min_world=2)
        survivor = world.living()[0]
        for _ in range(3):
            play(world, Fault(3.0, "kill", a=1, x=-1.0))
        world.run_until(5.0)
        assert view_of(survivor) == [survivor.incarnation]
        assert survivor.engine.paused and not survivor.engine.frozen
        stood_at = survivor.engine.watermark
        world.run_until(7.0)
        assert survivor.engine.watermark == stood_at
        start_peer(world)
        world.run_until(10.0)
        assert len(view_of(survivor)) == 2 and survivor.engine.watermark > stood_at + 3
        check_after(world)


def test_a_killed_member_is_out_within_a_few_round_trips() -> None:
    for seed in range(20):
        world = a_running_world(seed, 4, delay_s=0.001)
        play(world, Fault(3.0, "kill", a=seed, x=-1.0))
        world.run_until(3.05)
        assert [len(view_of(p)) for p in world.living()] == [3, 3, 3], f"seed {seed}"


def test_a_step_that_ran_out_of_time_fails_also_for_a_program_that_had_not_begun_it() -> None:
    for seed in range(10):
        world = a_running_world(seed, 3, step_deadline_s=1.0)
        slow = world.rng.choice(world.living())
        slow.program.busy_until_s = world.now_s + 4.0
        world.at(world.now_s + 4.0, slow, slow.program.poke)
        world.run_until(10.0)
        outcomes = world.history.outcomes.items()
        failed = [step for (_, step, _), (outcome, *_) in outcomes if outcome == "fail"]
        assert failed and slow.engine.watermark > max(failed)
        assert world.told_count == 0
        check_after(world)


def test_a_coordinator_stopped_for_thirty_seconds_evicts_nobody_and_aborts_nothing() -> None:
    for seed in range(5):
        world = a_running_world(seed, 3)
        before = marks(world)
        play(world, Fault(3.0, "c_stop", x=15.0))
        world.run_until(32.0)
        assert min(marks(world)) > max(before) + 50, "nobody waits for the coordinator"
        world.run_until(40.0)
        assert len(world.history.views) == 1 and world.told_count == 0
        assert world.history.undos == 0


def test_a_joiner_delays_no_step_by_more_than_a_few_round_trips() -> None:
    for seed in range(10):
        world = a_running_world(seed, 3, delay_s=0.02, think_s=0.05)
        start_peer(world)
        slowest_s = 0.0
        while not all(p.engine.is_member() for p in world.living()):
            before, began_s = marks(world)[0], world.now_s
            while marks(world)[0] == before:
                world.run_until(world.now_s + 0.01)
                assert world.now_s < began_s + 2.0
            slowest_s = max(slowest_s, world.now_s - began_s)
            assert world.now_s < 20.0
        # Computing, the contribution and DONE on the slowest link, the hold's round trip, a write.
        assert slowest_s < 0.05 + 2 * 4 * 0.03 + 2 * 0.03 + 0.01 + 0.05, f"seed {seed}"


def test_a_newcomer_comes_in_though_a_member_never_has_the_links_of_a_plan() -> None:
    for seed in range(10):
        world = a_running_world(seed, 3)
        late = world.living()[seed % 3]
        plans, emit = list[int](), late.engine.emit

        def forget(event: EngineEvent, plans: list[int] = plans, emit: Any = emit) -> None:
            if isinstance(event, LinksOpened) and event.epoch in [*plans, event.epoch][:1]:
                plans.append(event.epoch)
            else:
                emit(event)

        late.engine.emit = forget
        newcomer = start_peer(world)
        world.run_until(12.0)
        assert plans and newcomer.engine.is_member(), f"seed {seed}"
        check_after(world)


def test_calm_is_noticed() -> None:
    world = a_running_world(0, 2)
    goal, problem = is_well(world, None)
    assert goal is not None and problem
    world.run_until(8.0)
    assert is_well(world, goal) == (goal, "")


def test_a_coordinator_on_an_old_copy_of_the_journal_ends_nothing_and_nobody() -> None:
    for seed in range(5):
        world = a_running_world(seed, 3)
        play(world, Fault(3.0, "c_copy", b=3))
        world.run_until(3.3)
        late = start_peer(world)  # the copy has never heard of it
        world.run_until(5.5)
        copy = world.listening
        assert copy is not None and copy.is_copy and late.engine.is_member(), f"seed {seed}"
        before, epoch = marks(world), late.engine.epoch
        world.run_until(world.faults_until_s - 1.1)
        assert world.listening is copy and "is an old copy" in copy.machine.outdated
        assert min(marks(world)) > max(before) + 10, "nobody waits for the coordinator"
        world.run_until(world.now_s + 6.0)
        assert {p.engine.epoch for p in world.living()} == {epoch}
        assert {p.phase for p in world.living()} == {"attached"}
        assert (world.told_count, world.history.undos, len(world.living())) == (0, 0, 4)
        check_after(world)
