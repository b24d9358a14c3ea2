"""The clock that ends the members' wait, and the one that does without Python."""

from __future__ import annotations

import threading
import time

import pytest

from pccl.base.errors import PcclError
from pccl.state.holding import OVERDUE_S, STEP_BACK_S, STEP_BACKS, Hold


class Step:
    """A step in which members wait; `leaves_out` says whether they go on when asked to."""

    def __init__(self, *, leaves_out: bool = True) -> None:
        self._leaves_out = leaves_out
        self._over = threading.Event()
        self.asked = 0
        self.overdue: list[float | None] = []  # as the engine was told; None: not any more

    def wait(self, timeout_s: float) -> bool:
        return self._over.wait(timeout_s)

    def step_back(self, why: str) -> None:
        self.asked += 1
        if self._leaves_out:
            self._over.set()

    def step_back_after(self, why: str, after_s: float) -> None:
        self.overdue.append(after_s)

    def stay(self) -> None:
        self.overdue.append(None)


def until(holds: object) -> None:
    assert callable(holds)
    until_s = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_the_engine_watches_a_newcomer_until_it_has_what_it_needs() -> None:
    step = Step()
    hold = Hold(step, 5.0, 31.0)
    hold.answered(time.monotonic())
    assert hold.release()
    hold.close()
    first, second, *after = step.overdue
    assert first == pytest.approx(31.0 + OVERDUE_S, abs=1.0)
    assert second == pytest.approx(5.0 + OVERDUE_S, abs=1.0)
    assert after and set(after) == {None}
    assert step.asked == 0


def test_a_newcomer_that_is_out_is_not_released() -> None:
    step = Step()
    hold = Hold(step, 0.05, 31.0)
    hold.answered(time.monotonic())
    until(lambda: step.asked > 0)
    assert not hold.release() and hold.spent == 1
    hold.close()
    assert step.overdue[-1] is None, "of a step that is over nothing is said later"


def test_one_that_is_needed_is_given_as_much_time_again_and_watched_again() -> None:
    step = Step(leaves_out=False)
    hold = Hold(step, 0.05, 31.0)
    hold.answered(time.monotonic())
    until(lambda: hold.spent == 2)
    hold.close()
    watched = [after_s for after_s in step.overdue if after_s is not None]
    assert len(watched) >= 4 and watched[3] == pytest.approx(0.05 + OVERDUE_S, abs=0.3)
    assert step.asked >= 4


def test_while_python_asks_the_engine_does_not_speak_for_it() -> None:
    step = Step(leaves_out=False)
    hold = Hold(step, 0.05, 31.0)
    hold.answered(time.monotonic())
    until(lambda: step.asked > 0)
    assert len(step.overdue) == 3 and step.overdue[2] is not None
    assert step.overdue[2] > STEP_BACK_S * STEP_BACKS, "put off before the first word"
    hold.close()


def test_one_whose_time_is_over_is_not_released_before_it_has_been_asked_for() -> None:
    step = Step()
    hold = Hold(step, 0.05, 31.0)
    hold.answered(time.monotonic())
    with hold._turn:  # so the other thread does not wake up
        time.sleep(0.1)
        assert not hold.release()
    hold.close()
    assert step.asked == 1


@pytest.mark.parametrize("end", ["release", "close"])
def test_an_answer_that_comes_too_late_has_nothing_watched(end: str) -> None:
    step = Step()
    hold = Hold(step, 5.0, 31.0)
    getattr(hold, end)()
    hold.answered(time.monotonic())
    assert step.overdue[-1] is None


def test_a_session_that_is_over_needs_no_watch() -> None:
    class Over(Step):
        def step_back_after(self, why: str, after_s: float) -> None:
            raise PcclError("closed")

    hold = Hold(Over(), 5.0, 31.0)
    hold.close()
