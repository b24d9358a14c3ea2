"""A journal is lost: what living peers testify, and the record that is made of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from pccl.membership import messages
from pccl.membership.adoption import Adoption, AdoptionError
from pccl.membership.events import Close, ConnDown, ConnUp, NativeFrame, PeerMessage, Send
from pccl.membership.messages import (
    PROTOCOL_VERSION,
    Hello,
    Install,
    Installed,
    MemberInfo,
    Recall,
    StepDecision,
    StepOutcome,
    ViewInfo,
)
from pccl.membership.record import Record
from pccl.membership.store import MemoryDisk, MemoryStore
from pccl.membership.view import FIRST_STEP_UNKNOWN
from pccl.transport.native_frames import (
    FailedStep,
    Flush,
    NativeHello,
    Report,
    Suspect,
    SuspectCode,
)
from tests.unit.membership.hub import FakePeer, Hub, opened

RUN = b"r" * 16


def info(number: int, first_step: int = 0) -> MemberInfo:
    ident, secret = bytes([number]) * 16, bytes([100 + number]) * 16
    return MemberInfo(ident, number, secret, "10.0.0.9", 5000 + number, 7, first_step)


def said_by(number: int, *, epoch: int, members: tuple[MemberInfo, ...]) -> messages.Testimony:
    me = info(number)
    return messages.Testimony(
        run_id=RUN,
        lineage=2,
        generation=3,
        epoch=epoch,
        incarnation=number,
        secret=me.secret,
        peer_id=me.peer_id,
        min_world=2,
        members=members,
        data_host="",
        data_port=me.port,
        hostname="host",
        pid=1,
        host_key=7,
    )


@dataclass
class Gathering:
    """An adoption and the peers that dial it."""

    machine: Adoption = field(default_factory=lambda: Adoption(wait_s=10.0, expect=0, now_s=0.0))
    now_s: float = 0.0
    conns: int = 0

    def dial(self, said: messages.Testimony) -> None:
        """A peer comes back, is asked, and testifies."""
        self.conns += 1
        self.machine.handle(ConnUp(self.conns, "10.0.0.9"), self.now_s)
        hello = Hello(PROTOCOL_VERSION, RUN, said.peer_id, 1, 0, 0, "", said.data_port, 7, 0, "", 1)
        asked = self.machine.handle(PeerMessage(self.conns, hello), self.now_s)
        assert asked == [Send(self.conns, Recall())]
        self.machine.handle(PeerMessage(self.conns, said), self.now_s)

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.machine.on_deadline(self.now_s)


TWO = (info(1), info(2))
THREE = (*TWO, info(3))


def test_it_ends_a_moment_after_all_members_of_the_newest_view_have_testified() -> None:
    g = Gathering()
    g.dial(said_by(1, epoch=4, members=TWO))
    g.pass_time(5.0)
    assert not g.machine.finished
    g.dial(said_by(2, epoch=4, members=TWO))
    assert not g.machine.finished  # a learner may be on its way
    g.pass_time(1.0)
    assert g.machine.finished and g.machine.missing() == ()


def test_it_ends_with_the_time_also_when_somebody_is_missing() -> None:
    g = Gathering()
    g.dial(said_by(1, epoch=4, members=TWO))
    g.pass_time(10.0)
    assert g.machine.finished
    assert [x.incarnation for x in g.machine.missing()] == [2]
    assert [p.incarnation for p in g.machine.record().peers] == [1, 2]  # it may come yet


def test_it_ends_at_once_when_as_many_testified_as_were_expected() -> None:
    g = Gathering(Adoption(wait_s=10.0, expect=2, now_s=0.0))
    g.dial(said_by(1, epoch=4, members=THREE))
    g.dial(said_by(2, epoch=4, members=THREE))
    assert g.machine.finished


def test_the_newest_view_is_the_run_s_and_everything_begins_above_what_was_seen() -> None:
    g = Gathering()
    g.dial(said_by(1, epoch=4, members=THREE))
    g.dial(said_by(2, epoch=6, members=TWO))
    g.dial(replace(said_by(3, epoch=4, members=THREE), generation=9))
    record = g.machine.record()
    assert record.view is not None
    assert (record.view.epoch, record.view.incarnations()) == (6, (1, 2))
    assert [view.epoch for view in record.history] == [4]
    assert (record.run_id, record.lineage, record.min_world) == (RUN, 2, 2)
    assert record.generation > 9 and record.epochs_reserved > 6 and record.incarnations > 3
    assert record.flushing


def test_older_views_in_which_steps_may_be_open_are_remembered() -> None:
    g = Gathering()
    planned = (*TWO, info(3, first_step=8))
    said = said_by(1, epoch=5, members=planned)
    g.dial(replace(said, older=(ViewInfo(4, TWO),)))
    g.dial(said_by(3, epoch=5, members=planned))
    record = g.machine.record()
    assert [view.epoch for view in record.history] == [4]
    assert record.view is not None and record.view.members[2].first_step == 8


def test_a_joiner_s_unknown_first_step_is_learnt_from_who_knows_it() -> None:
    g = Gathering()
    g.dial(said_by(1, epoch=5, members=(*TWO, info(3, FIRST_STEP_UNKNOWN))))
    g.dial(said_by(2, epoch=5, members=(*TWO, info(3, 8))))
    record = g.machine.record()
    assert record.view is not None and record.view.members[2].first_step == 8


def test_who_does_not_show_the_secret_that_the_view_knows_is_not_believed() -> None:
    g = Gathering()
    g.dial(said_by(1, epoch=4, members=TWO))
    g.dial(replace(said_by(2, epoch=3, members=THREE), secret=b"w" * 16))
    record = g.machine.record()
    assert record.history == () and record.peers[1].secret == info(2).secret


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ((), "no peer testified"),
        ((said_by(1, epoch=0, members=()),), "nothing to go on with"),
        (
            (
                said_by(1, epoch=4, members=TWO),
                replace(said_by(2, epoch=4, members=TWO), run_id=b"o" * 16),
            ),
            "peers of 2 runs",
        ),
    ],
)
def test_without_one_run_and_a_view_there_is_no_record(
    said: tuple[messages.Testimony, ...], words: str
) -> None:
    g = Gathering()
    for one in said:
        g.dial(one)
    with pytest.raises(AdoptionError, match=words):
        g.machine.record()


def test_native_connections_are_let_go_without_a_word_so_that_they_come_again() -> None:
    machine = Adoption(wait_s=10.0, expect=0, now_s=0.0)
    machine.handle(ConnUp(1, "10.0.0.9"), 0.0)
    hello = NativeHello(0, RUN, b"a" * 16, 1, b"s" * 16)
    assert machine.handle(NativeFrame(1, hello), 0.0) == [Close(1)]
    assert machine.handle(ConnDown(1), 0.0) == []


def go_on_with(record: Record) -> Hub:
    """A coordinator started on an adopted journal."""
    disk = MemoryDisk()
    MemoryStore(disk).adopt(record)
    return Hub(disk)


def adopted(before: Hub, *members: tuple[FakePeer, int]) -> Hub:
    """Members, each with the epoch in force there, testify and come to the coordinator that
    goes on."""
    g = Gathering()
    infos = tuple(info_of(peer) for peer, _ in members)
    for peer, epoch in members:
        said = said_by(peer.incarnation, epoch=epoch, members=infos)
        g.dial(
            replace(said, secret=peer.secret, peer_id=peer.peer_id, run_id=before.machine.run_id)
        )
    hub = go_on_with(g.machine.record())
    for peer, _ in members:
        peer.hub = hub
        peer.hello()
        peer.native_hello()
    return hub


def test_a_coordinator_goes_on_with_an_adopted_run_and_loses_no_committed_step() -> None:
    before = Hub()
    a, b = before.members(2)
    hub = adopted(before, (a, 1), (b, 1))
    assert a.last(Flush) is not None
    a.report(opened(9, 1, complete=True), watermark=9)
    b.report(watermark=10)  # it was told that step 9 committed
    install = a.got(Install)
    assert install.decisions == (StepDecision(9, 1, 0, ""),) and install.lost == ()
    assert install.epoch > 1 << 16 and install.generation > 1024
    a.say(Installed(install.epoch))
    newcomer = hub.peer()
    newcomer.peer_id = b"n" * 16
    newcomer.hello()
    assert newcomer.incarnation > 1 << 20


def test_a_step_that_one_member_was_told_to_fail_fails_for_all_after_an_adoption() -> None:
    before = Hub()
    a, b = before.members(2)
    a.tell(Suspect(1, 4, SuspectCode.DEADLINE, (), "late"))
    a.report(opened(4, 1), watermark=4)
    b.report(opened(4, 1, complete=True), watermark=4)
    told = a.install()  # b never hears it, and the journal is lost
    assert [(d.step, d.outcome) for d in told.decisions] == [(4, StepOutcome.FAIL)]
    adopted(before, (a, told.epoch), (b, 1))
    flush = a.got(Flush)
    failed = (FailedStep(4, SuspectCode.DEADLINE),)
    a.tell(Report(flush.generation, flush.target, told.epoch, False, 0, 5, 5, failed=failed))
    b.report(opened(4, 1, complete=True), watermark=4)
    install = b.got(Install)
    assert [(d.step, d.outcome) for d in install.decisions] == [(4, StepOutcome.FAIL)]
    assert install.lost == ()


def info_of(peer: FakePeer) -> MemberInfo:
    port = 5000 + peer.peer_id[0]
    return MemberInfo(peer.peer_id, peer.incarnation, peer.secret, "10.0.0.9", port, 7, 0)
