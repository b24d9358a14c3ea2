"""One peer of a churn run: `python agent.py CONFIG`, CONFIG being a JSON object (see `orders`).

It imports all it needs, says so, and waits for orders on its standard input: `go` connects, `end`
asks all peers to end after the same step, `leave` leaves, `stuck SECONDS` blocks the program
between two steps.  It then reduces integers, step after step, and checks every element of every
result.  Its history goes to standard output, one unbuffered JSON line per fact, so the same program
runs under a pipe, a file or ssh, and the last words of a killed process survive it.  SIGUSR1 prints
all stacks to standard error, where otherwise nothing may appear.

The state.  Every `train` step advances a vector of counters by its result.  A newcomer holds none:
it says so in its first `train` step, and a `state` step follows in which those who hold the state
bring it and the others zeros, under max.  If nobody holds it, it begins at zero, as a new lineage
named after that step.  So the hash of the state is a function of (lineage, step) alone.

With a low-communication method it trains instead: `outer_agent`.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # behind an installed pccl

import numpy as np

import pccl
from tests.churn.orders import ALL_REDUCE, LEAVE_S, Config, Orders, Pause
from tests.churn.witness import Teller
from tests.faults import values
from tests.faults.notes import Note

BOOT_ID = "/proc/sys/kernel/random/boot_id"
ENDED, FAILED = 0, 3  # exit codes
CONNECT_S = 120.0
STEP_S = 300.0
STATE = 1024  # counters
HEAD = 1  # of the vector in a `state` step: the lineage, which is a step number plus one
ALGORITHMS = ("auto", "ring", "direct", "exchange")  # in turn, so that all see every fault
# After these the same communicator goes on: the error was about one step or this peer's place.
GO_ON = (pccl.StepFailed, pccl.DeadlineExceeded)


class Replica:
    """The state of this process."""

    def __init__(self) -> None:
        self.lineage = -1  # holds none
        self.counters = np.zeros(STATE, np.int64)

    @property
    def held(self) -> bool:
        return self.lineage >= 0

    def forget(self) -> None:
        self.lineage = -1
        self.counters[:] = 0

    def advance(self, result: Any) -> None:
        self.counters += result[:STATE].astype(np.int64)

    def vector(self) -> Any:
        return np.concatenate((np.array([self.lineage + 1], np.int64), self.counters))

    def take(self, vector: Any, sources: int, step: int) -> bool:
        """Takes the outcome of a `state` step; False if it is not what this peer already held."""
        if sources == 0:
            self.lineage = step
            self.counters[:] = 0
            return True
        same = not self.held or bool((self.vector() == vector).all())
        self.lineage = int(vector[0]) - 1
        self.counters[:] = vector[HEAD:]
        return same

    def digest(self) -> str:
        return hashlib.blake2b(self.counters.data, digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Operation:
    array: Any
    op: str
    algorithm: str = "auto"


class Life:
    """One admission of this process, until it leaves, is put out or is told to end."""

    def __init__(self, comm: pccl.Communicator, config: Config, note: Note, orders: Orders) -> None:
        self._comm = comm
        self._config = config
        self._orders = orders
        self._me = bytes(comm.peer_id)
        self._replica = Replica()
        self._teller = Teller(comm, note)
        self._pause = Pause(config, note, orders, self._me)

    def run(self) -> str:
        """Steps until told to stop, or until it has left; says which."""
        while True:
            if self._orders.leave.is_set() and not self._comm.leaving:
                self._comm.leave(LEAVE_S)
            try:
                ended, fresh = self._train()
                if fresh and not ended:
                    self._share()
            except pccl.Left:
                return "Left"
            except GO_ON as error:
                if isinstance(error, pccl.Excluded):
                    self._replica.forget()
                continue
            if ended:
                return "ended"
            self._pause()

    def _train(self) -> tuple[bool, int]:
        """Returns whether the run ends here, and how many contributors do not hold the state."""
        count = self._config.count
        end = np.array([self._orders.end.is_set()], np.uint8)
        fresh = np.array([not self._replica.held], np.int64)
        x = np.empty(0, np.float32)

        def operations(number: int) -> list[Operation]:
            nonlocal x
            x = values.contribution(self._me, number, count)
            plan = ALGORITHMS[number % len(ALGORITHMS)]
            return [Operation(x, "sum", plan), Operation(end, "max"), Operation(fresh, "sum")]

        number, outcome = self._step("train", operations)
        wrong = int(np.count_nonzero(x != values.expected_sum(outcome.contributors, number, count)))
        if self._replica.held:
            self._replica.advance(x)
        self._committed(number, "train", outcome, x, wrong)
        return bool(end[0]), int(fresh[0])

    def _share(self) -> None:
        held = self._replica.held
        vector = self._replica.vector() if held else np.zeros(HEAD + STATE, np.int64)
        sources = np.array([held], np.int64)
        number, outcome = self._step(
            "state", lambda _: [Operation(vector, "max"), Operation(sources, "sum")]
        )
        same = self._replica.take(vector, int(sources[0]), number)
        self._committed(number, "state", outcome, vector, wrong=0 if same else 1)

    def _step(
        self, name: str, operations: Callable[[int], list[Operation]]
    ) -> tuple[int, pccl.Outcome]:
        number = -1
        posted: list[Operation] = []
        before: list[Any] = []
        try:
            with self._comm.step(name) as step:
                number = step.number
                self._teller.begun(number, name)
                posted = operations(number)
                before = [operation.array.copy() for operation in posted]
                for operation in posted:
                    step.all_reduce(operation.array, op=operation.op, algorithm=operation.algorithm)
        except pccl.PcclError as error:
            pairs = zip(posted, before, strict=True)
            restored = all((operation.array == was).all() for operation, was in pairs)
            self._teller.failed(number, error, restored=restored)
            raise
        return number, step.outcome

    def _committed(
        self, number: int, name: str, outcome: pccl.Outcome, result: Any, wrong: int
    ) -> None:
        self._teller.committed(
            number,
            name,
            outcome,
            values.digest(result),
            wrong=wrong,
            lineage=self._replica.lineage,
            state=self._replica.digest() if self._replica.held else "",
        )


def life_of(config: Config) -> Any:
    """Returns the class that runs what this peer is there for; imports what it needs."""
    if config.method == ALL_REDUCE:
        return Life
    from tests.churn.outer_agent import OuterLife

    return OuterLife


def live(config: Config, note: Note, orders: Orders) -> int:
    """Connects and reduces, again and again if the harness wants that; returns an exit code."""
    while True:
        note(connecting=True)
        try:
            with pccl.connect(
                config.address,
                min_world=config.min_world,
                listen=f"{config.listen}:0" if config.listen else None,
                insecure=True,
                timeout_s=CONNECT_S,
                step_timeout_s=STEP_S,
                **dict(config.connect),
            ) as comm:
                note(admitted=comm.peer_id.hex())
                end = life_of(config)(comm, config, note, orders).run()
            note(end=end, text="")
            return ENDED
        except pccl.PcclError as error:
            note(end=type(error).__name__, text=str(error)[:500])
            again = isinstance(error, pccl.Evicted | pccl.CoordinatorLost | pccl.ConnectError)
            if not (config.rejoin and again):
                return FAILED
        if orders.end.is_set() or orders.leave.is_set():
            return FAILED


def main() -> int:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    chosen = json.loads(sys.argv[1])
    chosen["connect"] = tuple(map(tuple, chosen.get("connect", ())))
    config = Config(**chosen)
    note = Note(sys.stdout.fileno())
    values.contribution(bytes(16), 0, config.count)  # makes the table
    life_of(config)
    orders = Orders()
    note(ready=os.getpid(), wall=time.time(), boot=Path(BOOT_ID).read_text().strip())
    orders.wait_for_go()
    code = live(config, note, orders)
    if config.method != ALL_REDUCE:
        os._exit(code)  # torch takes a second to fall apart; nothing of pccl is left by now
    return code


if __name__ == "__main__":
    sys.exit(main())
