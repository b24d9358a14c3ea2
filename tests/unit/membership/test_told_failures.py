"""Failures that were told to somebody: every later flush repeats them, unchanged."""

from __future__ import annotations

from pccl.membership.messages import Install, StepDecision
from pccl.transport.native_frames import Suspect, SuspectCode
from tests.unit.membership.hub import Hub, opened


def test_a_failure_that_one_member_has_not_installed_is_repeated_by_the_next_flush() -> None:
    hub = Hub()
    a, b, c = hub.members(3)
    a.tell(Suspect(1, 6, SuspectCode.DEADLINE, (), "late"))
    for peer in (a, b, c):
        peer.report(opened(6, 1), watermark=6)
    a.install()
    hub.kill(c)
    a.report(watermark=7)
    b.report(opened(6, 1, complete=True), watermark=6)
    assert b.got(Install).decisions == (StepDecision(6, 3, 3, "late"),)


def test_a_failure_that_was_told_keeps_its_words_however_often_it_is_repeated() -> None:
    hub = Hub(min_world=3)
    a, b, c = hub.members(3)
    a.tell(Suspect(1, 4, SuspectCode.DEADLINE, (), "late"))
    for peer in (a, b, c):
        peer.report(opened(4, 1), watermark=4)
    a.install()
    hub.kill(c)
    a.report(watermark=5)
    b.report(opened(4, 1), watermark=4)
    told = [b.got(Install)]
    a.install()
    for step in (5, 6):  # in a view that is paused, which is said of what is late in it
        a.tell(Suspect(a.epoch, step, SuspectCode.DEADLINE, (), "later"))
        a.report(opened(step, a.epoch), watermark=step)
        b.report(opened(4, 1), watermark=4)
        told.append(b.got(Install))
        a.install()
    assert [{d.step: d.text for d in install.decisions}[4] for install in told] == ["late"] * 3
    first, again = ({d.step: d.text for d in install.decisions}[5] for install in told[1:])
    assert first == again
    assert first.startswith("later; paused: 2 of min_world 3") and first.count("paused") == 1


def test_a_failure_stays_a_failure_until_all_have_installed_it_also_across_a_restart() -> None:
    hub = Hub()
    a, b, c, d = hub.members(4)
    a.tell(Suspect(1, 6, SuspectCode.DEADLINE, (), "late"))
    for peer in (a, b, c, d):
        peer.report(opened(6, 1), watermark=6)
    a.install()  # its watermark passes the failed step
    failed = (StepDecision(6, 3, 3, "late"),)
    hub.kill(d)
    for peer, watermark in ((a, 7), (b, 6), (c, 6)):
        peer.report(*([] if peer is a else [opened(6, 1)]), watermark=watermark)
    assert a.install().decisions == failed
    hub.start()
    for peer in (a, b, c):
        peer.inbox.clear()
        peer.hello()
        peer.native_hello()
    assert b.got(Install).decisions == failed
    hub.kill(c)
    a.report(watermark=7)
    b.report(opened(6, 1, complete=True), watermark=6)
    assert b.install().decisions == failed
    a.install()
    hub.kill(b)
    a.report(opened(7, 4), watermark=7)
    assert a.got(Install).decisions == (StepDecision(7, 2, 0, ""),)  # nobody waits for it any more
