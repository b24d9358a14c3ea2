"""The training loop over an exchange in memory: equal parameters, and newcomers that fit in."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pccl.demo.corpus import Corpus  # noqa: E402  (after the check for torch)
from pccl.demo.events import Done, Entered, PeerEvent, StepDone  # noqa: E402
from pccl.demo.model import Trainer, rate_at, training_batch  # noqa: E402
from pccl.demo.peer_config import ModelShape, PeerConfig  # noqa: E402
from pccl.demo.train import Arrays, TrainingLoop  # noqa: E402

SHAPE = ModelShape(layers=1, width=16, heads=2, context=16)
HELD_OUT = bytes(range(32, 127)) * 4


@dataclass
class Outcome:
    contributors: tuple[str, ...]
    epoch: int = 1
    retries: int = 0
    wire_bytes: int = 100


@dataclass
class FakeStep:
    outcome: Outcome
    posted: dict[int, tuple[Any, str, float]] = field(default_factory=dict)

    def all_reduce(self, tensor: Any, /, *, op: str, weight: float, tag: int) -> object:
        self.posted[tag] = (np.asarray(tensor), op, weight)
        return None


class Exchange:
    """Threads that meet at every step and leave it with the same results."""

    def __init__(self, world: int) -> None:
        self._steps: list[FakeStep | None] = [None] * world
        self._outcome = Outcome(tuple(f"peer {rank}" for rank in range(world)))
        self._meet = threading.Barrier(world, timeout=20.0)
        self.names: list[str] = []

    def seat(self, rank: int) -> "FakeSeat":
        return FakeSeat(self, rank)

    def settle(self, rank: int, step: FakeStep, name: str) -> None:
        self._steps[rank] = step
        self._meet.wait()
        if rank == 0:
            self.names.append(name)
            self._reduce([step for step in self._steps if step is not None])
        self._meet.wait()

    def begin(self) -> FakeStep:
        return FakeStep(self._outcome)

    @staticmethod
    def _reduce(steps: list[FakeStep]) -> None:
        for tag, (_, op, _) in steps[0].posted.items():
            posts = [step.posted[tag] for step in steps]
            total = sum(array * array.dtype.type(weight) for array, _, weight in posts)
            if op == "avg":
                total = total / np.float32(sum(weight for _, _, weight in posts))
            for array, _, _ in posts:
                array[...] = total


class FakeSeat:
    def __init__(self, exchange: Exchange, rank: int) -> None:
        self._exchange = exchange
        self._rank = rank

    @contextmanager
    def step(self, *, name: str) -> Iterator[FakeStep]:
        step = self._exchange.begin()
        yield step
        self._exchange.settle(self._rank, step, name)


def config(shard: int, **other: Any) -> PeerConfig:
    settings: dict[str, Any] = {
        "coordinator": "",
        "shard": shard,
        "shards": 2,
        "founders": 1,
        "joining": False,
        "newcomers": 0,
        "steps": 6,
        "rows": 2,
        "seed": 1,
        "least_step_s": 0.0,
        "shape": SHAPE,
    }
    return PeerConfig(**{**settings, **other})


def corpus(shard: int) -> Corpus:
    return Corpus(shard=bytes([65 + shard, 66, 67, 68]) * 200, held_out=HELD_OUT)


def no_newcomers(arrays: Arrays, synced: bool) -> object:
    return None


def run_alone(
    settings: PeerConfig, sync: Callable[[Arrays, bool], object]
) -> tuple[list[PeerEvent], Exchange]:
    events: list[PeerEvent] = []
    exchange = Exchange(1)
    loop = TrainingLoop(settings, corpus(settings.shard), events.append)
    loop.warm_up()
    loop.run(exchange.seat(0), sync)
    return events, exchange


def done_in(events: list[PeerEvent]) -> Done:
    assert isinstance(events[-1], Done)
    return events[-1]


def test_peers_with_different_text_end_with_the_same_parameters() -> None:
    exchange = Exchange(2)
    told: list[list[PeerEvent]] = [[], []]

    # Built here: torch's seed is one for the process.
    loops = [TrainingLoop(config(rank), corpus(rank), told[rank].append) for rank in range(2)]
    threads = [
        threading.Thread(target=loop.run, args=(exchange.seat(rank), no_newcomers))
        for rank, loop in enumerate(loops)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)

    first, second = (done_in(events) for events in told)
    assert first == second
    losses = [[e.loss for e in events if isinstance(e, StepDone)] for events in told]
    assert len(losses[0]) == len(losses[1]) == 6
    assert losses[0] != losses[1]


def test_a_newcomer_with_the_state_of_step_3_goes_on_exactly_like_its_source() -> None:
    taken: dict[str, np.ndarray[Any, Any]] = {}

    def take(arrays: Arrays, synced: bool) -> None:
        if arrays["counters"][0] == 3:
            taken.update({name: array.copy() for name, array in arrays.items()})

    source, _ = run_alone(config(0), take)

    def give(arrays: Arrays, synced: bool) -> None:
        if not synced:
            for name, array in arrays.items():
                array[...] = taken[name]

    newcomer, _ = run_alone(config(0, joining=True), give)

    assert isinstance(newcomer[0], Entered)
    assert newcomer[0].step == 3
    assert [e.step for e in newcomer if isinstance(e, StepDone)] == [4, 5, 6]
    assert done_in(newcomer) == done_in(source)


def test_members_wait_near_the_end_for_a_newcomer_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pccl.demo.train.NEWCOMER_WAIT_S", 0.0)
    monkeypatch.setattr("pccl.demo.train.NEWCOMER_WAITS_MAX", 3)

    events, exchange = run_alone(config(0, newcomers=1), no_newcomers)

    assert exchange.names == ["train"] * 5 + ["demo.wait"] * 3 + ["train"]
    assert done_in(events).step == 6


def test_members_that_have_met_the_newcomer_do_not_wait() -> None:
    _, exchange = run_alone(config(0, newcomers=1, joining=True), no_newcomers)

    assert exchange.names == ["train"] * 5 + ["demo.wait"] + ["train"]


def test_the_state_that_is_shared_says_all_that_a_member_knows() -> None:
    sizes: list[dict[str, int]] = []
    run_alone(config(0), lambda told, synced: sizes.append({k: a.size for k, a in told.items()}))

    parameters = sizes[0]["parameters"]
    assert sizes[0] == {
        "parameters": parameters,
        "momentum": parameters,
        "variance": parameters,
        "counters": 3,
    }
    assert parameters > 1000


def test_training_lowers_the_loss() -> None:
    trainer = Trainer(SHAPE, seed=1, steps=60, peak_rate=1e-2)
    text = torch.frombuffer(bytearray(corpus(0).shard), dtype=torch.uint8)
    losses = []
    for step in range(60):
        batch = training_batch(text, rows=4, context=16, seed=1, step=step)
        losses.append(trainer.backward(batch))
        trainer.update(step)

    assert losses[-1] < 0.7 * losses[0]


def test_an_update_out_of_turn_is_our_own_mistake() -> None:
    trainer = Trainer(SHAPE, seed=1, steps=30)

    with pytest.raises(AssertionError):
        trainer.update(1)


def test_buckets_are_windows_of_the_gradients_and_cover_them() -> None:
    trainer = Trainer(SHAPE, seed=1, steps=30)

    buckets = trainer.buckets(4)
    for bucket in buckets:
        bucket.fill_(3.0)

    assert sum(bucket.numel() for bucket in buckets) == trainer.gradients.numel()
    own = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    assert sum(gradient.numel() for gradient in own) == trainer.gradients.numel()
    assert all(set(gradient.flatten().tolist()) == {3.0} for gradient in own)


def test_the_rate_rises_then_falls_and_never_stops() -> None:
    rates = [rate_at(step, 100) for step in range(100)]

    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9]
    assert min(rates[9:]) == rates[-1] > 0.0


def test_a_config_arrives_as_it_was_sent() -> None:
    assert PeerConfig.from_json(config(1).to_json()) == config(1)
