"""Whom a newcomer believes, and how long it asks."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from pccl.base.clock import Deadline
from pccl.base.errors import CannotCatchUp, DeadlineExceeded
from pccl.membership.messages import MemberInfo
from pccl.state import asking, joining
from pccl.state import messages as m
from pccl.state.asking import Answers
from pccl.state.fetch import Transfer
from pccl.state.joining import Joining
from pccl.state.opening import Opened
from pccl.state.shared import SharedState
from pccl.state.stream import StreamLost


def test_members_that_do_not_answer_are_asked_no_longer_than_the_newcomer_has_time() -> None:
    began_s = time.monotonic()
    assert Answers([b"a", b"b", b"c"]).take(Deadline(0.05)) == []
    assert time.monotonic() - began_s < 10


class Step:
    """A newcomer's first step, which lasts until it steps back."""

    def __init__(self) -> None:
        self.begun = SimpleNamespace(step=7)
        self.deadline = Deadline(20.0)
        self.timeout_s = 20.0
        self.stepped_back = False

    def wait(self, timeout_s: float) -> bool:
        return self.stepped_back

    def step_back(self, why: str) -> None:
        self.stepped_back = True

    def step_back_after(self, why: str, after_s: float) -> None:
        pass

    def stay(self) -> None:
        pass


class Silent:
    """A stream of which nothing is wanted."""

    def until(self, deadline: Deadline | None) -> None:
        pass

    def send(self, body: bytes) -> None:
        raise StreamLost("it is not to be asked")

    def close(self) -> None:
        pass

    by_third = False


def joining_of(
    monkeypatch: pytest.MonkeyPatch,
    state: SharedState,
    answers: dict[bytes, float],
    accepts: bool = True,
    **options: Any,
) -> Joining:
    """A newcomer whose members hold what it holds, and say so after these seconds."""

    def open_source(member: MemberInfo, *_: Any, accepted: Callable[[], None], **__: Any) -> Opened:
        if accepts:
            accepted()
        time.sleep(answers[member.peer_id])
        digests, root = state.survey()
        said = m.Described(state.revision, state.lineage, "xxh3-128", root, 10, len(digests))
        return Opened(member, cast(Any, Silent()), said, digests, time.monotonic())

    monkeypatch.setattr(asking, "open_source", open_source)
    monkeypatch.setattr(asking, "identity_of", lambda *_: None)
    monkeypatch.setattr(asking, "stream_tls_of", lambda _: None)
    met = [SimpleNamespace(peer_id=peer, port=1) for peer in answers]
    agent = SimpleNamespace(standing=SimpleNamespace(met=met, waits=""))
    engine = SimpleNamespace(view=lambda: SimpleNamespace(members=tuple(answers)))
    session = SimpleNamespace(peer_id=b"self" * 4, agent=agent, engine=engine, check=lambda: None)
    return Joining(cast(Any, session), state, **options)


@pytest.mark.parametrize("replays", [False, True])
def test_a_late_answer_of_one_member_does_not_cost_a_newcomer_its_entry(
    monkeypatch: pytest.MonkeyPatch, replays: bool
) -> None:
    state = SharedState({"x": np.zeros(1000)}, apply=(lambda *_: None) if replays else None)
    state.restored(3, 1)
    newcomer = joining_of(monkeypatch, state, {b"a" * 16: 0.0, b"b" * 16: 2.0})
    if replays:
        inquiry = newcomer._inquiry
        followed = inquiry._open(inquiry.members()[0], m.CURRENT, None, lambda: None)
        newcomer._followed = [cast(Opened, followed)]
    step = Step()
    began_s = time.monotonic()
    assert newcomer.complete(cast(Any, step)) and state.synced and not step.stepped_back
    assert time.monotonic() - began_s < 0.9, "members wait for the first answer, not for the last"


def test_who_accepts_a_stream_and_hashes_long_is_waited_for_and_who_does_not_accept_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = SharedState({"x": np.zeros(1000)})
    for accepts in (True, False):
        answers = {b"a" * 16: 1.0}
        newcomer = joining_of(monkeypatch, state, answers, accepts, patience_s=0.3)
        if accepts:
            newcomer.fetch(Deadline(20))
            continue
        with pytest.raises(DeadlineExceeded, match="no member has given"):
            newcomer.fetch(Deadline(20))


def test_a_fetch_that_outlasts_its_time_is_no_reason_to_stop_everybody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow:
        """A receiver to which half of it comes."""

        def __init__(self, *_: Any, **__: Any) -> None:
            self.transfer = Transfer()

        def run(self, deadline: Deadline) -> None:
            self.transfer.byte_count = 4000
            raise DeadlineExceeded("500 pieces have not come in time")

    state = SharedState({"x": np.zeros(1000)})
    newcomer = joining_of(monkeypatch, state, {b"a" * 16: 0.0}, patience_s=0.3)
    monkeypatch.setattr(joining, "Receiver", Slow)
    monkeypatch.setattr(newcomer, "_survey", lambda: None)
    with pytest.raises(CannotCatchUp, match="4000 of 8000 bytes"):
        newcomer.fetch(Deadline(20))
    assert newcomer._came_in_all == 4000


def test_newcomers_whose_members_have_all_died_do_not_wait_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def waits_itself(*_: Any, **__: Any) -> Opened:
        raise StreamLost(m.WAITS_ITSELF)

    state = SharedState({"x": np.zeros(1000)})
    newcomer = joining_of(monkeypatch, state, {b"a" * 16: 0.0, b"b" * 16: 0.0}, patience_s=5.0)
    monkeypatch.setattr(asking, "open_source", waits_itself)
    began_s = time.monotonic()
    assert newcomer.complete(cast(Any, Step())) and not state.synced
    assert time.monotonic() - began_s < 5
