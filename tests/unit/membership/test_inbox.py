"""Members are heard before strangers, and each connection in its own order."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pccl.membership.events import ConnDown, ConnUp, Event, PeerMessage, Synced
from pccl.membership.inbox import QUEUED_MAX, STRANGERS_PER_TURN, Inbox
from pccl.membership.messages import Installed


def test_a_member_is_heard_before_a_crowd_of_strangers() -> None:
    inbox = Inbox()
    inbox.post(ConnUp(1, "host"))
    list(inbox.strangers())
    inbox.let_in(1)
    for conn in range(2, 200):
        inbox.post(ConnUp(conn, "host"))
    beat = PeerMessage(1, Installed(1))
    inbox.post(beat)
    inbox.post(Synced(1))
    turn = [*inbox.members(), *inbox.strangers()]
    assert turn[:2] == [beat, Synced(1)]
    assert len(turn) == 2 + STRANGERS_PER_TURN
    assert not inbox.has_members and bool(inbox)


def test_a_full_queue_of_strangers_stops_no_member() -> None:
    inbox = Inbox()
    inbox.let_in(1)
    for conn in range(2, 2 + QUEUED_MAX):
        inbox.post(ConnUp(conn, "host"))
    assert inbox.is_full_for(7777) and not inbox.is_full_for(1)


def test_strangers_that_nobody_takes_out_now_stay_in_their_order() -> None:
    inbox = Inbox()
    ups = [ConnUp(conn, "host") for conn in range(1, 4)]
    for up in ups:
        inbox.post(up)
    first = next(inbox.strangers())  # and no more of that turn
    assert [first, *inbox.strangers()] == ups and not inbox


@settings(deadline=None)
@given(st.lists(st.sampled_from(["post", "let in", "turn"]), max_size=60))
def test_what_one_connection_says_is_never_reordered(acts: list[str]) -> None:
    inbox = Inbox()
    posted: list[Event] = [ConnUp(1, "host")]
    taken: list[Event] = []
    inbox.post(posted[0])
    for number, act in enumerate(acts):
        if act == "post":
            posted.append(PeerMessage(1, Installed(number)))
            inbox.post(posted[-1])
        elif act == "let in":
            inbox.let_in(1)
        else:
            taken += [*inbox.members(), *inbox.strangers()]
    posted.append(ConnDown(1))
    inbox.post(posted[-1])
    while inbox:
        taken += [*inbox.members(), *inbox.strangers()]
    assert taken == posted
