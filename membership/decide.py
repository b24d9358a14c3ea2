"""The one recovery rule: what becomes of every open step after a flush.

Every survivor has *reported*: it froze, said what it knows of each step, and promised to complete
nothing more below the target epoch.  From the reports alone the outcome follows:

    commit a step iff one reporter knows that it committed, or every reporter that takes part in
    it holds its complete result, of one attempt, with manifests and digests that are equal within
    each group; else run it again.

Why that is safe.  A peer commits a step by itself only when all participants of the attempt have
sent DONE, and a peer sends DONE only when it is complete.  So if anybody committed, also one that
is dead by now, all reporters among the participants are complete with equal digests, and the rule
commits.  If some participating reporter is not complete, it never sent DONE in that attempt and,
having promised, never will: nobody has committed or ever can, so running it again is safe.

Groups share the outcome and nothing else: a step needs the completion of all of them, and its
results are compared within each.

Two refinements:

* Decisions that were told to somebody are final.  COMMIT and FAIL of earlier flushes which a
  reporter has not yet installed are handed in as `carried` and win over everything; after an
  adoption they are lost, and what reporters themselves know to have failed stands for them.
  RETRY is not carried: it says only that the attempt never commits, which stays true.  Therefore
  an attempt of an epoch older than `views` (before the latest flush) that is not carried is never
  committed.
* A step that cannot end well is failed for everybody instead of being run again for ever: one
  whose deadline passed or whose participants disagree about the operation (unless only newcomers
  do not fit in: `misfits`); after
  `CORRUPT_ATTEMPTS_MAX` attempts, one whose digests keep differing; and one that holds an operation
  whose shape depends on the members (`OpenStep.bound`) when one of those is gone.  What the reports
  cannot show (an operation that is posted later, a root that is lost) those who would have to run
  it say by a SUSPECT: no participant completes such an attempt.

Against views that lack the one of an attempt nothing can be decided: `decide` refuses, for that
attempt may have committed.

Pure functions on values; peers are named by their incarnation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Final

from pccl.membership.bound import missing_of_bound
from pccl.membership.messages import DECISIONS_MAX, StepDecision, StepOutcome
from pccl.membership.misfits import Accusation, misfits
from pccl.membership.view import FIRST_STEP_UNKNOWN, View
from pccl.transport.native_frames import OpenStep, Report, SuspectCode

FAILING: Final = (  # what fails a step that is not complete everywhere; the first says why
    SuspectCode.DESCRIPTOR,
    SuspectCode.NONFINITE,
    SuspectCode.DEADLINE,
    SuspectCode.VIEW_CHANGED,
)
CORRUPT_ATTEMPTS_MAX: Final = 3  # a flipped bit does not strike a step three times; a bug does
PUT_OUTS_MAX: Final = 8
"""So often newcomers are put out of a step.  It takes that many only where members are too few
without newcomers; when none of those fits in, the members' call may be the one that is wrong."""


