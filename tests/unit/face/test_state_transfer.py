"""Newcomers get the members' state, whoever dies on the way."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

import pccl
from pccl.state_transfer import Held, bring
from pccl.transport.engine_api import STEP_FAILED, BegunStep, StepResult
from pccl.transport.native_frames import SuspectCode
from tests.unit.face.fake_run import FakeRun, sit
from tests.unit.face.test_step import at_once


def state(fill: float) -> dict[str, Any]:
    values = np.array([fill, np.nan, -0.0, 3.0], np.float32)
    return {"weights": values, "step": np.array(int(fill) * 7), "none": np.zeros((0, 2))}


def bits(arrays: dict[str, Any]) -> list[bytes]:
    return [arrays[name].tobytes() for name in sorted(arrays)]


def test_a_newcomer_gets_the_members_bits_and_members_keep_theirs() -> None:
    run = FakeRun()
    peers = [sit(run, name)[0] for name in (b"one", b"two", b"new")]
    arrays = [state(5.0), state(5.0), state(-1.0)]
    results = at_once(
        *(lambda i=i: pccl.sync_state(peers[i], arrays[i], synced=i < 2) for i in range(3))
    )
    assert results == [True, True, True]
    assert bits(arrays[0]) == bits(arrays[1]) == bits(arrays[2]) == bits(state(5.0))


def test_while_nobody_needs_anything_it_is_one_small_step() -> None:
    comm, engine, _ = sit(FakeRun(), b"one")
    assert pccl.sync_state(comm, state(1.0), synced=True)
    assert engine.next_step == 1


def test_in_a_new_run_one_peers_state_becomes_everybodys() -> None:
    run = FakeRun()
    peers = [sit(run, name)[0] for name in (b"one", b"two", b"six")]
    arrays = [state(1.0), state(2.0), state(3.0)]
    results = at_once(
        *(lambda i=i: pccl.sync_state(peers[i], arrays[i], synced=False) for i in range(3))
    )
    assert results == [True, True, True]
    assert bits(arrays[0]) == bits(arrays[1]) == bits(arrays[2])
    assert bits(arrays[0]) in [bits(state(fill)) for fill in (1.0, 2.0, 3.0)]


def test_if_the_only_holder_dies_newcomers_keep_their_arrays_and_elect_one() -> None:
    run = FakeRun()
    holder, engine, _ = sit(run, b"one")
    newcomers = [sit(run, name)[0] for name in (b"new", b"too")]
    arrays = [state(-1.0), state(-2.0)]

    begin = engine.begin_step

    def dies_at_the_data_step(name: str, timeout_s: float) -> BegunStep:
        begun = begin(name, timeout_s)
        if name == "pccl.sync.data":
            engine.close()
        return begun

    engine.begin_step = dies_at_the_data_step  # type: ignore[method-assign]
    results = at_once(
        lambda: pccl.sync_state(holder, state(0.0), synced=True),
        *(lambda i=i: pccl.sync_state(newcomers[i], arrays[i], synced=False) for i in range(2)),
    )
    assert isinstance(results[0], pccl.Closed)
    assert results[1:] == [True, True]
    assert bits(arrays[0]) == bits(arrays[1])
    assert bits(arrays[0]) in [bits(state(-1.0)), bits(state(-2.0))]


def test_members_whose_states_differ_are_told_and_the_newcomer_gets_nothing() -> None:
    run = FakeRun()
    peers = [sit(run, name)[0] for name in (b"one", b"two", b"new")]
    arrays = [state(5.0), state(6.0), state(-1.0)]
    results = at_once(
        *(lambda i=i: pccl.sync_state(peers[i], arrays[i], synced=i < 2) for i in range(3))
    )
    assert [type(result) for result in results] == [pccl.CorruptResult] * 3
    assert [bits(have) for have in arrays] == [bits(state(f)) for f in (5.0, 6.0, -1.0)]


def bulk_and_rest(fill: float) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"weights": np.full(4, fill, np.float32)}, {"step": np.array(int(fill))}


@pytest.mark.parametrize("fetched", [5.0, 4.0])
def test_who_has_fetched_another_state_of_the_same_form_is_given_all_of_the_members(
    fetched: float,
) -> None:
    run = FakeRun()
    peers = [sit(run, name)[0] for name in (b"one", b"two", b"new")]
    states = [bulk_and_rest(fill) for fill in (5.0, 5.0, fetched)]
    states[2][1]["step"][...] = -1

    def enter(i: int) -> bool:
        bulk, rest = states[i]
        held = Held.ALL if i < 2 else Held.BULK
        return bring(peers[i], bulk, rest, lambda: held, digest=lambda: int(bulk["weights"][0]))

    results = at_once(*(lambda i=i: enter(i) for i in range(3)))
    assert results == [False, False, fetched != 5.0]
    for bulk, rest in states:
        assert (bulk["weights"] == 5.0).all() and rest["step"] == 5


@pytest.mark.parametrize("torn", [0, 1])
def test_parts_of_a_state_become_nobody_s_start(torn: int) -> None:
    run = FakeRun()
    peers = [sit(run, name)[0] for name in (b"one", b"two")]
    arrays = [state(1.0), state(2.0)]
    kinds = [Held.TORN if i == torn else Held.NOTHING for i in range(2)]
    results = at_once(
        *(lambda i=i: bring(peers[i], {}, arrays[i], lambda: kinds[i]) for i in range(2))
    )
    assert results == [i == torn for i in range(2)]
    assert bits(arrays[0]) == bits(arrays[1]) == bits(state(2.0 - torn))


def test_if_there_are_only_parts_it_is_an_error_that_says_so() -> None:
    one, _, _ = sit(FakeRun(), b"one")
    with pytest.raises(pccl.CorruptResult, match="begin with a new state"):
        bring(one, {}, state(1.0), lambda: Held.TORN)
    assert one.closed


@pytest.mark.parametrize(
    ("hold_s", "timeout_s", "held_s"),
    [(0.3, None, 0.3), (5.0, 1.6, 0.8)],
    ids=["as it said", "half of the step's time"],
)
def test_members_wait_for_what_a_newcomer_is_sent_in_one_step_no_longer_than_it_said(
    hold_s: float, timeout_s: float | None, held_s: float
) -> None:
    run = FakeRun()
    peers = [sit(run, name) for name in (b"one", b"two", b"new")]
    arrays = [state(5.0), state(5.0), state(-1.0)]
    _, engine, _ = peers[2]
    post, took_s = engine.post_all_reduce, [0.0] * 3

    def is_slow_at_the_data_step(step: int, *what: Any) -> None:
        if step == 1:
            time.sleep(3.0)
        post(step, *what)

    def is_left_out(step: int) -> None:
        setattr(engine, "step_result", lambda _: excluded)  # noqa: B010
        run.remove(engine.peer_id)

    def steps_back(step: int, code: int, text: str, after_s: float = 0.0) -> None:
        assert (step, code) == (1, SuspectCode.EXCLUDED)
        threading.Timer(after_s, is_left_out, (step,)).start()

    setattr(engine, "post_all_reduce", is_slow_at_the_data_step)  # noqa: B010
    setattr(engine, "propose_failure", steps_back)  # noqa: B010
    excluded = StepResult(STEP_FAILED, 2, 0, (), (), 0, SuspectCode.EXCLUDED, "it steps back")

    def enter(i: int) -> bool:
        began_s, held = time.monotonic(), Held.ALL if i < 2 else Held.NOTHING
        try:
            return bring(
                peers[i][0], {}, arrays[i], lambda: held, hold_s=hold_s, timeout_s=timeout_s
            )
        finally:
            took_s[i] = time.monotonic() - began_s

    results = at_once(*(lambda i=i: enter(i) for i in range(3)))
    assert results[:2] == [False, False] and max(took_s[:2]) < 1.5
    assert isinstance(results[2], pccl.CannotCatchUp) and peers[2][0].closed
    byte_count = sum(array.nbytes for array in arrays[2].values())
    assert results[2].needed_bytes_per_s == pytest.approx(byte_count / held_s)
    assert bits(arrays[2]) == bits(state(-1.0)), "nothing of it was written"
    assert not peers[0][0].closed and not peers[1][0].closed


def test_who_comes_to_members_that_are_in_already_is_told_so_once_it_is_in() -> None:
    run = FakeRun()
    peers = [sit(run, name)[0] for name in (b"one", b"new")]
    told: list[int] = []

    def enter(i: int) -> bool:
        held = Held.NOTHING if i else Held.ALL
        return bring(peers[i], {}, state(float(i)), lambda: held, late=lambda: told.append(i))

    assert at_once(*(lambda i=i: enter(i) for i in range(2))) == [False, True]
    assert told == [1]


def test_a_newcomer_of_another_layout_leaves_and_the_members_go_on() -> None:
    run = FakeRun()
    (one, _, _), (new, _, _) = sit(run, b"one"), sit(run, b"new")
    other = {"weights": np.zeros(5)}
    kept, refused = at_once(
        lambda: pccl.sync_state(one, state(1.0), synced=True),
        lambda: pccl.sync_state(new, other, synced=False),
    )
    assert kept is True and not one.closed
    assert isinstance(refused, pccl.UsageError) and new.closed


def test_torch_tensors_travel_like_arrays() -> None:
    torch = pytest.importorskip("torch")
    run = FakeRun()
    (one, _, _), (new, _, _) = sit(run, b"one"), sit(run, b"new")
    held = {"p": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)}
    fresh = {"p": torch.zeros(2, 3, dtype=torch.bfloat16)}
    results = at_once(
        lambda: pccl.sync_state(one, held, synced=True),
        lambda: pccl.sync_state(new, fresh, synced=False),
    )
    assert results == [True, True]
    assert torch.equal(held["p"], fresh["p"])
