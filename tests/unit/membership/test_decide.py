"""The one recovery rule, by examples and by its laws."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pccl.membership.decide import Outcome, UnknownView, decide
from pccl.membership.messages import StepDecision, StepOutcome
from pccl.membership.misfits import Accusation
from pccl.membership.view import Member, View
from pccl.transport.native_frames import FailedStep, OpenStep, Report, SuspectCode

A, B, C, D = 1, 2, 3, 4
BITS, OTHER_BITS = b"\x01" * 16, b"\x02" * 16
STEP, EPOCH = 7, 3


def member(incarnation: int, first_step: int = 0) -> Member:
    return Member(bytes([incarnation]) * 16, incarnation, bytes(16), "10.0.0.1", 1, 0, first_step)


def view(*members: Member, epoch: int = EPOCH) -> View:
    return View(epoch, members)


def held(*, complete: bool, epoch: int = EPOCH, digest: bytes = BITS, step: int = STEP) -> OpenStep:
    return OpenStep(step, epoch, complete, complete, False, BITS, digest, 0)


def report(*steps: OpenStep, watermark: int = STEP, committed: tuple[int, ...] = ()) -> Report:
    return Report(1, EPOCH + 1, EPOCH, False, 0, watermark, STEP + 1, committed, steps)


COMPLETE = report(held(complete=True))
INCOMPLETE = report(held(complete=False))
COMMITTED = report(watermark=STEP + 1)
THREE = view(member(A), member(B), member(C))


def outcome_of(outcome: Outcome, step: int = STEP) -> StepOutcome | None:
    found = [d.outcome for d in outcome.decisions if d.step == step]
    assert len(found) <= 1
    return StepOutcome(found[0]) if found else None


def test_a_step_complete_at_all_survivors_commits_without_the_dead() -> None:
    assert outcome_of(decide([THREE], {A: COMPLETE, B: COMPLETE})) is StepOutcome.COMMIT


def test_who_knows_that_a_step_failed_tells_all_and_its_watermark_proves_no_commit() -> None:
    failed = replace(COMMITTED, failed=(FailedStep(STEP, SuspectCode.DEADLINE),))
    for other in (COMPLETE, INCOMPLETE, report()):
        outcome = decide([THREE], {A: failed, B: other, C: COMPLETE})
        assert outcome_of(outcome) is StepOutcome.FAIL
        assert outcome.decisions[0].code == SuspectCode.DEADLINE and outcome.inconsistent == ()
        outcome = decide([THREE], {B: other, C: COMPLETE}, witnesses={A: failed})
        assert outcome_of(outcome) is StepOutcome.FAIL
    told = StepDecision(STEP, StepOutcome.FAIL, SuspectCode.DEADLINE, "A was late")
    carried = decide([THREE], {A: failed, B: COMPLETE}, carried=(told,))
    assert carried.decisions == (told,)
    assert decide([THREE], {A: failed, B: failed}).decisions == ()  # all know it


def test_a_step_incomplete_at_one_survivor_runs_again() -> None:
    assert outcome_of(decide([THREE], {A: COMPLETE, B: INCOMPLETE})) is StepOutcome.RETRY


def test_a_step_not_begun_at_one_survivor_runs_again() -> None:
    assert outcome_of(decide([THREE], {A: COMPLETE, B: report()})) is StepOutcome.RETRY


def test_a_step_bound_to_its_members_fails_when_one_is_gone_and_runs_again_when_none_is() -> None:
    bound = report(replace(held(complete=False), bound=True))
    lost = decide([THREE], {A: bound, B: INCOMPLETE})
    assert outcome_of(lost) is StepOutcome.FAIL
    assert lost.decisions[0].code == SuspectCode.VIEW_CHANGED
    assert "the 3 members of epoch 3, and peer 03030303 is gone" in lost.decisions[0].text
    everybody = decide([THREE], {A: bound, B: bound, C: INCOMPLETE})
    assert outcome_of(everybody) is StepOutcome.RETRY


def test_a_bound_step_that_may_have_committed_commits_whoever_is_gone() -> None:
    bound = report(replace(held(complete=True), bound=True))
    assert outcome_of(decide([THREE], {A: bound, B: bound})) is StepOutcome.COMMIT
    assert outcome_of(decide([THREE], {A: bound, B: COMMITTED})) is StepOutcome.COMMIT


def test_a_step_is_bound_to_the_members_of_its_group_only() -> None:
    views = [view(member(A), member(B), replace(member(C), group=1), replace(member(D), group=1))]
    bound = report(replace(held(complete=False), bound=True))
    assert outcome_of(decide(views, {A: bound, B: bound, C: INCOMPLETE})) is StepOutcome.RETRY
    assert outcome_of(decide(views, {A: bound, C: bound, D: bound})) is StepOutcome.FAIL


def test_a_step_that_cannot_run_among_those_left_fails_by_their_word() -> None:
    told = [Accusation(STEP, SuspectCode.VIEW_CHANGED, "the root is gone")]
    outcome = decide([THREE], {A: INCOMPLETE, B: INCOMPLETE}, accusations=told)
    assert outcome_of(outcome) is StepOutcome.FAIL
    assert outcome.decisions[0].code == SuspectCode.VIEW_CHANGED


def test_one_that_knows_of_the_commit_is_enough() -> None:
    outcome = decide([THREE], {A: COMMITTED, B: COMPLETE})
    assert outcome_of(outcome) is StepOutcome.COMMIT
    assert outcome.committed_below == STEP + 1
    above = report(held(complete=False, step=STEP - 1), watermark=STEP - 1, committed=(STEP,))
    assert outcome_of(decide([THREE], {A: above, B: COMPLETE})) is StepOutcome.COMMIT


def test_a_leaving_peer_testifies_to_a_commit_but_its_missing_result_stops_nobody() -> None:
    reports = {A: COMPLETE, B: COMPLETE}
    for witness in (COMMITTED, INCOMPLETE):
        outcome = decide([THREE], reports, witnesses={C: witness})
        assert outcome_of(outcome) is StepOutcome.COMMIT


def test_a_joiner_that_enters_later_is_not_asked_about_earlier_steps() -> None:
    views = [view(member(A), member(B), member(C, first_step=STEP + 1))]
    reports = {A: COMPLETE, B: COMPLETE, C: report(watermark=STEP + 1)}
    reports[C] = replace(reports[C], watermark=0, next_step=0)
    assert outcome_of(decide(views, reports)) is StepOutcome.COMMIT


def test_the_watermark_a_joiner_begins_with_proves_no_commit_of_earlier_steps() -> None:
    views = [
        view(member(A), member(B)),
        view(member(A), member(B), member(C, first_step=STEP + 1), epoch=EPOCH + 1),
    ]
    joiner = Report(1, EPOCH + 2, EPOCH + 1, False, 0, STEP + 1, STEP + 1)
    for kept in (True, False):
        reports = {A: INCOMPLETE, B: INCOMPLETE} | ({C: joiner} if kept else {})
        outcome = decide(views, reports, witnesses={} if kept else {C: joiner})
        assert outcome_of(outcome) is StepOutcome.RETRY
        assert outcome.committed_below == STEP


TWO_GROUPS = view(*(replace(member(i), group=i % 2) for i in (A, B, C, D)))  # A C, B D
OTHER = report(held(complete=True, digest=OTHER_BITS))


def test_groups_hold_different_bits_and_commit_together() -> None:
    reports = {A: COMPLETE, B: OTHER, C: COMPLETE, D: OTHER}
    assert outcome_of(decide([TWO_GROUPS], reports)) is StepOutcome.COMMIT


def test_a_step_that_one_group_has_not_completed_runs_again_in_all() -> None:
    reports = {A: COMPLETE, B: OTHER, C: COMPLETE, D: INCOMPLETE}
    assert outcome_of(decide([TWO_GROUPS], reports)) is StepOutcome.RETRY


def test_bits_that_differ_within_a_group_are_corruption_whatever_the_other_group_holds() -> None:
    outcome = decide([TWO_GROUPS], {A: COMPLETE, B: OTHER, C: OTHER, D: OTHER})
    assert outcome_of(outcome) is StepOutcome.RETRY
    assert outcome.corrupt == (STEP,) and outcome.minority == ()  # one against one


def test_a_minority_is_counted_within_its_group() -> None:
    five = view(
        *(replace(member(i), group=int(i >= D)) for i in (A, B, C, D)),
        replace(member(5), group=1),
    )
    odd = report(held(complete=True, digest=b"\x03" * 16))
    outcome = decide([five], {A: COMPLETE, B: odd, C: COMPLETE, D: OTHER, 5: OTHER})
    assert outcome_of(outcome) is StepOutcome.RETRY and outcome.minority == (B,)


def test_attempts_of_two_epochs_are_no_common_result() -> None:
    views = [THREE, view(member(A), member(B), epoch=EPOCH + 1)]
    reports = {A: report(held(complete=True, epoch=EPOCH + 1)), B: COMPLETE}
    assert outcome_of(decide(views, reports)) is StepOutcome.RETRY


def test_an_attempt_from_before_the_latest_flush_is_never_committed_anew() -> None:
    reports = {A: report(held(complete=True, epoch=EPOCH - 1))}
    assert outcome_of(decide([THREE], reports)) is StepOutcome.RETRY


def test_a_final_decision_told_before_is_told_again() -> None:
    for told in (StepOutcome.COMMIT, StepOutcome.FAIL):
        carried = [StepDecision(STEP, int(told), 0, "")]
        assert outcome_of(decide([THREE], {A: INCOMPLETE}, carried=carried)) is told
        reports = {A: COMMITTED, B: COMPLETE}  # a watermark passes failed steps too
        assert outcome_of(decide([THREE], reports, carried=carried)) is told


def test_a_failure_told_before_reaches_who_has_not_begun_the_step() -> None:
    carried = [StepDecision(STEP + 2, int(StepOutcome.FAIL), 3, "late")]
    outcome = decide([THREE], {A: COMPLETE}, carried=carried)
    assert outcome_of(outcome, STEP + 2) is StepOutcome.FAIL


def test_a_deadline_fails_the_step_for_all_unless_it_is_done() -> None:
    late = [Accusation(STEP, SuspectCode.DEADLINE, "took too long")]
    outcome = decide([THREE], {A: INCOMPLETE, B: INCOMPLETE}, accusations=late)
    assert outcome.decisions == (StepDecision(STEP, 3, 3, "took too long"),)
    outcome = decide([THREE], {A: COMPLETE, B: COMPLETE}, accusations=late)
    assert outcome_of(outcome) is StepOutcome.COMMIT


def test_a_contribution_that_is_no_number_says_why_a_step_failed_before_a_deadline_does() -> None:
    late = Accusation(STEP, SuspectCode.DEADLINE, "took too long")
    bad = Accusation(STEP, SuspectCode.NONFINITE, "peer A: holds NaN")
    outcome = decide([THREE], {A: INCOMPLETE, B: INCOMPLETE}, accusations=[late, bad])
    assert outcome.decisions == (StepDecision(STEP, 3, 10, "peer A: holds NaN"),)


def test_a_mismatch_fails_the_step_with_the_words_that_say_most() -> None:
    accusations = [
        Accusation(STEP, SuspectCode.DESCRIPTOR, "differs", A),
        Accusation(STEP, SuspectCode.DESCRIPTOR, "A posted f32[4], B posted f32[5]", B),
    ]
    outcome = decide([THREE], {A: INCOMPLETE, B: INCOMPLETE}, accusations=accusations)
    assert outcome.decisions[0].outcome == StepOutcome.FAIL
    assert outcome.decisions[0].text == "A posted f32[4], B posted f32[5]"


def test_who_holds_other_bits_than_most_is_named_and_the_step_runs_again() -> None:
    odd = report(held(complete=True, digest=OTHER_BITS))
    outcome = decide([THREE], {A: COMPLETE, B: odd, C: COMPLETE})
    assert outcome_of(outcome) is StepOutcome.RETRY
    assert (outcome.minority, outcome.corrupt) == ((B,), (STEP,))


def test_between_two_peers_nobody_is_the_minority_and_the_third_attempt_fails() -> None:
    odd = report(held(complete=True, digest=OTHER_BITS))
    outcome = decide([THREE], {A: COMPLETE, B: odd}, corrupt_attempts={STEP: 1})
    assert (outcome_of(outcome), outcome.minority) == (StepOutcome.RETRY, ())
    outcome = decide([THREE], {A: COMPLETE, B: odd}, corrupt_attempts={STEP: 2})
    assert outcome_of(outcome) is StepOutcome.FAIL
    assert outcome.decisions[0].code == SuspectCode.DIGEST


def test_a_lone_claim_of_a_commit_is_not_believed_against_two() -> None:
    outcome = decide([THREE], {A: COMMITTED, B: INCOMPLETE, C: INCOMPLETE})
    assert outcome.inconsistent == (A,)
    assert outcome_of(outcome) is StepOutcome.RETRY
    assert outcome.committed_below == STEP


# ---- laws

STATES = st.sampled_from(["complete", "incomplete", "absent", "committed"])
BY_STATE = {
    "complete": COMPLETE,
    "incomplete": INCOMPLETE,
    "absent": report(),
    "committed": COMMITTED,
}
FOUR = view(member(A), member(B), member(C), member(D))


@st.composite
def possible_states(draw: st.DrawFn) -> dict[int, str]:
    """Draws what members can hold: if one has committed, all were complete."""
    states = {i: draw(STATES) for i in (A, B, C, D)}
    if "committed" in states.values():
        states = {i: s if s == "committed" else "complete" for i, s in states.items()}
    return states


SURVIVORS = st.sets(st.sampled_from([A, B, C, D]), min_size=1)


@given(possible_states(), SURVIVORS)
def test_what_anybody_committed_is_committed_whoever_survives(
    states: dict[int, str], survivors: set[int]
) -> None:
    outcome = decide([FOUR], {i: BY_STATE[states[i]] for i in survivors})
    assert outcome.inconsistent == ()
    if "committed" in states.values() and any(states[i] == "complete" for i in survivors):
        assert outcome_of(outcome) is StepOutcome.COMMIT


@given(possible_states(), SURVIVORS)
def test_nothing_is_committed_that_a_surviving_participant_does_not_hold(
    states: dict[int, str], survivors: set[int]
) -> None:
    outcome = decide([FOUR], {i: BY_STATE[states[i]] for i in survivors})
    if any(states[i] in ("incomplete", "absent") for i in survivors):
        assert outcome_of(outcome) is not StepOutcome.COMMIT


@given(possible_states(), SURVIVORS, SURVIVORS)
def test_further_deaths_never_take_a_commit_back(
    states: dict[int, str], survivors: set[int], fewer: set[int]
) -> None:
    before = decide([FOUR], {i: BY_STATE[states[i]] for i in survivors})
    left = survivors & fewer
    if outcome_of(before) is StepOutcome.COMMIT and left:
        after = decide([FOUR], {i: BY_STATE[states[i]] for i in left})
        assert outcome_of(after) in (StepOutcome.COMMIT, None)  # None: all of them know already


@given(possible_states(), st.permutations([A, B, C, D]))
def test_the_order_of_reports_does_not_matter(states: dict[int, str], order: list[int]) -> None:
    reports = {i: BY_STATE[states[i]] for i in (A, B, C, D)}
    assert decide([FOUR], reports) == decide([FOUR], {i: reports[i] for i in order})


@given(st.dictionaries(st.sampled_from([A, B, C, D]), STATES, min_size=1))
def test_every_open_step_is_decided_even_if_reports_contradict_each_other(
    states: dict[int, str],
) -> None:
    reports = {i: BY_STATE[s] for i, s in states.items()}
    outcome = decide([FOUR], reports)
    assert (outcome_of(outcome) is not None) == any(r.open for r in reports.values())
    assert set(outcome.inconsistent) < set(reports)


@given(
    st.dictionaries(
        st.sampled_from([A, B, C, D]), st.tuples(*3 * [st.sampled_from("coiak")]), min_size=1
    )
)
@example({A: tuple("occ"), B: tuple("coc"), C: tuple("cco")})  # each is once the minority
@example({A: tuple("kii"), B: tuple("iki"), C: tuple("iik")})  # each contradicts both others once
def test_somebody_stays_whatever_the_reports_say(told: dict[int, tuple[str, ...]]) -> None:
    reports = {}
    for incarnation, states in told.items():
        opened = [
            held(complete=s in "co", digest=OTHER_BITS if s == "o" else BITS, step=STEP + number)
            for number, s in enumerate(states)
            if s in "coi"  # complete, complete with other bits, incomplete; else absent or known
        ]
        known = tuple(STEP + number for number, s in enumerate(states) if s == "k")
        reports[incarnation] = report(*opened, committed=known)
    outcome = decide([FOUR], reports)
    kept = set(reports) - {*outcome.minority, *outcome.inconsistent}
    assert kept
    for decision in outcome.decisions:
        if decision.outcome == StepOutcome.COMMIT:
            for incarnation in kept:
                state = told[incarnation][decision.step - STEP]
                assert state != "i", "told to commit what it does not hold"


def test_against_views_that_lack_the_one_of_an_attempt_nothing_is_decided() -> None:
    later = report(held(complete=True, epoch=EPOCH + 1))
    with pytest.raises(UnknownView) as caught:
        decide([THREE], {A: COMPLETE, B: later})
    assert (caught.value.incarnation, caught.value.epoch) == (B, EPOCH + 1)
