"""One peer of the demo: trains its copy of the model and averages gradients with the others.

Every iteration is two steps.  The first brings newcomers to the members' state and costs next to
nothing while there are none; it is also the entry at which newcomers come in.  The second averages
the gradients: it commits on all members, or is run again without those that were lost.  So all
members apply the same gradients, and their parameters stay equal bit for bit.

The parent runs it as `python -m pccl.demo.train CONFIG`, with the config as JSON, and reads events
(`events`) from its standard output; everything else that is printed goes to the log on stderr.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TextIO

import numpy as np
import torch
from torch import Tensor

import pccl
from pccl.demo.child import end_with_parent
from pccl.demo.corpus import Corpus, NoText, default_root, load_corpus
from pccl.demo.events import (
    Admitted,
    Done,
    Entered,
    Failed,
    PeerEvent,
    Ready,
    StepDone,
    format_event,
)
from pccl.demo.methods import DDP
from pccl.demo.model import Trainer, held_out_batch, training_batch
from pccl.demo.outer_train import OuterLoop
from pccl.demo.peer_config import PeerConfig

BUCKETS = 4  # several operations in flight; each is large enough to be worth its frames
HELD_OUT_ROWS = 64
GO_WAIT_S = 300.0  # longer than the parent waits for all peers to be ready
MEET_WAIT_S = 60.0
STEP_WAIT_S = 60.0  # a hundred steps; less than the parent bears without news
# Near the end the members wait for a newcomer that is on its way, so that even a run of seconds
# shows one.  Runs of the usual length never wait.
NEWCOMER_WAITS_MAX = 150
NEWCOMER_WAIT_S = 0.2


class Outcome(Protocol):
    """What the demo reads of a committed step."""

    @property
    def contributors(self) -> Sequence[object]: ...
    @property
    def epoch(self) -> int: ...
    @property
    def retries(self) -> int: ...
    @property
    def wire_bytes(self) -> int: ...


class OpenStep(Protocol):
    """What the demo uses of a step."""

    def all_reduce(self, tensor: Any, /, *, op: str, weight: float, tag: int) -> object: ...
    @property
    def outcome(self) -> Outcome: ...


class Seat(Protocol):
    """What the training loop uses of a communicator; the tests bring their own."""

    def step(self, *, name: str) -> AbstractContextManager[OpenStep]: ...


Arrays = Mapping[str, "np.ndarray[Any, Any]"]

Sync = Callable[[Arrays, bool], object]
"""Brings the arrays to the members' state, unless they hold it already: the second argument."""

Tell = Callable[[PeerEvent], None]


