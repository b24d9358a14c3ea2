"""Groups and policies, as the coordinator keeps them: ranks, opinions, views that are too small."""

from __future__ import annotations

import pytest

from pccl.base.ids import short_id
from pccl.membership.messages import (
    STRAGGLER_WAIT,
    AtEntry,
    Drain,
    Evicted,
    Excluded,
    Hold,
    Install,
    Installed,
    LinksUp,
    Refused,
    StepOutcome,
    Underflow,
    ViewPlan,
)
from pccl.transport.native_frames import Flush, Suspect, SuspectCode
from tests.unit.membership.hub import FakePeer, Hub, opened

WAIT, ALONE, RAISE = (int(p) for p in Underflow)


def enter(hub: Hub, *groups: int) -> list[FakePeer]:
    peers = [hub.learner(group=g) for g in groups]
    for peer in peers:
        peer.say(AtEntry("step", 0))
    for peer in peers:
        peer.say(LinksUp(peer.got(ViewPlan).epoch))
    return peers


def test_members_are_ranked_group_by_group_and_within_one_as_they_came() -> None:
    hub = Hub()
    peers = [a, b, c, d] = enter(hub, 1, 0, 1, 0)
    told = peers[0].got(Install).members
    for peer in peers:
        peer.epoch = 1
        peer.say(Installed(1))
    assert [(m.peer_id, m.group) for m in told] == [
        (b.peer_id, 0),
        (d.peer_id, 0),
        (a.peer_id, 1),
        (c.peer_id, 1),
    ]
    joiner = hub.learner(group=0)
    hub.join(peers, joiner, step=3)
    view = hub.machine._core.view
    assert view is not None
    assert [m.incarnation for m in view.members] == [2, 4, 5, 1, 3]


def test_a_restarted_coordinator_remembers_groups_and_policies() -> None:
    hub = Hub()
    peer = hub.learner(group=3, on_underflow=RAISE, straggler_s=2.0)
    hub.start()
    peer.hello(group=3, on_underflow=RAISE, straggler_s=2.0)
    core = hub.machine._core
    assert core.peers[peer.incarnation].group == 3
    assert core.underflow() is Underflow.RAISE and core.straggler_after_s() == 2.0


@pytest.mark.parametrize(
    ("first", "second", "code", "text"),
    [
        ({"on_underflow": WAIT}, {"on_underflow": RAISE}, "on_underflow", "is 'wait' in this run"),
        ({"straggler_s": 2.0}, {"straggler_s": 3.0}, "straggler", "to exclude after 2 s"),
        ({"straggler_s": 2.0}, {"straggler_s": STRAGGLER_WAIT}, "straggler", "asks for to wait"),
    ],
)
def test_an_opinion_that_differs_from_the_first_is_refused(
    first: dict[str, object], second: dict[str, object], code: str, text: str
) -> None:
    hub = Hub()
    hub.learner(**first)
    other = hub.peer()
    other.hello(**second)
    refused = other.got(Refused)
    assert refused.code == code and text in refused.text
    assert "all peers must give the same value or none" in refused.text
    assert hub.learner().incarnation == 2


def test_an_option_of_the_coordinator_comes_before_all_opinions() -> None:
    hub = Hub(on_underflow=ALONE, straggler_s=5.0)
    for opinion in ({"on_underflow": WAIT}, {"straggler_s": 4.0}):
        peer = hub.peer()
        peer.hello(**opinion)
        assert peer.last(Refused) is not None


def lose_one(hub: Hub) -> tuple[FakePeer, FakePeer]:
    """Three members, of which one dies while a step is open everywhere."""
    a, b, c = hub.members(3)
    hub.kill(c)
    for peer in (a, b):
        peer.report(opened(4, peer.epoch), watermark=4)
    return a, b


def test_members_below_min_world_wait_with_their_steps() -> None:
    a, _ = lose_one(Hub(min_world=3))
    told = a.install()
    assert (told.paused, told.raises) == (True, False)
    assert [d.outcome for d in told.decisions] == [StepOutcome.RETRY]


def test_members_below_min_world_go_on_alone_if_the_run_says_so() -> None:
    a, _ = lose_one(Hub(min_world=3, on_underflow=ALONE))
    told = a.install()
    assert (told.paused, told.raises) == (False, False)
    assert [d.outcome for d in told.decisions] == [StepOutcome.RETRY]