class UnknownView(Exception):
    """A report tells of an attempt in a view that is newer than all that are known."""

    def __init__(self, incarnation: int, epoch: int) -> None:
        super().__init__(f"{incarnation} has a step open in the unknown epoch {epoch}")
        self.incarnation, self.epoch = incarnation, epoch


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a flush decides about steps."""

    committed_below: int  # all steps below are decided at some reporter
    decisions: tuple[StepDecision, ...]  # ascending steps
    minority: tuple[int, ...]  # hold other bits than most: to be evicted
    inconsistent: tuple[int, ...]  # their report contradicts the others': to be evicted
    corrupt: tuple[int, ...]  # steps run again because of unequal digests
    misfits: tuple[tuple[int, int, str], ...] = ()  # newcomers to put out, the step, what differs
    circular: bool = False  # all are blamed, so not all that are blamed are taken to err


@dataclass(frozen=True, slots=True)
class Spoiled:
    """How often each step was run again already, for unequal digests and without newcomers."""

    corrupt: Mapping[int, int]
    put_outs: Mapping[int, int]


def decide(
    views: Sequence[View],
    reports: Mapping[int, Report],
    *,
    accusations: Sequence[Accusation] = (),
    carried: Sequence[StepDecision] = (),
    corrupt_attempts: Mapping[int, int] | None = None,
    put_outs: Mapping[int, int] | None = None,
    witnesses: Mapping[int, Report] | None = None,
) -> Outcome:
    """Applies the rule to every step that is open somewhere.

    Args:
        views: oldest first, among them that of every attempt that may have committed.
        reports: by incarnation; survivors only.  The order of keys does not matter.
        accusations: SUSPECT frames with a step, in order of arrival.
        carried: COMMIT and FAIL of earlier flushes that a reporter has not installed.
        corrupt_attempts: how often each step was already run again for unequal digests.
        put_outs: how often, without newcomers that did not fit in.
        witnesses: likewise, of peers that leave: they know what committed, but nobody needs them to
            hold a result.

    Raises:
        UnknownView: an attempt is of an epoch above all `views`.
    """
    assert reports, "a flush decides with at least one survivor"
    newest = max(view.epoch for view in views)
    for incarnation, report in sorted(reports.items()):
        for attempt in report.open:
            if attempt.epoch > newest and not attempt.waiting:
                raise UnknownView(incarnation, attempt.epoch)
    words = (accusations, carried, Spoiled(corrupt_attempts or {}, put_outs or {}))
    outcome = _apply(views, reports, *words, witnesses or {})
    blamed = {*outcome.minority, *outcome.inconsistent}
    if blamed | {i for i, _, _ in outcome.misfits} == set(reports):
        outcome = replace(outcome, misfits=())  # whom they do not fit in with has to go as well
    if blamed != set(reports):
        return outcome
    # Everybody is blamed for something, which honest peers with one fault among them cannot bring
    # about.  Somebody has to go on with the run, else one liar could end it.
    if set(outcome.inconsistent) != set(reports):
        # Unequal digests alone remove nobody now: those steps run again or fail in the end.
        return replace(outcome, minority=(), circular=True)
    first = min(reports)  # the one that was admitted first, and its word alone
    alone = _apply(views, {first: reports[first]}, *words, {})
    others = tuple(sorted(set(reports) - {first}))
    return replace(alone, inconsistent=others, circular=True)


def _apply(
    views: Sequence[View],
    reports: Mapping[int, Report],
    accusations: Sequence[Accusation],
    carried: Sequence[StepDecision],
    spoiled: Spoiled,
    witnesses: Mapping[int, Report],
) -> Outcome:
    """Applies the rule, and says who contradicts it, each step by itself."""
    by_epoch = {view.epoch: view for view in views}
    final = _known_failures(reports, witnesses)
    final.update({d.step: d for d in carried if d.outcome != StepOutcome.RETRY})
    # Of several views that hold a joiner, the newest knows its first step.
    first_steps = {m.incarnation: m.first_step for view in views for m in view.members}
    proofs = _Proofs(first_steps, {**witnesses, **reports})
    decisions: list[StepDecision] = []
    minority: set[int] = set()
    inconsistent: set[int] = set()
    corrupt: list[int] = []
    unfit: dict[int, tuple[int, str]] = {}
    for step in _undecided_steps(reports, final):
        if step in final:
            decisions.append(final[step])
            continue
        held = {i: _open_step(r, step) for i, r in sorted(reports.items())}
        known_to = proofs.of(step)
        knowing = tuple(i for i in known_to if i in reports)
        if known_to:
            liars = _contradicted(by_epoch, held, knowing, step)
            inconsistent.update(liars)
            if not knowing or set(knowing) - set(liars):
                decisions.append(_decision(step, StepOutcome.COMMIT))
                continue
        verdict = _judge(by_epoch, reports, held, step, accusations, spoiled)
        decisions.append(verdict.decision)
        minority.update(verdict.minority)
        unfit |= {i: (step, text) for i, text in (verdict.misfits or {}).items()}
        if verdict.corrupt:
            corrupt.append(step)
    return Outcome(
        committed_below=proofs.committed_below(inconsistent),
        decisions=tuple(decisions),
        minority=tuple(sorted(minority)),
        inconsistent=tuple(sorted(inconsistent)),
        corrupt=tuple(corrupt),
        misfits=tuple((i, *what) for i, what in sorted(unfit.items())),
    )


def _decision(step: int, outcome: StepOutcome, code: int = 0, text: str = "") -> StepDecision:
    return StepDecision(step, int(outcome), int(code), text)  # plain ints: they go on the wire


def _known_failures(
    reports: Mapping[int, Report], witnesses: Mapping[int, Report]
) -> dict[int, StepDecision]:
    """Returns what members know to have failed and another one has not heard.

    A coordinator on its own journal knows these as `carried`; one that adopted the run does not.
    """
    found: dict[int, StepDecision] = {}
    for _, report in sorted({**witnesses, **reports}.items()):
        for failed in report.failed:
            unheard = any(
                failed.step >= r.watermark and failed.step not in r.committed
                for r in reports.values()
            )
            if unheard:
                text = "the members have failed it; why is lost with the old coordinator"
                decision = _decision(failed.step, StepOutcome.FAIL, failed.code, text)
                found.setdefault(failed.step, decision)
    return found


def _undecided_steps(
    reports: Mapping[int, Report], final: Mapping[int, StepDecision]
) -> tuple[int, ...]:
    """Returns the steps somebody waits for, ascending and bounded.

    A step that nobody holds open needs no word: whoever has not begun it begins it in the new
    epoch.  Only a failure told to others must reach those who have not begun the step.
    """
    steps = {o.step for r in reports.values() for o in r.open}
    steps.update(d.step for d in final.values() if d.outcome == StepOutcome.FAIL)
    return tuple(sorted(steps))[:DECISIONS_MAX]


def _open_step(report: Report, step: int) -> OpenStep | None:
    return next((o for o in report.open if o.step == step), None)


@dataclass(frozen=True, slots=True)
class _Proofs:
    """Who knows what was committed.

    A watermark proves only steps in which its holder takes part: a joiner's begins at its first
    step, while steps before that may still be open in the older view.
    """

    first_steps: Mapping[int, int]
    reports: Mapping[int, Report]

    def of(self, step: int) -> tuple[int, ...]:
        """Returns those that know that `step` committed."""
        return tuple(i for i, r in sorted(self.reports.items()) if self._knows(i, r, step))

    def _knows(self, incarnation: int, report: Report, step: int) -> bool:
        if self.first_steps.get(incarnation, FIRST_STEP_UNKNOWN) > step:
            return False
        if _open_step(report, step) is not None:
            return False  # a watermark never passes an open step; if it does, the open step is true
        if any(failed.step == step for failed in report.failed):
            return False  # which the watermark passes as well
        return step < report.watermark or step in report.committed

    def committed_below(self, liars: AbstractSet[int]) -> int:
        """Returns the step below which all are committed, as far as the stretches that the
        watermarks prove join up."""
        stretches = sorted(
            (self.first_steps[i], r.watermark)
            for i, r in self.reports.items()
            if i not in liars and self.first_steps.get(i, FIRST_STEP_UNKNOWN) != FIRST_STEP_UNKNOWN
        )
        below = stretches[0][0] if stretches else 0
        for first_step, watermark in stretches:
            if first_step <= below:
                below = max(below, watermark)
        return below


def _contradicted(
    by_epoch: Mapping[int, View],
    held: Mapping[int, OpenStep | None],
    knowing: tuple[int, ...],
    step: int,
) -> tuple[int, ...]:
    """Returns those whose word about a committed step cannot be true.

    If a step committed, all its participants were complete.  A participant that holds the step
    open and incomplete says otherwise, so either it or those who know of the commit err.  The
    fewer are taken to err; at a tie those who know are believed, for what they told their
    programs cannot be taken back.
    """
    doubting = tuple(
        i
        for i, o in held.items()
        if o is not None
        and not o.complete
        and (view := by_epoch.get(o.epoch)) is not None
        and i in view.participants(step)
    )
    if not doubting or not knowing:
        return ()
    return knowing if len(knowing) < len(doubting) else doubting


@dataclass(frozen=True, slots=True)
class _Verdict:
    decision: StepDecision
    minority: tuple[int, ...] = ()
    corrupt: bool = False
    misfits: Mapping[int, str] | None = None


def _judge(
    by_epoch: Mapping[int, View],
    reports: Mapping[int, Report],
    held: Mapping[int, OpenStep | None],
    step: int,
    accusations: Sequence[Accusation],
    spoiled: Spoiled,
) -> _Verdict:
    """Decides a step of which nobody knows that it committed."""
    results = _complete_results(by_epoch, held, step)
    differ = any(len({o.manifest for o in group.values()}) > 1 for group in results)
    told = [a for a in accusations if (a.step, a.code) == (step, SuspectCode.DESCRIPTOR)]
    unfit: Mapping[int, str] | None = {}
    if differ or (told and not results):
        view = by_epoch.get(_newest_attempt(held))
        again = spoiled.put_outs.get(step, 0) < PUT_OUTS_MAX
        unfit = misfits(view, step, held, reports, told) if view is not None and again else None
    if differ and not unfit:
        text = _words(told, step, SuspectCode.DESCRIPTOR)
        text = text or "peers posted different operations in one step"
        return _Verdict(_decision(step, StepOutcome.FAIL, SuspectCode.DESCRIPTOR, text))
    if results and not differ:
        if any(len({o.digest for o in group.values()}) > 1 for group in results):
            return _judge_corruption(results, step, spoiled.corrupt.get(step, 0))
        return _Verdict(_decision(step, StepOutcome.COMMIT))
    for code in FAILING:
        accused = _words(accusations, step, code)
        if accused is not None and not (code == SuspectCode.DESCRIPTOR and unfit is not None):
            return _Verdict(_decision(step, StepOutcome.FAIL, code, accused), misfits=unfit)
    gone = missing_of_bound(by_epoch, {i: o for i, o in held.items() if i not in (unfit or ())})
    if gone:
        decision = _decision(step, StepOutcome.FAIL, SuspectCode.VIEW_CHANGED, gone)
        return _Verdict(decision, misfits=unfit)
    return _Verdict(_decision(step, StepOutcome.RETRY), misfits=unfit)


def _words(accusations: Sequence[Accusation], step: int, code: SuspectCode) -> str | None:
    """Returns the longest text (it names most) of those that accuse `step` so, if there is one."""
    texts = [a.text for a in accusations if a.step == step and a.code == code]
    return max(texts, key=len, default=None)


def _complete_results(
    by_epoch: Mapping[int, View], held: Mapping[int, OpenStep | None], step: int
) -> tuple[dict[int, OpenStep], ...]:
    """Returns what every surviving participant holds, by group; nothing if one holds no result.

    The attempt is the newest one.  If an older one was committed by somebody, all its participants
    were complete in it, and a survivor starts another attempt only after a flush that decided; so
    an attempt of mixed epochs was never committed.
    """
    if (view := by_epoch.get(_newest_attempt(held))) is None:
        return ()
    group_of = {m.incarnation: m.group for m in view.members}
    results: dict[int, dict[int, OpenStep]] = {}
    for i in view.participants(step):
        if i not in held:
            continue
        o = held[i]
        if o is None or o.waiting or not o.complete or o.epoch != view.epoch:
            return ()
        results.setdefault(group_of[i], {})[i] = o
    return tuple(results.values())


def _newest_attempt(held: Mapping[int, OpenStep | None]) -> int:
    epochs = [o.epoch for o in held.values() if o is not None and not o.waiting]
    return max(epochs, default=-1)


def _judge_corruption(
    results: tuple[dict[int, OpenStep], ...], step: int, attempts: int
) -> _Verdict:
    """All are complete but the bits differ: somebody's memory, link or build is wrong."""
    if attempts + 1 >= CORRUPT_ATTEMPTS_MAX:
        text = (
            f"results differed between peers in {attempts + 1} attempts; memory, a link or a build "
            "is wrong somewhere: look at the peers in turn"
        )
        return _Verdict(_decision(step, StepOutcome.FAIL, SuspectCode.DIGEST, text))
    minority: list[int] = []
    for group in results:
        holders: dict[bytes, list[int]] = {}
        for i, o in group.items():
            holders.setdefault(o.digest, []).append(i)
        largest = max(holders.values(), key=len)
        if 2 * len(largest) > len(group):
            minority += [i for i in group if i not in largest]
    return _Verdict(_decision(step, StepOutcome.RETRY), tuple(minority), corrupt=True)
