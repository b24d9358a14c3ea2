"""The state of members that nobody can dial: they come to who wants it, or both meet at a third."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pccl
from pccl.membership.service import CoordinatorThread
from tests.security.laboratory import Laboratory, native_has_tls

WAIT_S = 60.0
SIZE = 1 << 20  # of f64: several pieces
Connect = Callable[..., pccl.Communicator]


@pytest.fixture(params=["plain", "secured"])
def connect(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Connect]:
    monkeypatch.delenv("PCCL_TICKET", raising=False)
    if request.param == "plain":
        thread = CoordinatorThread().start()
        yield lambda **options: pccl.connect(thread.address, timeout_s=WAIT_S, **options)
        thread.stop()
    elif not native_has_tls():
        pytest.skip("the native core has no TLS here")
    else:
        lab = Laboratory(tmp_path)
        with lab.coordinator():
            yield lambda **options: lab.connect(lab.ticket(), **options)


def content(seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(seed).integers(0, 1 << 30, SIZE).astype(np.float64)


@contextmanager
def one_that_trains(connect: Connect, **options: Any) -> Iterator[list[float]]:
    """A member with a state, which goes on until the end; yields how long its steps took."""
    over, steps = threading.Event(), list[float]()

    def train() -> None:
        state = pccl.SharedState({"weights": content(1)})
        with connect(state=state, **options) as comm:
            while not over.is_set():
                began_s = time.monotonic()
                with comm.step("train") as step:
                    step.all_reduce(np.ones(8))
                steps.append(time.monotonic() - began_s)
                time.sleep(0.01)

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    try:
        deadline_s = time.monotonic() + WAIT_S
        while not steps and time.monotonic() < deadline_s:
            time.sleep(0.01)
        yield steps
    finally:
        over.set()
        with contextlib.suppress(RuntimeError):
            thread.join(WAIT_S)


def test_a_newcomer_gets_the_state_of_one_that_nobody_can_dial(connect: Connect) -> None:
    weights = np.zeros(SIZE)
    with (
        one_that_trains(connect, reachable=False) as steps,
        connect(state=pccl.SharedState({"weights": weights})) as comm,
    ):
        with comm.step("train", timeout_s=WAIT_S) as step:
            step.all_reduce(np.ones(8))
        assert len(step.outcome.contributors) == 2
        assert (weights == content(1)).all()
        assert max(steps[1:]) < 5.0, "no step waited for it long"


def test_two_that_nobody_can_dial_bring_each_other_a_state_through_a_third(
    connect: Connect,
) -> None:
    """One of three is right, and hidden; of the two it repairs one is hidden, too."""

    def part(number: int) -> tuple[pccl.SyncResult, bool, int]:
        mine = content(1) if number == 0 else content(1 + number)
        state = pccl.SharedState({"weights": mine})
        with connect(reachable=number == 2, min_world=3) as comm:
            comm.wait_for(3)
            strategy = "send_only" if number == 0 else "receive_only"
            result = comm.sync(state, strategy=strategy, timeout_s=WAIT_S)  # type: ignore[arg-type]
            carried = comm.session.engine.stats()["relayed_bytes"]
            comm.barrier()
        return result, bool((mine == content(1)).all()), carried

    with ThreadPoolExecutor(3) as pool:
        futures: list[Future[tuple[pccl.SyncResult, bool, int]]] = [
            pool.submit(part, number) for number in range(3)
        ]
        results = [future.result(2 * WAIT_S) for future in futures]
    assert [same for _, same, _ in results] == [True] * 3
    assert len(results[0][0].sources) == 1
    assert results[2][2] >= 2 * 8 * SIZE, "what both got went through the one that can be dialled"


def test_where_nobody_can_be_dialled_a_newcomer_is_told_so_and_delays_nobody(
    connect: Connect,
) -> None:
    with (
        one_that_trains(connect, reachable=False) as steps,
        connect(state=pccl.SharedState({"weights": np.zeros(SIZE)}), reachable=False) as comm,
    ):
        began_s = time.monotonic()
        with (
            pytest.raises(pccl.DeadlineExceeded, match="no member is there that both could dial"),
            comm.step("train", timeout_s=4) as step,
        ):
            step.all_reduce(np.ones(8))
        assert 3 < time.monotonic() - began_s < 15
        before = len(steps)
        deadline_s = time.monotonic() + WAIT_S
        while len(steps) < before + 20 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert len(steps) >= before + 20
        assert max(steps[1:]) < 2.0, "no step waited for it"