def test_a_step_that_waited_for_members_until_its_deadline_says_so() -> None:
    a, b = lose_one(Hub(min_world=3))
    told = a.install()
    b.install()
    a.tell(Suspect(told.epoch, 4, SuspectCode.DEADLINE, (), "'step' was not done after 8 s"))
    for peer in (a, b):
        peer.report(opened(4, told.epoch), watermark=4)
    (decision,) = a.got(Install).decisions
    assert decision.text == (
        "'step' was not done after 8 s; paused: 2 of min_world 3 members are in, "
        "and it waits for more"
    )


def test_a_first_view_needs_min_world_also_if_members_may_be_alone_later() -> None:
    hub = Hub(min_world=2, on_underflow=ALONE)
    (alone,) = [hub.learner()]
    alone.say(AtEntry("step", 0))
    hub.pass_time(5.0, beating=[alone])
    assert alone.last(ViewPlan) is None


def test_members_below_min_world_fail_their_steps_on_all_if_the_run_says_so() -> None:
    hub = Hub(min_world=3, on_underflow=RAISE)
    a, b = lose_one(hub)
    told = a.install()
    (lost,) = told.lost
    assert (told.paused, told.raises) == (True, True)
    (decision,) = told.decisions
    assert (decision.outcome, decision.code) == (StepOutcome.FAIL, SuspectCode.UNDERFLOW)
    assert decision.text == (
        f"2 members are left without peer {short_id(lost)}, and min_world is 3; "
        "steps run again when enough have come in"
    )
    assert b.install().decisions == told.decisions


def test_a_step_that_is_complete_everywhere_commits_below_min_world_too() -> None:
    hub = Hub(min_world=3, on_underflow=RAISE)
    a, b, c = hub.members(3)
    hub.kill(c)
    for peer in (a, b):
        peer.report(opened(4, peer.epoch, complete=True), watermark=4)
    assert [d.outcome for d in a.install().decisions] == [StepOutcome.COMMIT]


def test_newcomers_end_a_view_that_raises() -> None:
    hub = Hub(min_world=3, on_underflow=RAISE)
    a, b = lose_one(hub)
    for peer in (a, b):
        peer.install()
        peer.beat(watermark=5)
    hub.join([a, b], hub.learner(), step=5)
    view = hub.machine._core.current()
    assert view is not None and len(view.members) == 3


def test_a_straggler_is_left_out_and_told_until_it_answers() -> None:
    hub = Hub()
    a, b, slow = hub.members(3)
    core = hub.machine._core
    assert core.exclude(core.peers[slow.incarnation], "the others waited 2 s for it")
    a.beat()
    for peer in (a, b, slow):
        assert peer.last(Flush) is not None
        peer.report(opened(4, peer.epoch), watermark=4)
    told = a.install()
    assert {m.peer_id for m in told.members} == {a.peer_id, b.peer_id}
    assert slow.got(Excluded) == Excluded(1, told.epoch, "the others waited 2 s for it")
    slow.beat()
    assert slow.last(Excluded) is not None
    slow.inbox.clear()
    slow.say(Installed(told.epoch))
    slow.beat()
    assert slow.last(Excluded) is None
    assert core.counters.exclusions == 1 and core.counters.evictions == 0


@pytest.mark.parametrize("restart", [False, True])
def test_a_straggler_is_told_when_it_comes_back_and_comes_in_by_itself(restart: bool) -> None:
    hub = Hub()
    a, b, slow = hub.members(3)
    core = hub.machine._core
    core.exclude(core.peers[slow.incarnation], "slow")
    a.beat()
    for peer in (a, b, slow):
        peer.report(watermark=4)
    b.install()
    epoch = a.install().epoch
    if restart:
        hub.start()
        for peer in (a, b):
            peer.hello()
            peer.native_hello()
            peer.inbox.clear()
    else:
        slow.lose(agent=True)
    slow.inbox.clear()
    slow.hello()
    slow.native_hello()
    assert slow.got(Excluded).epoch == epoch
    assert slow.last(Hold) is None
    slow.epoch = epoch
    slow.say(Installed(epoch))
    hub.join([a, b], slow, step=6)
    view = hub.machine._core.current()
    assert view is not None and slow.incarnation in view


