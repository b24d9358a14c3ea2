"""Shared parameters of a peer that the others went on without, and of one that may not come in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import pccl
from pccl.diloco import DiLoCo
from pccl.diloco.shared import SharedParameters
from pccl.state_transfer import ENTRY
from pccl.transport.engine_api import EngineView
from tests.unit.face.fake_run import FakeRun, sit
from tests.unit.face.test_step import at_once


def parameters_of(comm: pccl.Communicator, fill: float) -> tuple[SharedParameters, Any]:
    theta, counters = torch.full((4,), fill), np.zeros(4, np.int64)
    return SharedParameters(comm, [theta], [torch.zeros(4)], counters, lambda *_: None), theta


def test_who_was_put_out_is_not_inside_and_is_given_the_members_state_whatever_it_says() -> None:
    run = FakeRun()
    sat = [sit(run, name) for name in (b"one", b"two", b"out")]
    made = [parameters_of(comm, fill) for (comm, _, _), fill in zip(sat, (5, 5, 1), strict=True)]
    for shared, _ in made:
        shared.check_inside()
    sat[2][0].session.was_excluded()  # by a collective of the program's own, which was told so
    with pytest.raises(pccl.Excluded):
        made[2][0].check_inside()
    at_once(*(lambda s=shared: s.bring({}, True, 5.0) for shared, _ in made))
    assert all((theta == 5.0).all() for _, theta in made)
    made[2][0].check_inside()


def test_who_is_in_no_view_comes_in_at_an_entry_of_its_optimizer_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    comm, engine, agent = sit(FakeRun(), b"one")
    assert agent.standing.admitted is not None
    begun = replace(agent.standing.admitted, epoch=3)
    agent.standing = replace(agent.standing, admitted=begun)
    shared, _ = parameters_of(comm, 1.0)
    keeper = comm.session.keeper
    assert keeper is not None
    keeper.before_entry("the program's own", 1.0)  # while it is in
    out = EngineView(3, -1, 1, False, (b"two".ljust(16, b"."),), (0,))
    monkeypatch.setattr(engine, "view", lambda: out)
    with pytest.raises(pccl.Excluded, match="outer optimizer"):
        keeper.before_entry("the program's own", 1.0)
    monkeypatch.setattr("pccl.state.keeper.Joining.fetch", lambda *_: None)
    monkeypatch.setattr("pccl.state.joining.Inquiry", lambda *_: None)
    keeper.before_entry(ENTRY, 1.0)
    shared.close()


def test_a_late_replica_of_a_sharded_run_is_refused_though_its_members_were_not_known_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = FakeRun()
    sat = [sit(run, name) for name in (b"one", b"new")]
    made = [parameters_of(comm, fill) for (comm, _, _), fill in zip(sat, (5, 1), strict=True)]
    view = sat[1][1].view
    groups = (0, 0, 1, 1)
    monkeypatch.setattr(
        sat[1][1], "view", lambda: EngineView(1, 1, 1, False, view().members, groups)
    )
    kept, refused = at_once(
        lambda: made[0][0].bring({}, True, 5.0), lambda: made[1][0].bring({}, False, 5.0)
    )
    assert kept is None and isinstance(refused, pccl.UsageError)
    assert sat[1][0].closed and not sat[0][0].closed


def test_a_member_s_state_is_not_loaded_over() -> None:
    comm, _, _ = sit(FakeRun(), b"one")
    outer = DiLoCo(comm, torch.nn.Linear(2, 2), inner_steps=1)
    saved, before = outer.state_dict(), outer.digest()
    with pytest.raises(pccl.UsageError, match="state="):
        outer.load_state_dict({name: tensor + 1 for name, tensor in saved.items()})
    assert outer.digest() == before
