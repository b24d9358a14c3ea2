"""Callbacks for what the engine tells: once each, or never if the asking is refused."""

from __future__ import annotations

import pytest

from pccl.base.errors import UsageError
from pccl.membership.agent_notices import Notices
from pccl.transport.engine_events import LetterEnded, StepDecided


def refuse() -> None:
    raise UsageError("no such step")


def test_each_callback_is_called_once_at_its_own_event() -> None:
    notices, told = Notices(), list[str]()
    notices.wait(StepDecided(3), lambda: told.append("step"), lambda: None)
    notices.wait(LetterEnded(3), lambda: told.append("letter"), lambda: None)
    notices.tell(LetterEnded(3))
    assert told == ["letter"]
    notices.tell(LetterEnded(3))
    notices.end()
    assert told == ["letter", "step"]


def test_what_is_asked_after_the_end_is_told_at_once() -> None:
    notices, told = Notices(), list[str]()
    notices.end()
    notices.wait(StepDecided(1), lambda: told.append("step"), refuse)
    assert told == ["step"]


def test_a_refused_asking_raises_and_is_never_told() -> None:
    notices, told = Notices(), list[str]()
    with pytest.raises(UsageError):
        notices.wait(StepDecided(1), lambda: told.append("step"), refuse)
    notices.tell(StepDecided(1))
    notices.end()
    assert told == []


def test_an_asking_that_was_told_before_it_was_refused_is_not_refused() -> None:
    notices, told = Notices(), list[str]()

    def told_and_refused() -> None:
        notices.tell(StepDecided(1))
        raise UsageError("released by another thread")

    notices.wait(StepDecided(1), lambda: told.append("step"), told_and_refused)
    assert told == ["step"]
