"""Unplanned views: who is asked, for how long, and what is decided."""

from __future__ import annotations

import re

from pccl.base.config import LAN
from pccl.membership.events import Persist, Send, SendNative
from pccl.membership.messages import (
    AtEntry,
    Evicted,
    HoldFrom,
    Install,
    Leaving,
    LinksUp,
    StepDecision,
    Switched,
    ViewPlan,
)
from pccl.membership.outdated import WITNESS_SHARE
from pccl.transport.native_frames import Flush, Pong, Report, Suspect, SuspectCode
from tests.unit.membership.hub import DIGEST, Hub, opened


def test_the_view_is_durable_before_anybody_hears_of_it() -> None:
    hub = Hub()
    a, b = hub.members(2)
    hub.effects.clear()
    hub.kill(b)
    kinds = [type(e) for e in hub.effects if isinstance(e, (Persist, SendNative))]
    assert kinds[0] is Persist  # that members may be frozen from now on
    hub.effects.clear()
    a.report()
    order = [e for e in hub.effects if isinstance(e, (Persist, Send))]
    assert isinstance(order[0], Persist)
    assert order[0].record.view is not None and order[0].record.view.epoch == 2
    assert not order[0].record.flushing
    assert any(isinstance(e, Send) and isinstance(e.msg, Install) for e in order[1:])


def test_a_flush_is_asked_again_with_every_heartbeat_until_it_is_answered() -> None:
    hub = Hub()
    a, b, c = hub.members(3)
    hub.kill(c)
    assert a.got(Flush).target == 2
    a.beat()
    assert a.got(Flush).target == 2
    a.beat()
    a.report()
    a.inbox.clear()
    a.beat()
    assert a.last(Flush) is None and a.got(Pong).epoch == 1
    assert b.got(Flush).target == 2


def test_a_member_without_a_native_connection_is_asked_when_it_connects() -> None:
    hub = Hub()
    _, b, c = hub.members(3)
    b.lose(native=True)
    hub.kill(c)
    assert b.last(Flush) is None
    b.native_hello()
    assert b.got(Flush).target == 2


def test_a_member_that_does_not_report_in_time_is_left_out_and_told() -> None:
    hub = Hub()
    a, b, c = hub.members(3)
    hub.kill(c)
    a.report()
    hub.pass_time(1.75, beating=[a, b])
    assert a.last(Install) is None
    hub.pass_time(0.5, beating=[a, b])
    assert a.got(Install).lost == (b.peer_id, c.peer_id)
    assert re.fullmatch(
        r"no answer in time, heard last \d\.\d s ago; the run went on; connect again",
        b.got(Evicted).text,
    )


def test_all_reports_that_arrived_in_a_short_pause_count_not_only_the_first() -> None:
    hub = Hub()
    a, b, c, d = hub.members(4)
    hub.kill(d)
    a.report()
    hub.pass_time(LAN.flush_timeout_s - 0.25, beating=[a, b, c])
    hub.now_s += 0.4  # too short to be told as a pause; then three messages are read at once
    a.beat()
    b.report()
    assert a.last(Install) is None, "who is heard first speaks for nobody else"
    c.report()
    assert a.got(Install).lost == (d.peer_id,)
    assert b.last(Evicted) is None and c.last(Evicted) is None


def test_a_flush_that_is_asked_for_after_a_short_pause_has_its_whole_time() -> None:
    hub = Hub()
    a, b, c = hub.members(3)
    hub.pass_time(0.25, beating=[a, b, c])
    assert hub.machine.deadline_s is not None
    hub.now_s = hub.machine.deadline_s + 0.5
    c.lose(native=True)
    hub.kill(c)
    hub.pass_time(LAN.flush_timeout_s - 0.25, beating=[a, b])
    assert a.last(Install) is None
    a.report()
    b.report()
    assert a.got(Install).lost == (c.peer_id,)


def test_leases_that_end_in_a_short_pause_are_judged_by_all_that_has_arrived() -> None:
    hub = Hub()
    a, b, c = hub.members(3)
    hub.pass_time(LAN.lease_s - 0.1)
    hub.now_s += 0.4
    for peer in (a, b, c):
        peer.beat()
    hub.pass_time(1.0, beating=[a, b, c])
    assert hub.status()["epoch"] == 1 and a.last(Flush) is None


def test_without_a_single_report_nothing_is_decided() -> None:
    hub = Hub()
    a, b, c = hub.members(3)
    hub.kill(c)
    hub.pass_time(30.0)
    assert a.last(Install) is None and a.last(Evicted) is None
    a.beat()
    a.report()
    hub.pass_time(0.25)
    assert a.last(Install) is None  # the others' reports may be right behind it
    b.beat()
    b.report()
    assert a.got(Install).lost == (c.peer_id,)


def test_reports_for_another_flush_or_of_another_coordinator_are_no_reports() -> None:
    hub = Hub()
    a, b = hub.members(2)
    hub.kill(b)
    a.tell(Report(1, 1, 1, False, 0, 0, 0))
    a.tell(Report(7, 2, 1, False, 0, 0, 0))
    assert a.last(Install) is None
    a.report()
    assert a.got(Install).epoch == 2


