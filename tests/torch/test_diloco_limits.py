"""Low-communication methods: what is not finite, states that differ, restarts."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pccl
from pccl.diloco import AsyncDiLoCo, DiLoCo, NonFiniteContribution, SparseLoCo, StreamingDiLoCo
from tests.torch.members import Member, Members
from tests.torch.outer_members import FRAGMENTS, H, learn, make, make_model

METHODS = ("diloco", "async", "streaming", "sparse")


def poisoned(me: Member, method: str, policy: str) -> Any:
    """Member 1 computes a NaN in its second interval; tells what became of it."""
    model = make_model()
    with pccl.connect(me.address, min_world=2) as comm:
        comm.wait_for(2)
        outer = make(method, comm, model, nonfinite=policy)
        dropped, before, raised = 0, outer.digest(), ""
        poison_at = H[method] + 1
        while outer.outer_step < 12 and not raised:
            learn(me.number, outer.inner_step, model)
            if me.number == 1 and outer.inner_step == poison_at:
                for parameter in model.parameters():
                    parameter.data[0] = float("nan")
            try:
                report = outer.step(tokens=3)
            except NonFiniteContribution as error:
                raised = str(error)
                assert outer.digest() == before
            if report is not None:
                dropped += report.dropped
            before = outer.digest()
        if not raised:
            outer.finish()
            outer.verify()
        finite = all(bool(torch.isfinite(theta).all()) for theta in outer.parameters())
        poisoner = str(comm.peer_id) if me.number == 1 else ""
    return dropped, raised, finite, hex(outer.digest()), poisoner


@pytest.mark.parametrize("method", METHODS)
def test_a_contribution_that_is_not_finite_is_left_out_and_counted(method: str) -> None:
    with Members(poisoned, method, "drop_contributor") as members:
        members.start(0, 1)
        found = [members.result(number) for number in (0, 1)]
    assert found[0][:-1] == found[1][:-1]
    dropped, raised, finite, *_ = found[0]
    assert finite and not raised
    assert dropped == (FRAGMENTS if method == "streaming" else 1)


@pytest.mark.parametrize("method", METHODS)
def test_where_it_is_to_raise_it_names_the_peer_on_all_and_nothing_is_applied(method: str) -> None:
    with Members(poisoned, method, "raise") as members:
        members.start(0, 1)
        found = [members.result(number) for number in (0, 1)]
    assert found[0][:-1] == found[1][:-1]
    text = "1 of the members' pseudo-gradients hold an Inf or a NaN: that of peer "
    assert found[0][1] == text + found[1][-1]
    assert found[0][2]


def flipped(me: Member, method: str) -> str:
    """One bit of member 1's shared state changes in the middle of the run."""
    model, told = make_model(), "nobody noticed"
    with pccl.connect(me.address, min_world=2) as comm:
        comm.wait_for(2)
        outer = make(method, comm, model)
        held: list[bytes] = []
        try:
            while outer.outer_step < 20:
                learn(me.number, outer.inner_step, model)
                if me.number == 1 and outer.outer_step == 4:
                    outer.parameters()[-1].view(torch.int32)[5] ^= 1
                held = [theta.numpy().tobytes() for theta in outer.parameters()]
                outer.step(tokens=3)
        except pccl.CorruptResult as error:
            assert held == [theta.numpy().tobytes() for theta in outer.parameters()]
            told = str(error)
    return told


@pytest.mark.parametrize("method", METHODS)
def test_a_state_that_was_silently_changed_is_noticed_on_all(method: str) -> None:
    with Members(flipped, method) as members:
        members.start(0, 1)
        for number in (0, 1):
            assert "shared states differ" in members.result(number)


def resumed(me: Member, method: str, folder: str, until: int) -> str:
    """Trains on from what was saved, if anything was; saves at the end."""
    model, path = make_model(), Path(folder) / f"{method}-{me.number}.pt"
    state = torch.load(path) if path.exists() else None
    with pccl.connect(me.address, min_world=2) as comm:
        comm.wait_for(2)
        outer = make(method, comm, model, state=state)
        while outer.outer_step < until:
            learn(me.number, outer.inner_step, model)
            report = outer.step(tokens=3)
            if report is not None and outer.outer_step == until:
                outer.finish()
                torch.save(outer.state_dict(), path)
        kept = [theta.numpy().tobytes() for theta in (*outer.parameters(), *outer.momentum())]
        residual = outer.residual.numpy().tobytes() if method == "sparse" else b""
    return f"{outer.inner_step} {hash_of([*kept, residual])}"


