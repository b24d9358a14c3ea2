"""An adoption hears strangers too: what they testify changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pccl.membership.adoption import TESTIMONIES_MAX, Adoption
from pccl.membership.events import ConnUp, Log, PeerMessage
from pccl.membership.messages import ViewInfo
from pccl.transport.native_frames import Welcome
from tests.unit.membership.test_adoption import RUN, TWO, Gathering, go_on_with, info, said_by

STRANGER = said_by(9, epoch=0, members=())


@pytest.mark.parametrize(
    "lie",
    [
        {"epoch": 1 << 31},
        {"epoch": (1 << 32) - 1},
        {"generation": 1 << 61},
        {"generation": (1 << 64) - 1},
        {"lineage": (1 << 64) - 1},
        {"incarnation": 1 << 63},
        {"incarnation": 1 << 61},
        {"min_world": 1024},
        {"run_id": b"o" * 16},
        {"incarnation": 2, "peer_id": info(2).peer_id, "epoch": 99},
        {"older": (ViewInfo(99, (info(9),)),)},
    ],
    ids=str,
)
def test_a_stranger_tells_an_adopted_run_nothing(lie: dict[str, object]) -> None:
    g, alone = Gathering(), Gathering()
    for each in (g, alone):
        each.dial(said_by(1, epoch=3, members=TWO))
    g.dial(replace(STRANGER, **lie))  # type: ignore[arg-type]
    for each in (g, alone):
        each.dial(said_by(2, epoch=3, members=TWO))
    g.pass_time(1.0)
    assert g.machine.finished and g.machine.missing() == ()
    got, right = g.machine.record(), alone.machine.record()
    newcomers = tuple(p for p in got.peers if p.peer_id == STRANGER.peer_id)
    assert replace(got, peers=tuple(p for p in got.peers if p not in newcomers)) == right
    assert not any(p.was_native for p in newcomers) and all(p.was_native for p in right.peers)
    assert go_on_with(got).status()["epoch"] == 3


def test_a_newcomer_that_waited_may_come_back_to_an_adopted_run() -> None:
    g = Gathering()
    g.dial(said_by(1, epoch=3, members=(info(1),)))
    g.dial(said_by(2, epoch=0, members=()))
    hub = go_on_with(g.machine.record())
    newcomer = hub.peer()
    newcomer.peer_id, newcomer.incarnation = info(2).peer_id, 2
    newcomer.secret = info(2).secret
    hub.pass_time(5.0)
    newcomer.hello(run_id=RUN)
    newcomer.native_hello()
    assert newcomer.last(Welcome) is not None


@pytest.mark.parametrize(
    "beyond",
    [
        {"generation": (1 << 64) - 1},
        {"lineage": (1 << 64) - 1},
        {"epoch": (1 << 32) - 1},
    ],
    ids=str,
)
def test_a_number_with_no_room_above_it_is_not_heard_and_said_to_be_so(
    beyond: dict[str, object],
) -> None:
    g = Gathering()
    g.dial(said_by(1, epoch=3, members=TWO))
    g.machine.handle(ConnUp(9, "10.0.0.9"), 0.0)
    said = replace(said_by(2, epoch=3, members=TWO), **beyond)  # type: ignore[arg-type]
    (line,) = g.machine.handle(PeerMessage(9, said), 0.0)
    assert isinstance(line, Log) and line.level == "warning" and "no room" in line.text
    assert [x.incarnation for x in g.machine.missing()] == [2]


def test_strangers_leave_room_for_members_and_are_not_the_testimony_that_was_expected() -> None:
    g = Gathering(Adoption(wait_s=10.0, expect=2, now_s=0.0))
    for number in range(TESTIMONIES_MAX):
        g.machine.handle(PeerMessage(1, replace(STRANGER, incarnation=100 + number)), 0.0)
    for number in (1, 2):
        assert not g.machine.finished
        g.dial(said_by(number, epoch=3, members=TWO))
    assert g.machine.finished and g.machine.missing() == ()