def test_a_member_frozen_by_a_forgotten_flush_is_flushed_again() -> None:
    hub = Hub()
    a, b = hub.members(2)
    hub.start()
    for peer in (a, b):
        peer.hello()
        peer.native_hello()
    a.tell(Report(1, 40, 1, False, 0, 0, 0))  # for an epoch the old one asked for
    assert a.last(Flush) is not None and b.last(Flush) is not None


def test_open_steps_are_decided_by_what_the_survivors_hold() -> None:
    hub = Hub()
    a, b, c = hub.members(3)
    hub.kill(c)
    a.report(opened(4, 1, complete=True), opened(5, 1, complete=True), watermark=4)
    b.report(opened(4, 1, complete=True), opened(5, 1), watermark=4)
    install = a.got(Install)
    assert install.decisions == (StepDecision(4, 1, 0, ""), StepDecision(5, 2, 0, ""))
    assert install.committed_below == 4


def test_a_leaving_member_is_flushed_out_at_once_and_its_commits_count() -> None:
    hub = Hub()
    a, b = hub.members(2)
    b.say(Leaving("close"))
    b.report(watermark=5)
    a.report(opened(4, 1, complete=True), watermark=4)
    install = a.got(Install)
    assert install.lost == (b.peer_id,)
    assert install.decisions == (StepDecision(4, 1, 0, ""),)
    assert b.got(Evicted).text == "left the run"


def test_a_leaving_member_that_does_not_answer_delays_nobody_beyond_a_second() -> None:
    hub = Hub()
    a, b = hub.members(2)
    b.say(Leaving("close"))
    a.report()
    hub.pass_time(0.75, beating=[a])
    assert a.last(Install) is None
    hub.pass_time(0.25, beating=[a])
    assert a.got(Install).lost == (b.peer_id,)


def test_when_the_last_member_leaves_the_run_can_begin_anew() -> None:
    hub = Hub()
    (a,) = hub.members(1)
    waiting = hub.learner()
    a.say(Leaving("close"))
    assert a.got(Evicted).text == "left the run"
    waiting.say(AtEntry("step", 0))
    plan = waiting.got(ViewPlan)
    waiting.say(LinksUp(plan.epoch))
    install = waiting.got(Install)
    assert install.epoch > 1 and install.members[0].first_step == 0


def test_a_step_past_its_deadline_fails_on_all_and_nobody_is_removed() -> None:
    hub = Hub()
    a, b = hub.members(2)
    a.tell(Suspect(1, 6, SuspectCode.DEADLINE, (), "step 6: 5 s are over"))
    a.report(opened(6, 1), watermark=6)
    b.report(watermark=6)
    for peer in (a, b):
        install = peer.got(Install)
        assert install.decisions == (StepDecision(6, 3, 3, "step 6: 5 s are over"),)
        assert install.lost == ()


def test_accusations_about_a_view_that_is_over_are_ignored() -> None:
    hub = Hub()
    a, b, c = hub.members(3)
    hub.kill(c)
    for peer in (a, b):
        peer.report()
        peer.inbox.clear()
    a.tell(Suspect(1, 6, SuspectCode.DEADLINE, (), "late"))
    assert a.last(Flush) is None


def test_the_holder_of_other_bits_is_evicted() -> None:
    hub = Hub()
    a, b, c = hub.members(3)
    a.tell(Suspect(1, 6, SuspectCode.DIGEST, (b.peer_id,), "differs"))
    a.report(opened(6, 1, complete=True), watermark=6)
    b.report(opened(6, 1, complete=True, digest=b"x" * 16), watermark=6)
    c.report(opened(6, 1, complete=True), watermark=6)
    install = a.got(Install)
    assert install.lost == (b.peer_id,)
    assert [d.outcome for d in install.decisions] == [2]
    assert b.got(Evicted).text == "its results differ from the others'; connect again"


def test_a_peer_that_gives_up_its_step_is_removed_and_the_step_is_not() -> None:
    hub = Hub()
    a, b = hub.members(2)
    b.tell(Suspect(1, 6, SuspectCode.LOCAL, (), "ValueError in the program"))
    a.report(opened(6, 1), watermark=6)
    install = a.got(Install)
    assert install.lost == (b.peer_id,) and [d.outcome for d in install.decisions] == [2]


def test_an_install_that_was_not_heard_is_repeated_with_a_later_heartbeat() -> None:
    hub = Hub()
    a, b = hub.members(2)
    hub.kill(b)
    a.report()
    a.inbox.clear()
    hub.pass_time(1.25, beating=[a])
    assert a.got(Install).epoch == 2


