"""The member machine tells coordinators what moves its lanes' bytes, for people."""

from __future__ import annotations

from pccl.membership import member_events as e
from pccl.membership import messages as m
from pccl.membership.member import Member
from pccl.transport import engine_events as n
from tests.unit.membership.test_member import PEER, Story, admitted, sent


def test_what_ucx_chose_is_told_to_each_coordinator_and_a_peer_without_ucx_is_not() -> None:
    story = Story()
    assert story.tell(n.UcxChose("tcp/lo", False)) == []  # there is nobody to tell yet
    assert m.CarriedBy("tcp/lo") in sent(story.attach())
    assert story.tell(n.UcxChose("", False)) == []
    assert sent(story.tell(n.UcxChose("tcp/lo; rc_mlx5/mlx5_0:1", False))) == [
        m.CarriedBy("tcp/lo; rc_mlx5/mlx5_0:1")
    ]
    story.tell(e.Disconnected("gone"))
    story.pass_time(1.0)
    story.connect()
    again = sent(story.hear(admitted(generation=2)))
    assert m.CarriedBy("tcp/lo; rc_mlx5/mlx5_0:1") in again


def test_what_lanes_are_within_is_told_to_each_coordinator_without_being_asked() -> None:
    within = "TLS 1.3, OpenSSL 3.0.19, /lib/libcrypto.so.3"
    story = Story(
        Member(
            e.Identity(PEER, "127.0.0.1", 4000, 1, min_world=2, carried_by=within),
            now_s=0.0,
            connect_timeout_s=10.0,
            coordinator_grace_s=60.0,
            dice=lambda: 0.5,
        )
    )
    assert m.CarriedBy(within) in sent(story.attach())
    story.tell(e.Disconnected("gone"))
    story.pass_time(1.0)
    story.connect()
    assert m.CarriedBy(within) in sent(story.hear(admitted(generation=2)))
