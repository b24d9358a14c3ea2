"""A run is patient with members that are far away, and does not change its mind all the time."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pccl.base.config import LAN, WAN, TimeProfile
from pccl.membership.messages import Admitted
from pccl.membership.pace import fitted
from tests.unit.membership.hub import FakePeer, Hub


def at_distance(seconds: float, *peers: FakePeer) -> None:
    for peer in peers:
        peer.status["rtt_us"] = round(seconds * 1e6)


def world(**config: Any) -> tuple[Hub, list[FakePeer]]:
    hub = Hub(auto_profile=True, **config)
    return hub, hub.members(3)


def test_a_member_that_is_far_away_for_a_while_makes_the_run_a_wan() -> None:
    hub, peers = world()
    at_distance(0.0005, *peers)
    at_distance(0.080, peers[1])
    hub.pass_time(9.0, beating=peers)
    assert hub.status()["profile"] == "lan"
    hub.pass_time(3.0, beating=peers)
    assert hub.status()["profile"] == "wan"
    assert hub.learner().got(Admitted).lease_s == WAN.lease_s


def test_a_burst_of_slow_round_trips_changes_nothing() -> None:
    hub, peers = world()
    for _ in range(10):
        at_distance(0.2, *peers)
        hub.pass_time(8.0, beating=peers)
        at_distance(0.001, *peers)
        hub.pass_time(2.0, beating=peers)
    assert hub.status()["profile"] == "lan"


def test_a_wan_whose_members_are_near_becomes_a_lan_with_a_lease_for_slow_heartbeats() -> None:
    hub, peers = world(profile=WAN)
    at_distance(0.001, *peers)
    hub.pass_time(55.0, beating=peers)
    assert hub.status()["profile"] == "wan"
    hub.pass_time(10.0, beating=peers)
    assert hub.status()["profile"] == "lan"
    admitted = hub.learner().got(Admitted)
    assert (admitted.heartbeat_s, admitted.lease_s) == (1.0, 4.0)  # members still beat so slowly


def test_between_near_and_far_the_run_stays_what_it_is() -> None:
    for profile in (LAN, WAN):
        hub, peers = world(profile=profile)
        at_distance(0.035, *peers)
        hub.pass_time(120.0, beating=peers)
        assert hub.status()["profile"] == profile.name


def test_without_leave_to_choose_the_profile_stays_but_not_below_twenty_round_trips() -> None:
    hub = Hub()
    peers = hub.members(3)
    at_distance(0.3, *peers)
    hub.pass_time(30.0, beating=peers)
    assert hub.status()["profile"] == "lan"
    assert hub.learner().got(Admitted).lease_s >= 20 * 0.3


@settings(deadline=None)
@given(st.sampled_from([LAN, WAN]), st.floats(0.25, 1.0), st.floats(0, 60))
def test_a_fitted_profile_is_valid_and_never_less_patient(
    base: TimeProfile, heartbeat_s: float, floor_s: float
) -> None:
    profile = fitted(base, heartbeat_s=heartbeat_s, floor_s=floor_s)
    assert profile.lease_s >= max(base.lease_s, 4 * heartbeat_s, floor_s)
    for name in ("flush_timeout_s", "suspect_grace_s", "route_timeout_s", "stall_timeout_s"):
        assert getattr(profile, name) >= max(getattr(base, name), floor_s)