def test_a_step_still_open_in_the_older_of_two_planned_views_commits_by_that_view() -> None:
    hub = Hub()
    a, b, c = hub.members(3)
    joiner = hub.learner()
    assert hub.join([a, b, c], joiner, step=4) == 2
    hub.kill(c)
    for peer in (a, b):
        peer.report(opened(3, 1, complete=True), watermark=3)
    joiner.report(watermark=4)
    assert a.got(Install).decisions == (StepDecision(3, 1, 0, ""),)


def test_a_step_of_the_activated_view_commits_before_the_coordinator_knows_all_entered() -> None:
    hub = Hub()
    a, b = hub.members(2)
    joiner = hub.learner()
    joiner.say(AtEntry("step", 0))
    epoch = a.got(ViewPlan).epoch
    for peer in (a, b, joiner):
        peer.say(LinksUp(epoch))
    for peer in (a, b):
        peer.say(HoldFrom(epoch, 4))
    a.epoch = epoch
    a.say(Switched(epoch, 4))
    joiner.install()
    hub.kill(b)  # it entered too, and may have committed, but its word did not arrive
    for peer in (a, joiner):
        peer.report(opened(4, epoch, complete=True), watermark=4)
    assert a.got(Install).decisions == (StepDecision(4, 1, 0, ""),)


def test_a_step_open_through_many_joins_commits_by_the_view_it_runs_in() -> None:
    hub = Hub()
    a, b, c = hub.members(3)
    everybody = [a, b, c]
    for step in range(4, 12):
        joiner = hub.learner()
        hub.join(everybody, joiner, step=step)
        everybody.append(joiner)
    hub.kill(c)  # it may have committed step 3: both others are complete
    for peer in (a, b):
        peer.report(opened(3, 1, complete=True), watermark=3)
    for step, joiner in enumerate(everybody[3:], 4):
        joiner.report(watermark=step)
    assert a.got(Install).decisions == (StepDecision(3, 1, 0, ""),)


def test_reports_that_blame_every_member_do_not_end_the_run() -> None:
    hub = Hub()
    peers = hub.members(4)
    hub.kill(peers.pop())
    for odd, peer in enumerate(peers):
        held = [
            opened(step, 1, complete=True, digest=b"x" * 16 if step == odd else DIGEST)
            for step in range(3)
        ]
        peer.report(*held)
    for peer in peers:
        install = peer.install()
        assert len(install.members) == 3
        assert [d.outcome for d in install.decisions] == [2, 2, 2]


def test_of_members_that_all_contradict_each_other_one_goes_on() -> None:
    hub = Hub()
    a, b, c, d = hub.members(4)
    hub.kill(d)
    a.report(opened(8, 1), opened(9, 1), watermark=7, committed=(7,))
    b.report(opened(7, 1), opened(9, 1), watermark=7, committed=(8,))
    c.report(opened(7, 1), opened(8, 1), watermark=7, committed=(9,))
    install = a.got(Install)
    assert install.lost == (b.peer_id, c.peer_id, d.peer_id)
    assert install.decisions == (StepDecision(8, 2, 0, ""), StepDecision(9, 2, 0, ""))
    assert b.got(Evicted).text == "its report contradicts the others'; connect again"


def test_a_flush_that_is_about_to_begin_is_in_every_record_from_its_reason_on() -> None:
    hub = Hub()
    members = hub.members(2)
    joiner = hub.learner()
    hub.join(members, joiner, step=4)
    hub.effects.clear()
    hub.kill(joiner)
    records = [e.record for e in hub.effects if isinstance(e, Persist)]
    assert records and all(r.flushing for r in records), "a crash between two would forget it"


def test_a_flush_after_a_restart_waits_for_members_that_have_not_come_back_yet() -> None:
    hub = Hub()
    a, b, c = hub.members(3)
    hub.start()
    for back in (a, b):
        back.hello()
        back.native_hello()
    a.tell(Suspect(1, 0, SuspectCode.DEADLINE, (), "step 0 ran out of time"))
    assert a.last(Flush) is None, "the third may know of more than this journal does"
    hub.pass_time(WITNESS_SHARE * LAN.reattach_window_s, beating=[a, b])
    a.report()
    b.report()
    hub.pass_time(1.0, beating=[a, b])
    assert a.last(Install) is None, "nobody can blame the third for being late"
    c.hello()
    c.native_hello()
    c.report()
    assert len(a.got(Install).members) == 3


def test_who_comes_back_to_a_restarted_coordinator_late_in_a_flush_has_time_to_answer() -> None:
    hub = Hub()
    a, b, c = hub.members(3)
    hub.start()
    for peer in (a, c):
        peer.inbox.clear()
        peer.hello()
    a.native_hello()
    hub.dead(b)
    hub.pass_time(WITNESS_SHARE * LAN.reattach_window_s, beating=[a])
    a.report()
    hub.pass_time(1.0, beating=[a])
    c.native_hello()
    hub.pass_time(0.25, beating=[a])
    assert c.last(Flush) is not None and c.last(Evicted) is None
    c.report()
    assert a.got(Install).lost == (b.peer_id,) and len(c.got(Install).members) == 2
