"""Who is put out when peers have called different things, by examples and by its laws."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl.membership.decide import PUT_OUTS_MAX, Outcome, decide
from pccl.membership.events import Log, Lost
from pccl.membership.messages import Excluded, StepOutcome
from pccl.membership.misfits import NEW_FOR_STEPS, Accusation, Standing
from pccl.membership.view import Member, View
from pccl.transport.native_frames import (
    FailedStep,
    Flush,
    OpenStep,
    Report,
    Suspect,
    SuspectCode,
)
from tests.unit.membership.hub import Hub, opened

A, B, N, M = 1, 2, 3, 4  # two who are there from the start, and two who come in at STEP
STEP, EPOCH = 7, 3
CALLED, OTHER = b"\x01" * 16, b"\x02" * 16


def member(incarnation: int, first_step: int = 0, group: int = 0) -> Member:
    own = bytes([incarnation]) * 16
    return Member(own, incarnation, bytes(16), "10.0.0.1", 1, 0, first_step, group)


VIEW = View(EPOCH, (member(A), member(B), member(N, STEP), member(M, STEP)))


def report(
    manifest: bytes = bytes(16), *, watermark: int = STEP, complete: bool = False, step: int = STEP
) -> Report:
    """Of an open step; without a manifest it is not sealed."""
    sealed = manifest != bytes(16)
    held = OpenStep(step, EPOCH, sealed, complete, False, manifest, bytes(16), 0)
    return Report(1, EPOCH + 1, EPOCH, False, 0, watermark, step + 1, (), (held,))


OPEN = report()
ALL = {A: OPEN, B: OPEN, N: OPEN, M: OPEN}


def says(accuser: int, *others: int, step: int = STEP, text: str = "") -> Accusation:
    ids = tuple(bytes([other]) * 16 for other in others)
    text = text or f"{accuser} called this, {others} called that"
    return Accusation(step, SuspectCode.DESCRIPTOR, text, accuser, ids)


def judged(
    *said: Accusation, reports: dict[int, Report] = ALL, view: View = VIEW
) -> tuple[StepOutcome | None, set[int]]:
    outcome = decide([view], reports, accusations=said)
    return outcome_of(outcome), {i for i, _, _ in outcome.misfits}


def outcome_of(outcome: Outcome, step: int = STEP) -> StepOutcome | None:
    found = [StepOutcome(d.outcome) for d in outcome.decisions if d.step == step]
    return found[0] if found else None


RETRY, FAIL = StepOutcome.RETRY, StepOutcome.FAIL


@pytest.mark.parametrize("said", [says(A, N), says(N, A), says(N, A, B)])
def test_a_newcomer_that_differs_from_a_member_goes_whoever_says_so(said: Accusation) -> None:
    assert judged(said) == (RETRY, {N})
    outcome = decide([VIEW], ALL, accusations=[said])
    assert outcome.misfits == ((N, STEP, said.text),)


def test_members_that_differ_end_the_step_for_all_whatever_newcomers_do() -> None:
    assert judged(says(A, B)) == (FAIL, set())
    assert judged(says(A, N), says(B, A)) == (FAIL, set())
    assert judged(says(A, B, N)) == (FAIL, set())
    differing = {**ALL, A: report(CALLED), B: report(OTHER)}
    assert judged(says(A, N), reports=differing) == (FAIL, set())


def test_a_newcomer_s_word_puts_out_nobody_but_itself() -> None:
    assert judged(says(N, M)) == (RETRY, set())
    assert judged(says(N, A), says(N, B), says(N, M)) == (RETRY, {N})
    assert judged(says(N)) == (RETRY, {N})  # names nobody
    assert judged(says(N, 99)) == (RETRY, {N})  # or a stranger


def test_of_two_newcomers_the_one_goes_that_the_members_do_not_agree_with() -> None:
    assert judged(says(N, M), says(M, N), says(B, M)) == (RETRY, {M})
    assert judged(says(B, M), says(A, N)) == (RETRY, {N, M})


def test_what_was_called_shows_who_else_does_not_fit_in() -> None:
    reports = {A: report(CALLED), B: OPEN, N: report(CALLED), M: report(OTHER)}
    assert judged(says(N, M), reports=reports) == (RETRY, {M})
    assert judged(says(N, A), reports=reports) == (RETRY, {N, M})


def test_results_of_other_calls_never_commit_and_newcomers_answer_for_them() -> None:
    done = report(CALLED, complete=True)
    reports = {A: done, B: done, N: done, M: report(OTHER, complete=True)}
    assert judged(reports=reports) == (RETRY, {M})
    assert judged(reports={**reports, B: report(OTHER, complete=True)}) == (FAIL, set())


def test_founders_are_all_alike_until_one_of_their_steps_has_committed() -> None:
    view = View(EPOCH, tuple(member(i, 5) for i in (A, B, N)))
    for step in (5, 9):
        held = dict.fromkeys((A, B, N), report(watermark=step, step=step))
        outcome = decide([view], held, accusations=[says(A, N, step=step)])
        assert outcome_of(outcome, step) is FAIL and outcome.misfits == ()


def test_who_has_only_failed_so_far_does_not_stand_against_newcomers() -> None:
    failed = tuple(FailedStep(step, SuspectCode.DEADLINE) for step in range(STEP))
    assert judged(says(A, N), reports=dict.fromkeys(ALL, replace(OPEN, failed=failed)))[0] is FAIL
    one_committed = dict.fromkeys(ALL, replace(OPEN, failed=failed[1:]))
    assert judged(says(A, N), reports=one_committed) == (RETRY, {N})
    nothing_decided = dict.fromkeys(ALL, report(watermark=0))
    assert judged(says(A, N), reports=nothing_decided)[0] is FAIL
    liar = {**nothing_decided, N: report(watermark=STEP)}
    assert judged(says(A, N), reports=liar)[0] is FAIL


def test_a_member_is_new_for_some_steps_and_the_first_never_are() -> None:
    for later, expected in ((NEW_FOR_STEPS - 1, (RETRY, {N})), (NEW_FOR_STEPS, (FAIL, set()))):
        step = STEP + later
        held = dict.fromkeys(ALL, report(watermark=step, step=step))
        outcome = decide([VIEW], held, accusations=[says(A, N, step=step)])
        assert (outcome_of(outcome, step), {i for i, _, _ in outcome.misfits}) == expected
    left = View(EPOCH, (member(N, STEP), member(M, STEP + 2)))
    assert Standing(left, STEP + 3).new == {M}


def test_a_newcomer_that_has_died_leaves_the_others_a_step_to_run_again() -> None:
    assert judged(says(A, N), reports={A: OPEN, B: OPEN, M: OPEN})[0] is RETRY


def test_newcomers_alone_with_what_they_called_are_told() -> None:
    """Everybody who stood against them is gone: no view is made of nobody."""
    assert judged(says(A, N), says(A, M), reports={N: OPEN, M: OPEN}) == (FAIL, set())


def test_newcomers_of_a_group_of_their_own_cannot_end_the_others_steps() -> None:
    view = View(EPOCH, (member(A), member(N, STEP, group=1), member(M, STEP, group=1)))
    reports = {A: OPEN, N: OPEN, M: OPEN}
    assert judged(says(N, M), view=view, reports=reports) == (RETRY, {N, M})


def test_a_step_in_which_no_newcomer_ever_fits_in_fails_on_all_in_the_end() -> None:
    for before, expected in ((PUT_OUTS_MAX - 1, RETRY), (PUT_OUTS_MAX, FAIL)):
        outcome = decide([VIEW], ALL, accusations=[says(A, N)], put_outs={STEP: before})
        assert outcome_of(outcome) is expected


def test_who_is_put_out_is_told_why_and_stays_admitted_and_the_log_has_it() -> None:
    hub = Hub()
    a, b = hub.members(2)
    c = hub.learner()
    hub.join([a, b], c, step=4)
    a.tell(Suspect(a.epoch, 4, SuspectCode.DESCRIPTOR, (c.peer_id,), "f32[2] and f32[3]"))
    for peer in (a, b, c):
        assert peer.last(Flush) is not None
        peer.report(opened(4, a.epoch), watermark=4)
    installed = a.install()
    assert [m.peer_id for m in installed.members] == [a.peer_id, b.peer_id]
    assert [d.outcome for d in installed.decisions] == [StepOutcome.RETRY]
    told = c.got(Excluded)
    assert told.code == SuspectCode.DESCRIPTOR and "f32[2] and f32[3]" in told.text
    said = [e.text for e in hub.effects if isinstance(e, Log) and e.level == "warning"]
    assert any("step 4: peer" in text and "put out" in text for text in said)
    assert any(isinstance(e, Lost) and e.peer_id == c.peer_id for e in hub.effects)  # for records


def test_what_newcomers_say_of_each_other_stops_nobody() -> None:
    hub = Hub()
    a, b = hub.members(2)
    c = hub.learner()
    hub.join([a, b], c, step=4)
    d = hub.learner()
    hub.join([a, b, c], d, step=5)
    d.tell(Suspect(d.epoch, 5, SuspectCode.DESCRIPTOR, (c.peer_id,), "differ"))
    assert a.last(Flush) is None
    a.tell(Suspect(a.epoch, 5, SuspectCode.DESCRIPTOR, (d.peer_id,), "differ"))
    assert a.last(Flush) is not None


def test_a_bound_step_ends_with_another_view_and_what_a_newcomer_called_binds_nobody() -> None:
    def bound(one: Report) -> Report:
        return replace(one, open=(replace(one.open[0], bound=True),))

    outcome = decide([VIEW], dict.fromkeys(ALL, bound(OPEN)), accusations=[says(A, N)])
    assert outcome.decisions[0].code == SuspectCode.VIEW_CHANGED
    assert {i for i, _, _ in outcome.misfits} == {N}
    assert judged(says(A, N), reports={**ALL, N: bound(OPEN)}) == (RETRY, {N})


def test_what_newcomers_say_of_each_other_is_hearsay_where_a_member_will_know_better() -> None:
    standing = Standing(VIEW, STEP)
    assert standing.is_hearsay(says(N, M)) and not standing.is_hearsay(says(N, A))
    assert not standing.is_hearsay(says(N, M, A)) and not standing.is_hearsay(says(N))
    alone = View(EPOCH, (member(A), member(N, STEP, group=1), member(M, STEP, group=1)))
    assert not Standing(alone, STEP).is_hearsay(says(N, M))


@given(
    said=st.lists(
        st.tuples(
            st.sampled_from([N, M]),
            st.lists(st.sampled_from([A, B, N, M, 99]), max_size=4),
        ),
        max_size=6,
    ),
    manifests=st.lists(st.sampled_from([bytes(16), CALLED, OTHER]), min_size=2, max_size=2),
    watermarks=st.lists(st.integers(0, STEP + 3), min_size=2, max_size=2),
)
def test_whatever_newcomers_say_no_member_goes_and_no_step_fails(
    said: list[tuple[int, list[int]]], manifests: list[bytes], watermarks: list[int]
) -> None:
    reports = {A: report(CALLED), B: report(CALLED)}
    for own, manifest, watermark in zip((N, M), manifests, watermarks, strict=True):
        reports[own] = report(manifest, watermark=min(watermark, STEP))
    words = [says(accuser, *others) for accuser, others in said]
    outcome, unfit = judged(*words, reports=reports)
    assert outcome is RETRY and unfit <= {N, M}
