"""Who is put out when peers have called different things, by examples and by its laws."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pccl.membership.decide import PUT_OUTS_MAX, Outcome, decide
from pccl.membership.events import Log, Lost
from pccl.membership.messages import Excluded, StepOutcome
from pccl.membership.misfits import Accusation, is_hearsay
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


def says(
    accuser: int, *others: int, step: int = STEP, text: str = "", new: tuple[int, ...] = (N, M)
) -> Accusation:
    """Who differs and, after the accuser's own id, who is new as it knows."""
    named = (*others, accuser, *new) if new else others
    ids = tuple(bytes([one]) * 16 for one in named)
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


def test_a_newcomer_that_differs_from_a_member_goes() -> None:
    said = says(A, N)
    assert judged(said) == (RETRY, {N})
    assert decide([VIEW], ALL, accusations=[said]).misfits == ((N, STEP, said.text),)
    assert judged(said, says(B, N), says(N, A)) == (RETRY, {N})
    assert judged(says(A, N, M)) == (RETRY, {N, M})


def test_members_that_differ_end_the_step_for_all_whatever_newcomers_do() -> None:
    assert judged(says(A, B)) == (FAIL, set())
    assert judged(says(A, N), says(B, A)) == (FAIL, set())
    assert judged(says(A, B, N)) == (FAIL, set())
    assert judged(says(A)) == (FAIL, set())  # names nobody
    differing = {**ALL, A: report(CALLED), B: report(OTHER)}
    assert judged(says(A, N), reports=differing) == (FAIL, set())


def test_who_came_in_later_but_is_not_new_to_the_entry_ends_the_step_for_all() -> None:
    assert judged(says(A, N, new=())) == (FAIL, set())
    assert judged(says(A, N, new=(M,))) == (FAIL, set())
    assert judged(says(A, N, new=(M,)), says(B, M, new=(M,))) == (FAIL, set())


def test_a_newcomer_s_word_has_no_weight() -> None:
    for said in (says(N, A), says(N, M), says(N), says(N, A, B, new=(A, B)), says(N, 99, new=())):
        assert judged(said) == (RETRY, set())
        assert is_hearsay(VIEW, said)
    assert not is_hearsay(VIEW, says(A, N)) and not is_hearsay(VIEW, says(B, A))
    assert is_hearsay(VIEW, says(99, A))


def test_nobody_calls_those_new_that_were_there_as_early() -> None:
    assert judged(says(A, B, new=(B,))) == (FAIL, set())


def test_of_two_newcomers_the_one_goes_that_the_members_do_not_agree_with() -> None:
    assert judged(says(N, M), says(M, N), says(B, M)) == (RETRY, {M})
    assert judged(says(B, M), says(A, N)) == (RETRY, {N, M})


def test_what_was_called_shows_who_else_does_not_fit_in() -> None:
    reports = {A: report(CALLED), B: OPEN, N: report(OTHER), M: report(OTHER)}
    assert judged(says(B, M), reports=reports) == (RETRY, {N, M})
    assert judged(says(B, M), reports={**reports, N: report(CALLED)}) == (RETRY, {M})


def test_results_of_other_calls_never_commit_and_newcomers_answer_for_them() -> None:
    done = report(CALLED, complete=True)
    reports = {A: done, B: done, N: done, M: report(OTHER, complete=True)}
    assert judged(says(A, M), reports=reports) == (RETRY, {M})
    assert judged(reports=reports) == (FAIL, set())  # the eldest have not seen it
    reports[B] = report(OTHER, complete=True)
    assert judged(says(A, M), reports=reports) == (FAIL, set())


def test_who_has_only_failed_so_far_does_not_stand_against_newcomers() -> None:
    failed = tuple(FailedStep(step, SuspectCode.DEADLINE) for step in range(STEP))
    assert judged(says(A, N), reports=dict.fromkeys(ALL, replace(OPEN, failed=failed)))[0] is FAIL
    one_committed = dict.fromkeys(ALL, replace(OPEN, failed=failed[1:]))
    assert judged(says(A, N), reports=one_committed) == (RETRY, {N})
    nothing_decided = dict.fromkeys(ALL, report(watermark=0))
    assert judged(says(A, N), reports=nothing_decided)[0] is FAIL
    liar = {**nothing_decided, N: report(watermark=STEP)}
    assert judged(says(A, N), reports=liar)[0] is FAIL
    later = View(EPOCH, (member(A), member(M, 2), member(N, STEP)))  # and A has died since
    assert judged(says(A, N, new=(N,)), view=later, reports={M: OPEN, N: OPEN}) == (RETRY, {N})


