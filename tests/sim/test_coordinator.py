"""Seeded runs of the real coordinator against modelled peers, with faults."""

from __future__ import annotations

from functools import partial

import pytest

from tests.sim.model_engine import ModelEngine
from tests.sim.model_peer import ModelPeer
from tests.sim.native_engine import NativeEngine
from tests.sim.world import World

FAULTS_UNTIL_S = 8.0
CALM_S = 14.0  # longer than the re-attach window, a lease, a flush and a join together
SEEDS = 140
NATIVE_SEEDS = 60
BATCH = 20
FAULTS = ("kill", "stop", "leave", "join", "cut", "coordinator kill", "coordinator stop", "mass")


def inject(world: World, fault: str) -> None:
    rng = world.rng
    living = world.living()
    peer = rng.choice(living) if living else None
    if fault == "join" or peer is None:
        world.start_peer()
    elif fault == "kill":
        world.kill(peer)
        world.at(world.now_s + rng.uniform(0, 2), world.start_peer)
    elif fault == "stop":
        world.stop(peer, rng.choice((0.3, 1.0, 3.0)))
    elif fault == "leave":
        peer.leave()
    elif fault == "cut":
        world.cut_connection(peer, native=rng.random() < 0.5)
    elif fault == "coordinator kill":
        if world.machine is not None:
            world.kill_coordinator()
            world.at(world.now_s + rng.uniform(0, 1.5), world.start_coordinator)
    elif fault == "coordinator stop":
        world.stop_coordinator(rng.choice((0.3, 1.0, 4.0)))
    elif fault == "mass":
        for victim in rng.sample(living, len(living) - 1):
            world.kill(victim)
            world.at(world.now_s + rng.uniform(0, 3), world.start_peer)


def make_world(seed: int, *, native: bool = False) -> World:
    world = World(seed, native=native)
    rng = world.rng
    world.delay_s = rng.choice((0.001, 0.02, 0.05))
    world.fsync_s = rng.choice((0.0, 0.003, 0.05))
    world.think_max_s = rng.choice((0.05, 0.1, 0.3)) if world.delay_s > 0.001 else 0.2
    world.open_steps = rng.choice((1, 1, 2, 3))
    world.crash_prefix = rng.choice((0.0, 0.0, 0.02))
    world.step_deadline_s = rng.choice((1e9, 1e9, 2.5))
    return world


def run_with_faults(seed: int, *, native: bool = False) -> World:
    world = make_world(seed, native=native)
    rng = world.rng
    for _ in range(rng.randint(1, 5)):
        world.at(rng.uniform(0, 1.0), world.start_peer)
    enabled = rng.sample(FAULTS, rng.randint(1, len(FAULTS)))
    for _ in range(rng.randint(2, 14)):
        time_s = rng.uniform(0.5, FAULTS_UNTIL_S)
        world.at(time_s, partial(inject, world, rng.choice(enabled)))
    world.run_until(FAULTS_UNTIL_S + 3.0)
    world.crash_prefix = 0.0
    if not world.living():
        world.start_peer()
    world.run_until(world.now_s + CALM_S)
    return world


def check_alive(world: World) -> None:
    """After the calm every living process is a member, and all of them make progress together."""
    before = {id(p): p.engine.watermark if p.engine else 0 for p in world.living()}
    living = [p for p in world.living() if not p.leaving]
    world.run_until(world.now_s + 4.0)
    for peer in living:
        assert peer.engine is not None and peer.engine.is_member(), f"{peer} is no member"
        assert not peer.engine.frozen and not peer.engine.paused, f"{peer} stands still"
        assert peer.engine.watermark >= before[id(peer)] + 3, f"{peer} makes no progress"
    marks = [p.engine.watermark for p in living if p.engine is not None]
    assert max(marks) - min(marks) <= 4, f"some lag behind: {marks}"


def check_history(world: World) -> None:
    for peer in world.peers:
        world.history.check_no_step_skipped(peer)


def check_run(world: World) -> None:
    """Checks a run and, when it fails, says which and how it came to that."""
    try:
        check_alive(world)
        check_history(world)
    except AssertionError as error:
        error.add_note(f"seed {world.seed}, the end of its trace:")
        error.add_note("\n".join(world.trace[-60:]))
        raise


