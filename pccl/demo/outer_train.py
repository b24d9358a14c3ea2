"""One peer's training loop under a low-communication method: `--method` other than ddp.

What the story calls a step is here one reduction that has been applied: so many inner steps of each
peer by itself, and then one exchange.  A joiner comes in at an entry, which the method has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import fmean

import numpy as np

import pccl
from pccl.demo.corpus import Corpus
from pccl.demo.events import Done, Entered, PeerEvent, StepDone
from pccl.demo.inner import InnerTraining, sha256_of
from pccl.demo.methods import inner_steps_per_reduction, make_outer
from pccl.demo.peer_config import PeerConfig
from pccl.diloco import OuterOptimizer, OuterStep

NEWCOMER_WAITS_MAX = 150  # as in `train`
NEWCOMER_WAIT_S = 0.2


class OuterLoop:
    """The training state of one peer, and the loop over it."""

    def __init__(
        self, config: PeerConfig, corpus: Corpus, tell: Callable[[PeerEvent], None]
    ) -> None:
        self._config = config
        self._tell = tell
        self._training = InnerTraining(
            config.shape,
            corpus,
            rows=config.rows,
            seed=config.seed,
            shard=config.shard,
            shards=config.shards,
            steps=config.steps * inner_steps_per_reduction(config.method),
        )
        # Newcomers that were met, and waits for one; a newcomer is given them with the state.
        self._met = np.zeros(2, np.int64)
        self._losses: list[float] = []
        self._loss = 0.0
        self._since_s = self._in_outer_s = 0.0

    def warm_up(self) -> None:
        """Computes one gradient for nothing: torch imports and allocates much at the first."""
        self._training.backward(step=0)

    def run(self, comm: pccl.Communicator) -> None:
        """Trains to the last reduction.  What a failing step raises is let through."""
        config, training = self._config, self._training
        outer = make_outer(
            config.method,
            comm,
            training.model,
            layers=config.shape.layers,
            extra={"met": self._met},
            hold=lambda outer: self._newcomer_is_due(outer) and self._waited(comm),
        )
        with outer.shared_parameters():
            self._tell(Entered(outer.outer_step, training.evaluate()))
        self._since_s = time.perf_counter()
        late = int(config.method == "async-diloco")  # finish() applies the last one
        while outer.outer_step < config.steps - late:
            begin_s = time.perf_counter()
            inner_step = outer.inner_step
            self._losses.append(training.backward(inner_step))
            training.update(inner_step)
            time.sleep(max(0.0, config.least_step_s - (time.perf_counter() - begin_s)))
            self._report(self._timed(lambda: outer.step(tokens=training.tokens)))
        self._report(self._timed(outer.finish))
        self._tell(Done(outer.outer_step, training.evaluate(), sha256_of(outer.parameters())))

    def _timed(self, call: Callable[[], OuterStep | None]) -> OuterStep | None:
        begin_s = time.perf_counter()
        report = call()
        self._in_outer_s += time.perf_counter() - begin_s
        return report

    def _report(self, report: OuterStep | None) -> None:
        if report is None:
            return
        now_s = time.perf_counter()
        if self._losses:  # else it is finish(), before which nothing was computed
            self._loss = fmean(self._losses)
        self._tell(
            StepDone(
                step=report.outer_step,
                loss=self._loss,
                epoch=report.epoch,
                world_size=len(report.contributors),
                wire_bytes=report.wire_bytes,
                retries=report.retries,
                step_s=now_s - self._since_s,
                reduce_s=self._in_outer_s,
                contributors=tuple(str(peer) for peer in report.contributors),
            )
        )
        self._losses.clear()
        self._since_s, self._in_outer_s = now_s, 0.0

    def _newcomer_is_due(self, outer: OuterOptimizer) -> bool:
        met, waits = self._met
        missing = met < self._config.newcomers and waits < NEWCOMER_WAITS_MAX
        return bool(outer.outer_step >= self._config.all_aboard_at and missing)

    def _waited(self, comm: pccl.Communicator) -> bool:
        newcomers = np.array([self._config.joining], np.int64)
        with comm.step(name="demo.wait") as step:
            step.all_reduce(newcomers, op="sum")
        self._met[0] = newcomers[0]
        self._met[1] += 1
        if newcomers[0] < self._config.newcomers:
            time.sleep(NEWCOMER_WAIT_S)
        return True