def test_a_newcomer_that_has_died_leaves_the_others_a_step_to_run_again() -> None:
    assert judged(says(A, N), reports={A: OPEN, B: OPEN, M: OPEN})[0] is RETRY


def test_newcomers_alone_with_what_they_called_are_told() -> None:
    """Everybody who stood against them is gone: no view is made of nobody."""
    assert judged(says(A, N), says(A, M), reports={N: OPEN, M: OPEN}) == (FAIL, set())


def test_each_group_has_its_own_eldest() -> None:
    view = View(EPOCH, (member(A), member(B, 2, group=1), member(N, STEP, group=1)))
    reports = {A: OPEN, B: OPEN, N: OPEN}
    assert judged(says(B, N, new=(N,)), view=view, reports=reports) == (RETRY, {N})
    assert not is_hearsay(view, says(B, N)) and is_hearsay(view, says(N, B))


def test_a_step_in_which_no_newcomer_ever_fits_in_fails_on_all_in_the_end() -> None:
    for before, expected in ((PUT_OUTS_MAX - 1, RETRY), (PUT_OUTS_MAX, FAIL)):
        outcome = decide([VIEW], ALL, accusations=[says(A, N)], put_outs={STEP: before})
        assert outcome_of(outcome) is expected


def test_who_is_put_out_is_told_why_and_stays_admitted_and_the_log_has_it() -> None:
    hub = Hub()
    a, b = hub.members(2)
    c = hub.learner()
    hub.join([a, b], c, step=4)
    c.tell(Suspect(a.epoch, 4, SuspectCode.DESCRIPTOR, (a.peer_id,), "f32[2] and f32[3]"))
    assert a.last(Flush) is None  # the members will say as much, or it is not so
    named = (c.peer_id, a.peer_id, c.peer_id)
    a.tell(Suspect(a.epoch, 4, SuspectCode.DESCRIPTOR, named, "f32[2] and f32[3]"))
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


def test_a_bound_step_ends_with_another_view_and_what_a_newcomer_called_binds_nobody() -> None:
    def bound(one: Report) -> Report:
        return replace(one, open=(replace(one.open[0], bound=True),))

    outcome = decide([VIEW], dict.fromkeys(ALL, bound(OPEN)), accusations=[says(A, N)])
    assert outcome.decisions[0].code == SuspectCode.VIEW_CHANGED
    assert {i for i, _, _ in outcome.misfits} == {N}
    assert judged(says(A, N), reports={**ALL, N: bound(OPEN)}) == (RETRY, {N})


@given(
    said=st.lists(
        st.tuples(
            st.sampled_from([N, M]),
            st.lists(st.sampled_from([A, B, N, M, 99]), max_size=4),
            st.lists(st.sampled_from([A, B, N, M]), max_size=4),
        ),
        max_size=6,
    ),
    manifests=st.lists(st.sampled_from([bytes(16), CALLED, OTHER]), min_size=2, max_size=2),
    watermarks=st.lists(st.integers(0, STEP + 3), min_size=2, max_size=2),
)
def test_whatever_newcomers_say_no_member_goes_and_no_step_fails(
    said: list[tuple[int, list[int], list[int]]], manifests: list[bytes], watermarks: list[int]
) -> None:
    reports = {A: report(CALLED), B: report(CALLED)}
    for own, manifest, watermark in zip((N, M), manifests, watermarks, strict=True):
        reports[own] = report(manifest, watermark=min(watermark, STEP))
    words = [says(accuser, *others, new=tuple(new)) for accuser, others, new in said]
    assert judged(*words, reports=reports) == (RETRY, set())
    assert judged(*words, says(A, N), reports=reports)[1] <= {N, M}