def run_batch(first: int, *, native: bool) -> None:
    steps = 0
    for seed in range(first, first + BATCH):
        world = run_with_faults(seed, native=native)
        check_run(world)
        steps += len(world.history.outcomes)
    assert steps > BATCH * 20


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_faults_never_split_the_outcome_of_a_step_and_never_stop_the_run_for_good(
    first: int,
) -> None:
    run_batch(first, native=False)


@pytest.mark.parametrize("first", range(5000, 5000 + NATIVE_SEEDS, BATCH))
def test_faults_never_split_the_outcome_when_the_shipped_machine_runs_the_steps(
    first: int,
) -> None:
    run_batch(first, native=True)


@pytest.mark.parametrize("first", range(1000, 1020, 10))
def test_joiners_abort_nothing_and_evict_nobody(first: int) -> None:
    for seed in range(first, first + 10):
        world = make_world(seed)
        world.crash_prefix, world.step_deadline_s = 0.0, 1e9
        rng = world.rng
        for _ in range(rng.randint(2, 8)):
            world.at(rng.uniform(0, 8.0), world.start_peer)
        world.run_until(12.0)
        check_alive(world)
        check_history(world)
        assert world.history.undo_count == 0, f"seed {seed}: a join undid work"
        assert world.told_count == 0, f"seed {seed}: somebody was evicted"


def test_a_coordinator_that_crashes_alone_aborts_nothing() -> None:
    for seed in range(2000, 2010):
        world = make_world(seed)
        world.crash_prefix, world.step_deadline_s = 0.0, 1e9
        for _ in range(4):
            world.start_peer()
        for time_s in (3.0, 6.0):
            world.at(time_s, world.kill_coordinator)
            world.at(time_s + world.rng.uniform(0, 1.5), world.start_coordinator)
        world.run_until(12.0)
        check_alive(world)
        assert world.history.undo_count == 0 and world.told_count == 0, f"seed {seed}"
        assert len(world.history.views) == 1, f"seed {seed}: {world.history.views}"


def test_one_survivor_of_four_waits_for_min_world_and_goes_on_with_newcomers() -> None:
    for seed in range(3000, 3015):
        world = World(seed, min_world=2)
        for _ in range(4):
            world.start_peer()
        world.run_until(4.0)
        survivor, *victims = sorted(world.living(), key=lambda p: p.peer_id)
        for victim in victims:
            world.kill(victim)
        world.run_until(5.0)
        engine = engine_of(survivor)
        assert [m.incarnation for m in engine.members] == [engine.incarnation]
        assert engine.paused and not engine.frozen
        stood_at = engine.watermark
        world.run_until(8.0)
        assert engine.watermark == stood_at
        world.start_peer()
        world.run_until(10.0)
        assert len(engine.members) == 2 and engine.watermark > stood_at + 3
        check_history(world)


def test_a_killed_member_is_out_within_a_few_round_trips() -> None:
    for seed in range(4000, 4020):
        world = World(seed)
        world.delay_s = 0.001
        for _ in range(4):
            world.start_peer()
        world.run_until(4.0)
        victim = world.rng.choice(world.living())
        world.kill(victim)
        world.run_until(4.0 + 0.05)
        for peer in world.living():
            assert len(engine_of(peer).members) == 3, f"seed {seed}"


def test_a_step_that_ran_out_of_time_fails_also_for_a_program_that_had_not_begun_it() -> None:
    for seed in range(6000, 6010):
        world = World(seed, step_deadline_s=1.0)
        for _ in range(3):
            world.start_peer()
        world.run_until(3.0)
        slow = world.rng.choice(world.living())
        slow.busy_until_s = world.now_s + 4.0
        world.after(slow, 4.0, slow.run_program)
        world.run_until(10.0)
        outcomes = world.history.outcomes.items()
        failed = [step for (_, step), (outcome, _) in outcomes if outcome == "fail"]
        assert failed and engine_of(slow).watermark > max(failed)
        assert world.told_count == 0
        check_alive(world)


def test_the_same_seed_is_the_same_run() -> None:
    assert run_with_faults(7).trace == run_with_faults(7).trace


def engine_of(peer: ModelPeer) -> ModelEngine | NativeEngine:
    assert peer.engine is not None
    return peer.engine