def hash_of(parts: list[bytes]) -> str:
    return "".join(f"{np.frombuffer(part, np.uint8).sum(dtype=np.int64):x}." for part in parts)


@pytest.mark.parametrize("method", ["diloco", "sparse"])
def test_a_run_that_ended_goes_on_from_what_was_saved(method: str) -> None:
    """In two halves it comes to the same bits as in one piece."""
    told = []
    for untils in ((6,), (3, 6)):
        with tempfile.TemporaryDirectory() as folder:
            for until in untils:
                with Members(resumed, method, folder, until) as members:
                    members.start(0, 1)
                    told.append([members.result(number) for number in (0, 1)])
    assert told[0] == told[2]
    assert told[0] != told[1]


def refused(me: Member) -> list[str]:
    """Arguments that make no sense, each refused before anything is sent."""
    texts = []
    with pccl.connect(me.address) as comm:
        comm.wait_for(1)
        for call in (
            lambda: DiLoCo(comm, make_model(), inner_steps=0),
            lambda: DiLoCo(comm, torch.nn.Flatten()),
            lambda: DiLoCo(comm, make_model(), momentum=1.0),
            lambda: DiLoCo(comm, make_model(), nonfinite="ignore"),
            lambda: DiLoCo(comm, make_model(), state={"x": torch.zeros(1)}),
            lambda: AsyncDiLoCo(comm, make_model(), learning_rate=-1.0),
            lambda: StreamingDiLoCo(comm, make_model(), alpha=2.0),
            lambda: StreamingDiLoCo(comm, make_model(), overlap=25),
            lambda: StreamingDiLoCo(comm, make_model(), fragments=[["0.weight"]], overlap=0),
            lambda: SparseLoCo(comm, make_model(), top_k=0),
            lambda: DiLoCo(comm, make_model(), inner_steps=1).step(tokens=-1),
        ):
            try:
                call()
            except pccl.UsageError as error:
                texts.append(str(error))
    return texts


def test_arguments_that_make_no_sense_are_refused_with_what_they_may_be() -> None:
    with Members(refused) as members:
        members.start(0)
        texts = members.result(0)
    words = ["inner_steps", "no parameter", "momentum", "nonfinite", "another method or model"]
    words += ["learning_rate", "alpha", "overlap", "every parameter once", "top_k", "tokens"]
    assert len(texts) == len(words), texts
    assert all(word in text for word, text in zip(words, texts, strict=True)), texts


def put_out(me: Member, method: str) -> Any:
    """Member 2 is late for a collective of the program's own, and is told that it is out there."""
    model, out = make_model(), False
    with pccl.connect(me.address, min_world=2, straggler=1.0) as comm:
        comm.wait_for(3)
        outer = make(method, comm, model)
        asked, fewer, last = False, False, 10_000
        while outer.outer_step < last:
            learn(me.number, outer.inner_step, model)
            report = outer.step(tokens=3)
            if report is not None:
                fewer = fewer or out or len(report.contributors) == 2
                if fewer and len(report.contributors) == 3:
                    last = min(last, report.outer_step + 4)
            if outer.outer_step == 4 and not asked:
                asked = True
                time.sleep(4.0 if me.number == 2 else 0.0)
                try:
                    comm.all_reduce(np.ones(4, np.float32))
                except pccl.Excluded:
                    out = True
            time.sleep(0.02)
        outer.finish()
        outer.verify()
    return out, outer.outer_step, hex(outer.digest())


@pytest.mark.parametrize("method", ["diloco", "async"])
def test_who_was_put_out_by_a_collective_of_its_program_comes_in_as_a_joiner(method: str) -> None:
    with Members(put_out, method) as members:
        members.start(0, 1, 2)
        found = [members.result(number) for number in range(3)]
    assert [out for out, *_ in found] == [False, False, True]
    assert len({told[1:] for told in found}) == 1
