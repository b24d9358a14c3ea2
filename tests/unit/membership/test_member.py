"""The member machine: what one peer says and does, told as stories without a clock."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pccl.membership import member_events as e
from pccl.membership import messages as m
from pccl.membership.member import GOODBYE_S, HELLO_ANSWER_S, Ended, Member, Phase
from pccl.membership.view import FIRST_STEP_UNKNOWN
from pccl.transport import engine_events as n

PEER = bytes(range(16))
RUN = b"r" * 16
SECRET = b"s" * 16
MEMBERS = (m.MemberInfo(PEER, 7, SECRET, "127.0.0.1", 4000, 1, 0),)
GRACE_S = 30.0


def admitted(generation: int = 1, incarnation: int = 7) -> m.Admitted:
    return m.Admitted(RUN, 1, generation, incarnation, SECRET, 1, 0.25, 3.0, 0, 1)


def install(epoch: int, generation: int = 1) -> m.Install:
    return m.Install(generation, epoch, MEMBERS, False, 0, (), ())


@dataclass
class Story:
    """A member and the hand that turns its clock."""

    machine: Member = field(
        default_factory=lambda: Member(
            e.Identity(PEER, "127.0.0.1", 4000, 1, min_world=2),
            now_s=0.0,
            connect_timeout_s=10.0,
            coordinator_grace_s=GRACE_S,
            dice=lambda: 0.5,
        )
    )
    now_s: float = 0.0

    def tell(self, *events: e.Event) -> list[e.Effect]:
        return [effect for event in events for effect in self.machine.handle(event, self.now_s)]

    def hear(self, *messages: m.CoordinatorMessageBody) -> list[e.Effect]:
        return self.tell(*(e.Received(message) for message in messages))

    def pass_time(self, seconds: float) -> list[e.Effect]:
        """Moves the clock, stopping at every deadline on the way as a shell would."""
        until_s = self.now_s + seconds
        effects: list[e.Effect] = []
        while (due_s := self.machine.deadline_s) is not None and due_s <= until_s:
            self.now_s = max(self.now_s, due_s)
            effects += self.machine.on_deadline(self.now_s)
        self.now_s = until_s
        return effects

    def connect(self) -> list[e.Effect]:
        return self.tell(e.Connected("127.0.0.1", 48148))

    def attach(self) -> list[e.Effect]:
        self.pass_time(0.0)
        self.connect()
        return self.hear(admitted())


def sent(effects: list[e.Effect]) -> list[m.PeerMessageBody]:
    return [effect.message for effect in effects if isinstance(effect, e.Send)]


def test_it_dials_at_once_greets_as_a_newcomer_and_admits_its_engine() -> None:
    story = Story()
    assert story.pass_time(0.0) == [e.Dial()]
    (hello,) = sent(story.connect())
    assert isinstance(hello, m.Hello)
    assert (hello.incarnation, hello.generation, hello.epoch, hello.min_world) == (0, 0, 0, 2)
    assert hello.secret == b""
    assert story.hear(admitted()) == [e.AdmitEngine(admitted(), "127.0.0.1", 48148)]
    assert story.machine.phase is Phase.ATTACHED


def test_an_unreachable_coordinator_is_dialled_with_back_off_until_time_is_up() -> None:
    story = Story()
    dials = []
    while (deadline_s := story.machine.deadline_s) is not None:
        if e.Dial() in story.pass_time(deadline_s - story.now_s):
            dials.append(round(story.now_s, 2))
            story.tell(e.Disconnected("connection refused"))
    assert dials == [0.0, 0.1, 0.3, 0.7, 1.5, 3.1, 5.1, 7.1, 9.1]
    assert story.machine.ended == Ended("unreachable", "connection refused")
    assert story.now_s == 10.0


def test_a_coordinator_that_accepts_and_says_nothing_is_hung_up_and_dialled_again() -> None:
    story = Story()
    story.pass_time(0.0)
    story.connect()
    effects = story.pass_time(HELLO_ANSWER_S + 0.2)
    assert effects == [e.HangUp(), e.Dial()]


def test_a_server_of_another_kind_ends_the_attempt_at_once() -> None:
    story = Story()
    story.pass_time(0.0)
    story.connect()
    effects = story.tell(e.Disconnected("bad frame", foreign=True))
    assert story.machine.ended == Ended("foreign", "bad frame")
    assert effects == [e.FailEngine("foreign", "bad frame"), e.HangUp()]


def test_a_refusal_ends_it_with_the_coordinators_words() -> None:
    story = Story()
    story.pass_time(0.0)
    story.connect()
    story.hear(m.Refused("min_world", "this run has min_world 3, you ask for 2"))
    assert story.machine.ended is not None
    assert story.machine.ended.code == "refused"
    assert "you ask for 2" in story.machine.ended.text
    assert story.connect() == []


def test_waiting_at_an_entry_is_repeated_every_heartbeat_until_it_is_left() -> None:
    story = Story()
    story.attach()
    here = m.AtEntry("step", 0)
    assert sent(story.tell(n.EntryReached("step", 0))) == [here]
    assert sent(story.pass_time(0.8)) == [here, here, here]
    assert story.tell(n.EntryLeft()) == []
    assert story.pass_time(5.0) == []


def test_a_first_view_is_prepared_installed_and_confirmed() -> None:
    story = Story()
    story.attach()
    plan = m.ViewPlan(1, 1, MEMBERS)
    assert story.hear(plan) == [e.PrepareView(plan)]
    assert story.hear(plan) == []  # said again while the links open
    assert sent(story.tell(n.LinksOpened(1))) == [m.LinksUp(1)]
    assert sent(story.hear(plan)) == [m.LinksUp(1)]  # said again: answered from memory
    assert story.hear(install(1)) == [e.InstallView(install(1))]
    assert sent(story.tell(n.ViewInstalled(1))) == [m.Installed(1)]
    assert story.hear(install(1)) == [e.Send(m.Installed(1))]
    assert story.hear(plan) == []  # of a view that is in force


def test_a_planned_view_is_held_activated_and_switched_to() -> None:
    story = Story()
    story.attach()
    story.hear(install(1))
    story.tell(n.ViewInstalled(1))
    story.hear(m.ViewPlan(1, 2, MEMBERS))
    story.tell(n.LinksOpened(2))
    assert story.hear(m.Hold(1, 2)) == [e.HoldEngine(1, 2)]
    assert story.tell(e.Held(1, 2, 41)) == [e.Send(m.HoldFrom(2, 41))]
    activate = m.Activate(1, 2, MEMBERS, 41, "step")
    assert story.hear(activate) == [e.ActivateView(activate)]
    assert story.tell(n.ViewSwitched(2, 43)) == [e.Send(m.Switched(2, 43))]
    assert story.hear(activate) == [e.Send(m.Switched(2, 43))]  # a repeat is answered, not done


def test_what_an_older_coordinator_or_an_abandoned_plan_says_has_no_effect() -> None:
    story = Story()
    story.pass_time(0.0)
    story.connect()
    story.hear(admitted(generation=5))
    story.hear(install(4, generation=5))
    story.tell(n.ViewInstalled(4))
    late: list[m.CoordinatorMessageBody] = [
        m.ViewPlan(4, 9, MEMBERS),
        m.Hold(4, 9),
        m.Activate(4, 9, MEMBERS, 1, "step"),
        m.CancelPlan(4, 9),
        install(9, generation=4),
        m.Evicted(4, "old news"),
        m.ViewPlan(5, 4, MEMBERS),
        m.Hold(5, 3),
        m.Activate(5, 3, MEMBERS, 1, "step"),
        install(3, generation=5),
    ]
    assert story.hear(*late) == []
    assert story.tell(e.Held(4, 9, 1)) == []
    assert story.tell(n.LinksOpened(9)) == []


def test_a_lost_connection_is_re_attached_and_everything_unconfirmed_said_again() -> None:
    story = Story()
    story.attach()
    story.hear(install(1))
    story.tell(n.ViewInstalled(1))
    story.tell(n.EntryReached("step", 3), e.WantWorld(4))
    story.hear(m.ViewPlan(1, 2, MEMBERS))
    story.tell(n.LinksOpened(2), e.Disconnected("reset"))
    assert story.tell(n.ViewSwitched(2, 9)) == []  # nobody to tell now
    assert story.pass_time(0.15) == [e.Dial()]
    (hello,) = sent(story.connect())
    assert isinstance(hello, m.Hello)
    assert (hello.incarnation, hello.epoch, hello.run_id) == (7, 2, RUN)
    assert hello.secret == SECRET
    effects = story.hear(admitted(generation=2))
    assert effects[0] == e.AdmitEngine(admitted(generation=2), "127.0.0.1", 48148)
    assert sent(effects) == [
        m.LinksUp(2),
        m.Switched(2, 9),
        m.WaitFor(4),
        m.AtEntry("step", 3),
    ]


def test_a_coordinator_takes_no_epoch_back_that_the_engine_has_not_confirmed_yet() -> None:
    story = Story()
    story.attach()
    assert story.hear(install(5)) == [e.InstallView(install(5))]
    assert story.hear(install(4)) == []
    # Another coordinator knows better: what the old one said last may never come into force.
    assert story.hear(install(4, 2)) == [e.InstallView(install(4, 2))]


def test_a_restarted_coordinators_install_of_the_same_epoch_reaches_the_engine() -> None:
    story = Story()
    story.attach()
    story.hear(install(1))
    story.tell(n.ViewInstalled(1))
    again = install(1, generation=2)
    assert story.hear(again) == [e.InstallView(again)]
    assert sent(story.tell(n.ViewInstalled(1))) == [m.Installed(1)]
    assert story.hear(again) == [e.Send(m.Installed(1))]


def test_without_a_coordinator_it_gives_up_after_the_grace_period() -> None:
    story = Story()
    story.attach()
    story.tell(e.Disconnected("reset"))
    effects = []
    while story.machine.ended is None and story.now_s < 2 * GRACE_S:
        effects = story.pass_time(0.5)
        if e.Dial() in effects:
            story.tell(e.Disconnected("connection refused"))
    assert GRACE_S <= story.now_s <= GRACE_S + 0.5
    (fail, hang_up) = effects
    assert isinstance(fail, e.FailEngine) and fail.code == "coordinator_lost"
    assert hang_up == e.HangUp()


def test_the_grace_period_is_the_runs_unless_the_program_says_otherwise() -> None:
    for own_s, expected_s in ((None, 45.0), (GRACE_S, GRACE_S)):
        story = Story(
            Member(
                e.Identity(PEER, "127.0.0.1", 4000, 1),
                now_s=0.0,
                connect_timeout_s=10.0,
                coordinator_grace_s=own_s,
                dice=lambda: 0.5,
            )
        )
        story.pass_time(0.0)
        story.connect()
        story.hear(replace(admitted(), coordinator_grace_s=45.0))
        story.tell(e.Disconnected("reset"))
        while story.machine.ended is None and story.now_s < 2 * expected_s:
            if e.Dial() in story.pass_time(0.5):
                story.tell(e.Disconnected("connection refused"))
        assert expected_s <= story.now_s <= expected_s + 0.5


def test_while_steps_still_commit_a_lost_coordinator_is_not_missed() -> None:
    story = Story()
    story.attach()
    story.tell(e.Disconnected("reset"), e.Progress(100))
    for _ in range(int(GRACE_S) + 5):
        if e.Dial() in story.pass_time(1.0):
            story.tell(e.Disconnected("connection refused"))
    assert story.machine.ended is None
    for _ in range(int(GRACE_S)):
        if e.Dial() in story.pass_time(1.0):
            story.tell(e.Disconnected("connection refused"))
    assert story.machine.ended is not None
    assert story.machine.ended.code == "coordinator_lost"


def test_eviction_ends_it_whoever_brings_the_news() -> None:
    news: list[e.Event] = [
        e.Received(m.Evicted(1, "silent for 3 s")),
        n.NativeEvicted("silent for 3 s"),
        n.NativeRefused(4, "silent for 3 s"),
        e.Received(admitted(incarnation=8)),
    ]
    for event in news:
        story = Story()
        story.attach()
        effects = story.tell(event)
        assert story.machine.ended is not None and story.machine.ended.code == "evicted"
        assert isinstance(effects[0], e.FailEngine)
        assert story.tell(n.EntryReached("step", 0)) == []
        assert story.machine.deadline_s is None


def test_leaving_is_said_and_ends_with_the_coordinators_goodbye() -> None:
    for goodbye in (e.Disconnected("closed"), e.Received(m.Evicted(1, "left"))):
        story = Story()
        story.attach()
        assert story.tell(e.Leave("done")) == [e.Send(m.Leaving("done"))]
        story.tell(goodbye)
        assert story.machine.ended is not None and story.machine.ended.code == "closed"


def test_leaving_waits_for_no_goodbye_that_does_not_come() -> None:
    story = Story()
    story.attach()
    story.tell(n.EntryReached("step", 0), e.Leave("done"))
    assert sent(story.pass_time(GOODBYE_S - 0.1)) == []  # it waits at no entry any more
    story.pass_time(0.2)
    assert story.machine.ended is not None and story.machine.ended.code == "closed"


def test_leaving_without_a_connection_takes_no_time() -> None:
    story = Story()
    story.tell(e.Leave("done"))
    assert story.machine.ended == Ended("closed", "done")


def test_links_that_failed_are_reported_and_a_cancelled_plan_is_forgotten() -> None:
    story = Story()
    story.attach()
    story.hear(m.ViewPlan(1, 1, MEMBERS))
    assert sent(story.tell(n.LinksUnreachable(1, (PEER,)))) == [m.LinksFailed(1, (PEER,))]
    assert story.hear(m.CancelPlan(1, 1)) == [e.CancelView(1, 1)]
    assert story.tell(n.LinksOpened(1)) == []


def test_an_older_coordinator_that_answers_is_left_for_the_present_one() -> None:
    story = Story()
    story.pass_time(0.0)
    story.connect()
    story.hear(admitted(generation=3))
    story.tell(n.NativeLink(True, 3), n.NativeFollows(3))
    story.tell(e.Disconnected("reset"))
    story.pass_time(0.15)
    story.connect()
    assert story.hear(admitted(generation=2)) == [e.HangUp()]
    assert story.machine.ended is None
    assert e.Dial() in story.pass_time(0.5)


def test_asked_by_a_coordinator_without_a_journal_it_testifies_and_waits_to_be_let_go() -> None:
    story = Story()
    story.attach()
    story.hear(install(3))
    story.tell(n.ViewInstalled(3))
    story.tell(e.Disconnected("gone"))
    story.pass_time(5.0)
    story.connect()
    (testimony,) = sent(story.hear(m.Recall()))
    assert isinstance(testimony, m.Testimony)
    assert (testimony.run_id, testimony.epoch, testimony.members) == (RUN, 3, MEMBERS)
    assert (testimony.incarnation, testimony.secret) == (7, SECRET)
    assert story.pass_time(2 * HELLO_ANSWER_S) == []
    story.tell(e.Disconnected("heard enough"))
    assert e.Dial() in story.pass_time(5.0)


def test_a_newcomer_has_nothing_to_testify_and_waits_too() -> None:
    story = Story()
    story.pass_time(0.0)
    story.connect()
    assert story.hear(m.Recall()) == []
    assert story.pass_time(HELLO_ANSWER_S + 1.0) == []


def test_it_testifies_to_a_planned_view_with_the_step_at_which_it_entered() -> None:
    story = Story()
    story.attach()
    story.hear(install(3))
    story.tell(n.ViewInstalled(3))
    newcomer = m.MemberInfo(b"n" * 16, 9, b"t" * 16, "127.0.0.1", 4001, 1, FIRST_STEP_UNKNOWN)
    story.hear(m.Activate(1, 4, (*MEMBERS, newcomer), 5, "train"))
    story.tell(n.ViewSwitched(4, 6))
    (testimony,) = sent(story.hear(m.Recall()))
    assert isinstance(testimony, m.Testimony)
    assert [x.first_step for x in testimony.members] == [0, 6]
    assert testimony.older == (m.ViewInfo(3, MEMBERS),)  # a step below 6 may still be open there
    story.hear(install(5))
    story.tell(n.ViewInstalled(5))
    (testimony,) = sent(story.hear(m.Recall()))
    assert isinstance(testimony, m.Testimony)
    assert (testimony.epoch, testimony.older) == (5, ())


def test_a_refusal_that_only_the_coordinator_can_mend_is_not_the_end() -> None:
    for code in m.REFUSALS_FOR_NOW:
        story = Story()
        story.attach()
        story.tell(e.Disconnected("gone"))
        story.pass_time(1.0)
        story.connect()
        assert story.hear(m.Refused(code, "the journal is lost")) == [e.HangUp()]
        assert e.Dial() in story.pass_time(5.0)
        story.pass_time(GRACE_S)
        assert story.machine.ended is not None
        assert "the journal is lost" in story.machine.ended.text