class TrainingLoop:
    """The training state of one peer, and the loop over it."""

    def __init__(self, config: PeerConfig, corpus: Corpus, tell: Tell) -> None:
        self._config = config
        self._tell = tell
        context = config.shape.context
        self._text = torch.frombuffer(bytearray(corpus.shard), dtype=torch.uint8)
        held_out = torch.frombuffer(bytearray(corpus.held_out), dtype=torch.uint8)
        self._held_out = held_out_batch(held_out, rows=HELD_OUT_ROWS, context=context)
        self._trainer = Trainer(config.shape, seed=config.seed, steps=config.steps)
        self._buckets = self._trainer.buckets(BUCKETS)
        # Updates applied, newcomers that were met, and waits for one: all that a decision in the
        # loop depends on, so that all members decide alike, newcomers included.
        self._counters = np.zeros(3, np.int64)
        self._shared = {
            "parameters": self._trainer.parameters.numpy(),
            "momentum": self._trainer.momentum.numpy(),
            "variance": self._trainer.variance.numpy(),
            "counters": self._counters,
        }

    def warm_up(self) -> None:
        """Computes one gradient for nothing: torch imports and allocates much at the first."""
        self._trainer.backward(self._batch(step=0))

    def run(self, seat: Seat, sync: Sync) -> None:
        """Trains to the last step.  What a failing step raises is let through."""
        synced = False
        while True:
            begin_s = time.perf_counter()
            sync(self._shared, synced)
            step = int(self._counters[0])
            if not synced:
                synced = True
                self._trainer.resume(step)
                self._tell(Entered(step, self._trainer.evaluate(self._held_out)))
            if step == self._config.steps:
                break
            if self._newcomer_is_due(step):
                self._wait_a_little(seat)
            else:
                self._train(seat, step, begin_s)
        loss = self._trainer.evaluate(self._held_out)
        self._tell(Done(step, loss, self._trainer.digest()))

    def _newcomer_is_due(self, step: int) -> bool:
        config = self._config
        met, waits = self._counters[1:]
        missing = met < config.newcomers and waits < NEWCOMER_WAITS_MAX
        return bool(step == config.all_aboard_at and missing)

    def _wait_a_little(self, seat: Seat) -> None:
        newcomers = np.array([self._config.joining], np.int64)
        with seat.step(name="demo.wait") as step:
            step.all_reduce(newcomers, op="sum", weight=1.0, tag=0)
        self._counters[1] = newcomers[0]
        self._counters[2] += 1
        if newcomers[0] < self._config.newcomers:
            time.sleep(NEWCOMER_WAIT_S)

    def _batch(self, step: int) -> Tensor:
        config = self._config
        return training_batch(
            self._text,
            rows=config.rows,
            context=config.shape.context,
            seed=config.seed * config.shards + config.shard,
            step=step,
        )

    def _train(self, seat: Seat, number: int, begin_s: float) -> None:
        config = self._config
        loss = self._trainer.backward(self._batch(number))
        reduce_begin_s = time.perf_counter()
        tokens = float(config.rows * config.shape.context)
        with seat.step(name="train") as step:
            for tag, bucket in enumerate(self._buckets):
                step.all_reduce(bucket, op="avg", weight=tokens, tag=tag)
        reduce_end_s = time.perf_counter()
        self._trainer.update(number)
        outcome = step.outcome
        self._counters[0] = number + 1
        time.sleep(max(0.0, config.least_step_s - (time.perf_counter() - begin_s)))
        self._tell(
            StepDone(
                step=number + 1,
                loss=loss,
                epoch=outcome.epoch,
                world_size=len(outcome.contributors),
                wire_bytes=outcome.wire_bytes,
                retries=outcome.retries,
                step_s=time.perf_counter() - begin_s,
                reduce_s=reduce_end_s - reduce_begin_s,
                contributors=tuple(str(peer) for peer in outcome.contributors),
            )
        )


def main() -> int:
    """Runs one peer; returns its exit code."""
    events = _keep_stdout_for_events()

    def tell(event: PeerEvent) -> None:
        print(format_event(event), file=events, flush=True)

    go = end_with_parent()
    torch.set_num_threads(1)  # the peers share the machine's cores among themselves
    config = PeerConfig.from_json(sys.argv[1])
    try:
        corpus = load_corpus(default_root(), shard=config.shard, shards=config.shards)
    except NoText as error:
        tell(Failed(str(error)))
        return 1

    loop: TrainingLoop | OuterLoop
    if config.method == DDP:
        loop = TrainingLoop(config, corpus, tell)
    else:
        loop = OuterLoop(config, corpus, tell)
    loop.warm_up()
    tell(Ready())
    if not go.wait(GO_WAIT_S):
        tell(Failed(f"no word from the parent for {GO_WAIT_S:.0f} s"))
        return 1
    try:
        with pccl.connect(
            config.coordinator, timeout_s=MEET_WAIT_S, step_timeout_s=STEP_WAIT_S
        ) as comm:
            tell(Admitted(str(comm.peer_id)))
            if not config.joining:
                comm.wait_for(world_size=config.founders, timeout_s=MEET_WAIT_S)

            def sync(arrays: Arrays, synced: bool) -> object:
                return pccl.sync_state(comm, arrays, synced=synced)

            if isinstance(loop, TrainingLoop):
                loop.run(comm, sync)
            else:
                loop.run(comm)
    except pccl.PcclError as error:
        tell(Failed(f"{type(error).__name__}: {error}"))
        return 1
    return 0


def _keep_stdout_for_events() -> TextIO:
    """Keeps the pipe to the parent for events, and sends what others print to the log."""
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    return events


if __name__ == "__main__":
    sys.exit(main())
