"""Control messages: what is sent arrives, and what no peer may say is refused."""

from __future__ import annotations

import dataclasses

import msgpack
import pytest

from pccl.base.errors import RemoteError
from pccl.membership import messages
from pccl.membership.messages import (
    MEMBERS_MAX,
    STRAGGLER_WAIT,
    CoordinatorMessageBody,
    Drain,
    Excluded,
    Hello,
    HoldFrom,
    Install,
    Leaving,
    LinksFailed,
    MemberInfo,
    PeerMessageBody,
    Recall,
    StepDecision,
    Underflow,
    coordinator_codec,
    peer_codec,
)
from pccl.transport.codec import BODY_BYTES_MAX

HELLO = Hello(1, b"", b"p" * 16, 0, 0, 0, "", 4000, 1, 0, "host", 7)


def member(number: int) -> MemberInfo:
    peer_id = number.to_bytes(16, "little")
    return MemberInfo(peer_id, 2**63, b"s" * 16, "fe80::1234:5678:9abc:def0", 65535, 2**64 - 1, 9)


def test_the_largest_install_fits_into_one_message() -> None:
    members = tuple(member(i) for i in range(MEMBERS_MAX))
    decisions = tuple(StepDecision(i, 3, 3, "the step ran out of time") for i in range(64))
    lost = tuple(m.peer_id for m in members)
    install = Install(2**63, 2**32 - 1, members, True, 2**63, decisions, lost)
    body = coordinator_codec.encode(install)
    assert len(body) <= BODY_BYTES_MAX
    assert coordinator_codec.decode(body) == install


@pytest.mark.parametrize(
    "changes",
    [
        {"run_id": b"short"},
        {"peer_id": b"p" * 17},
        {"secret": b"s" * 15},
        {"data_port": 65536},
        {"epoch": 2**32},
        {"min_world": 1025},
        {"hostname": "h" * 256},
        {"group": MEMBERS_MAX},
        {"on_underflow": 4},
    ],
)
def test_a_hello_with_a_field_out_of_range_is_the_senders_fault(changes: dict[str, object]) -> None:
    fields = {**{f.name: getattr(HELLO, f.name) for f in dataclasses.fields(HELLO)}, **changes}
    with pytest.raises(RemoteError):
        peer_codec.decode(msgpack.packb([1, *fields.values()]))
    with pytest.raises(ValueError):
        dataclasses.replace(HELLO, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "said",
    [
        dataclasses.replace(HELLO, group=3, on_underflow=int(Underflow.RAISE), straggler_s=2.5),
        dataclasses.replace(HELLO, straggler_s=STRAGGLER_WAIT),
        Leaving("enough", 7),
        Drain(30.0, "the machine goes away"),
        messages.CarriedBy("rc_mlx5/mlx5_0:1; tcp/eth0"),
        messages.Testimony(
            b"r" * 16, 1, 2, 3, 4, b"s" * 16, b"p" * 16, 2, (), "fe80::1", 4000, "host", 7
        ),
    ],
)
def test_what_a_peer_says_arrives(said: PeerMessageBody) -> None:
    assert peer_codec.decode(peer_codec.encode(said)) == said


@pytest.mark.parametrize(
    "said",
    [
        Install(1, 2, (), True, 0, (), (), raises=True),
        Recall(),
        Excluded(1, 2, "nobody waits for ever"),
    ],
)
def test_what_a_coordinator_says_arrives(said: CoordinatorMessageBody) -> None:
    assert coordinator_codec.decode(coordinator_codec.encode(said)) == said


def test_a_drain_has_a_bounded_deadline() -> None:
    for deadline_s in (-1.0, 1e6):
        with pytest.raises(ValueError, match="deadline_s"):
            Drain(deadline_s, "")


def test_a_peer_cannot_speak_as_the_coordinator() -> None:
    body = coordinator_codec.encode(Install(1, 1, (), False, 0, (), ()))
    with pytest.raises(RemoteError):
        peer_codec.decode(body)
    assert peer_codec.decode(peer_codec.encode(HoldFrom(3, 9))) == HoldFrom(3, 9)


def test_a_view_that_lists_a_peer_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="listed twice"):
        Install(1, 1, (member(1), member(1)), False, 0, (), ())
    with pytest.raises(ValueError, match="15 bytes"):
        LinksFailed(1, (b"x" * 15,))
