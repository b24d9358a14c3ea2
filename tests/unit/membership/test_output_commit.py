"""Output commit: nothing is said before what it rests on is durable."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl.membership.events import Close, Effect, Send, SendNative
from pccl.membership.messages import Evicted, Refused, StatusReply
from pccl.membership.outdated import still_due
from pccl.membership.output_commit import OutputCommit
from pccl.transport.native_frames import EvictedFrame, Pong, RefusalCode, RefusedFrame


def test_without_a_write_everything_is_sent_at_once() -> None:
    outbox: OutputCommit[str] = OutputCommit()
    outbox.send("a")
    outbox.send("b")
    assert outbox.release() == ["a", "b"]
    assert outbox.release() == []


def test_a_send_after_a_write_waits_for_it_and_one_before_does_not() -> None:
    outbox: OutputCommit[str] = OutputCommit()
    outbox.send("before")
    outbox.write(1)
    outbox.send("after")
    assert outbox.release() == ["before"]
    assert outbox.held == 1
    outbox.synced(1)
    assert outbox.release() == ["after"]
    assert outbox.held == 0


def test_a_later_write_that_is_durable_carries_the_earlier_ones() -> None:
    outbox: OutputCommit[str] = OutputCommit()
    outbox.write(1)
    outbox.send("a")
    outbox.write(2)
    outbox.send("b")
    outbox.write(3)
    outbox.send("c")
    outbox.synced(2)
    assert outbox.release() == ["a", "b"]
    outbox.synced(1)
    assert outbox.release() == []
    outbox.synced(3)
    assert outbox.release() == ["c"]


def test_one_write_cannot_be_issued_twice() -> None:
    outbox: OutputCommit[str] = OutputCommit()
    outbox.write(1)
    with pytest.raises(ValueError, match="already"):
        outbox.write(1)


@given(st.lists(st.sampled_from(["write", "send", "sync"]), max_size=60), st.randoms())
def test_sends_keep_their_order_and_never_pass_an_unsynced_write(
    script: list[str], dice: random.Random
) -> None:
    outbox: OutputCommit[int] = OutputCommit()
    issued, durable = 0, 0
    rests_on: dict[int, int] = {}
    released: list[int] = []
    for number, action in enumerate(script, 1):
        if action == "write":
            outbox.write(number)
            issued = number
        elif action == "send":
            outbox.send(number)
            rests_on[number] = issued
        else:
            token = dice.randint(0, issued)
            outbox.synced(token)
            durable = max(durable, token)
        for sent in outbox.release():
            assert rests_on[sent] <= durable
            released.append(sent)
        assert all(rests_on[n] > durable for n in rests_on if n not in released)
    outbox.synced(issued)
    assert released + outbox.release() == list(rests_on)


def test_what_the_disk_has_held_is_not_said_any_more_but_for_refusals_and_status() -> None:
    said: list[Effect] = [
        Send(1, Evicted(2, "")),
        SendNative(2, EvictedFrame(2, "")),
        SendNative(2, Pong(2, 1)),
    ]
    due: list[Effect] = [
        Send(1, Refused("generation", "")),
        Send(3, StatusReply(b"{}")),
        SendNative(2, RefusedFrame(int(RefusalCode.GENERATION), "")),
        Close(1),
    ]
    assert still_due([*said, *due], "the journal is an old copy") == due
    assert still_due([*said, *due], "") == [*said, *due]
