"""How long silence may last: the profile that fits the round trips that members measure.

Where the operator leaves it open, a run is on a LAN or a WAN by the slowest member's round trip to
the coordinator.  It takes RISE_S above FAR_S to become a WAN and FALL_S below NEAR_S to be a LAN
again, so that one congested minute changes nothing twice.  Whatever the profile, no time constant
that judges silence is below 20 round trips.

Only the coordinator's own patience changes: what a peer was told at its admission, its heartbeat
above all, stays, and no lease is shorter than four of the slowest that was told.

Invariant: the profile in force satisfies the relations that `TimeProfile` checks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from pccl.base.config import LAN, WAN, TimeProfile
from pccl.membership.core import Core

FAR_S: Final = 0.050  # a LAN's round trip is below 1 ms, also through a few switches
NEAR_S: Final = 0.020
RISE_S: Final = 10.0
FALL_S: Final = 60.0
LOOK_S: Final = 1.0
RTTS_MIN: Final = 20
RTT_GRAIN_S: Final = 0.010  # floors move in doublings of this, not with every heartbeat


class Pace:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._base = core.config.profile
        self._told_s = self._base.heartbeat_s
        if core.peers and core.config.auto_profile:
            self._told_s = WAN.heartbeat_s  # by an earlier coordinator, which may have said so
        self._grain = 0
        self._since_s: float | None = None  # the other profile has fitted better since then
        self._look_s = core.started_s

    def beat(self, now_s: float) -> None:
        """Looks at the members' round trips, once in a while."""
        if now_s < self._look_s:
            return
        self._look_s = now_s + LOOK_S
        rtt_s = max((p.rtt_us for p in self._core.members()), default=0) / 1e6
        if rtt_s == 0:
            return
        changed = self._core.config.auto_profile and self._weigh(rtt_s, now_s)
        grain = _grain(rtt_s)
        if changed or grain > self._grain or grain < self._grain - 1:
            self._grain = grain
            self._put_in_force(rtt_s)

    def paused(self, duration_s: float) -> None:
        if self._since_s is not None:
            self._since_s += duration_s

    def _weigh(self, rtt_s: float, now_s: float) -> bool:
        """Says whether the run has just become one of the other kind."""
        far = self._base.name == WAN.name
        if (rtt_s >= NEAR_S) if far else (rtt_s <= FAR_S):
            self._since_s = None
            return False
        if self._since_s is None:
            self._since_s = now_s
        if now_s < self._since_s + (FALL_S if far else RISE_S):
            return False
        self._since_s = None
        self._base = LAN if far else WAN
        return True

    def _put_in_force(self, rtt_s: float) -> None:
        core = self._core
        self._told_s = max(self._told_s, core.config.profile.heartbeat_s)
        profile = fitted(self._base, heartbeat_s=self._told_s, floor_s=_floor_s(self._grain))
        if profile != core.config.profile:
            after_s = core.config.abandon_after_s
            if after_s is not None:
                after_s = max(after_s, profile.abandon_least_s)
            core.config = replace(core.config, profile=profile, abandon_after_s=after_s)
            core.log(
                "info",
                f"members are {1000 * rtt_s:.0f} ms away: profile {profile.name}, "
                f"a lease of {profile.lease_s:g} s",
            )


def fitted(base: TimeProfile, *, heartbeat_s: float, floor_s: float) -> TimeProfile:
    """Returns the profile with nothing that judges silence below the floor, or too short for
    peers that were told this heartbeat."""
    heartbeat_s = max(base.heartbeat_s, heartbeat_s)
    lease_s = max(base.lease_s, 4 * heartbeat_s, floor_s)
    window_s = max(base.reattach_window_s, lease_s)
    grace_s = max(base.coordinator_grace_s, window_s)
    return replace(
        base,
        heartbeat_s=heartbeat_s,
        lease_s=lease_s,
        flush_timeout_s=max(base.flush_timeout_s, floor_s),
        suspect_grace_s=max(base.suspect_grace_s, floor_s),
        links_timeout_s=max(base.links_timeout_s, floor_s),
        probe_timeout_s=max(base.probe_timeout_s, floor_s),
        stall_timeout_s=max(base.stall_timeout_s, floor_s),
        route_timeout_s=max(base.route_timeout_s, floor_s),
        reattach_window_s=window_s,
        coordinator_grace_s=grace_s,
        enter_timeout_s=max(base.enter_timeout_s, floor_s),
    )


def _grain(rtt_s: float) -> int:
    """Returns how often RTT_GRAIN_S must be doubled to hold a round trip."""
    grain = 0
    while RTT_GRAIN_S * (1 << grain) < rtt_s:
        grain += 1
    return grain


def _floor_s(grain: int) -> float:
    return RTTS_MIN * RTT_GRAIN_S * (1 << grain)