def test_a_straggler_that_does_not_report_is_evicted() -> None:
    hub = Hub()
    a, b, slow = hub.members(3)
    core = hub.machine._core
    core.exclude(core.peers[slow.incarnation], "slow")
    a.beat()
    for peer in (a, b):
        peer.report(watermark=4)
    hub.pass_time(2.5, beating=[a, b])
    assert slow.incarnation not in core.peers and core.counters.evictions == 1


def test_nobody_is_excluded_if_too_few_would_be_left() -> None:
    hub = Hub(min_world=3)
    a, _, slow = hub.members(3)
    core = hub.machine._core
    assert not core.exclude(core.peers[slow.incarnation], "slow")
    a.beat()
    assert a.last(Flush) is None


def test_of_two_stragglers_only_one_is_excluded_if_the_other_is_needed() -> None:
    hub = Hub(min_world=2)
    _, slow, slower = hub.members(3)
    core = hub.machine._core
    assert core.exclude(core.peers[slower.incarnation], "slow")
    assert not core.exclude(core.peers[slow.incarnation], "slow")


def test_a_straggler_that_drains_is_let_go() -> None:
    hub = Hub()
    a, b, slow = hub.members(3)
    b.lose(agent=True)  # nobody can be asked to hold for its plan
    slow.say(Drain(30.0, ""))
    core = hub.machine._core
    assert core.exclude(core.peers[slow.incarnation], "slow")
    a.beat()
    for peer in (a, b, slow):
        peer.report(watermark=4)
    assert slow.got(Evicted).text == "left the run"
    assert core.counters.exclusions == core.counters.evictions == 0


@pytest.mark.parametrize("others", ["dead", "silent"])
def test_a_straggler_stays_if_all_others_are_lost_meanwhile(others: str) -> None:
    hub = Hub()
    a, slow = hub.members(2)
    core = hub.machine._core
    core.exclude(core.peers[slow.incarnation], "slow")
    slow.beat()
    slow.report(opened(4, slow.epoch), watermark=4)
    if others == "dead":
        hub.kill(a)
    else:
        hub.pass_time(2.5, beating=[slow])
    told = slow.install()
    assert [m.peer_id for m in told.members] == [slow.peer_id]
    assert core.counters.exclusions == 0


def test_a_straggler_stays_if_a_lost_member_leaves_too_few_others() -> None:
    hub = Hub(min_world=2)
    a, b, slow = hub.members(3)
    core = hub.machine._core
    core.exclude(core.peers[slow.incarnation], "slow")
    a.beat()
    hub.kill(b)
    for peer in (a, slow):
        peer.report(watermark=4)
    assert {m.peer_id for m in a.install().members} == {a.peer_id, slow.peer_id}


def test_nobody_is_excluded_if_all_others_are_about_to_leave() -> None:
    hub = Hub()
    a, slow = hub.members(2)
    hub.plan_out([a, slow], a, step=4)
    core = hub.machine._core
    assert not core.exclude(core.peers[slow.incarnation], "slow")


def test_a_straggler_that_asks_to_go_while_it_is_left_out_is_let_go() -> None:
    hub = Hub()
    a, b, slow = hub.members(3)
    core = hub.machine._core
    core.exclude(core.peers[slow.incarnation], "slow")
    a.beat()
    slow.say(Drain(30.0, ""))
    for peer in (a, b, slow):
        peer.report(watermark=4)
    a.beat()
    assert slow.got(Evicted).text == "left the run"


def test_what_a_straggler_had_decided_in_a_run_that_is_over_counts_nothing_in_the_next() -> None:
    hub = Hub()
    a, slow = hub.members(2)
    slow.beat(watermark=9)
    core = hub.machine._core
    core.exclude(core.peers[slow.incarnation], "slow")
    a.beat()
    for peer in (a, slow):
        peer.report(watermark=9)
    epoch = a.install().epoch
    hub.kill(a)
    slow.beat(watermark=9)  # it does not know yet
    slow.epoch = epoch
    slow.say(Installed(epoch))
    slow.beat(watermark=0)
    slow.say(AtEntry("step", 0))
    slow.say(LinksUp(slow.got(ViewPlan).epoch))
    assert slow.install().members[0].first_step == 0
    assert core.peers[slow.incarnation].watermark == 0
