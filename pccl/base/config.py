"""Numbers that may be turned, each with its reason, and the relations they must keep.

Durations are seconds, sizes bytes.  A profile belongs to a run: the coordinator chooses it and
tells every peer, so that nobody judges silence by a clock the others do not share.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Final


def _check_positive(config: object) -> None:
    assert dataclasses.is_dataclass(config)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, int | float) and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{field.name} must be a positive number, not {value}")


ABANDON_MARGIN_S: Final = 10.0  # connections that were cut are noticed within this
REDIAL_MAX_S: Final = 2.0  # a restarted coordinator is found within this


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeProfile:
    """The time constants of one run."""

    name: str
    heartbeat_s: float
    lease_s: float  # silence for this long ends a member's membership
    flush_timeout_s: float  # a member that has not reported by then is left out
    suspect_grace_s: float  # a lost connection may come back for this long
    links_timeout_s: float = 5.0  # a planned view's links must be up by then
    initial_settle_s: float = 1.0  # the first view waits this long for late starters
    reattach_window_s: float = 15.0  # after a coordinator's restart, members may come back
    probe_timeout_s: float = 1.0  # a dial that proves death is refused at once; silence proves none
    coordinator_grace_s: float = 60.0  # then a peer gives up on a lost coordinator
    stall_timeout_s: float = 5.0  # a step in which nothing moves for this long has a culprit
    route_timeout_s: float = 3.0  # a relay must have mended a link by then
    enter_timeout_s: float = 10.0  # so long members have at least to come to a joiner's entry

    @property
    def abandon_least_s(self) -> float:
        """Members that nobody has heard for so long have given up by themselves, if they live and
        decide no step."""
        return self.coordinator_grace_s + self.lease_s + ABANDON_MARGIN_S

    @property
    def decision_s(self) -> float:
        """How long the members' decision on a step may take: a flush, which may have to wait for a
        coordinator that is being restarted and for members that dial it again."""
        return REDIAL_MAX_S + self.reattach_window_s + self.flush_timeout_s

    def __post_init__(self) -> None:
        _check_positive(self)
        # One lost packet and one late scheduler turn must not look like a death.
        if self.heartbeat_s * 4 > self.lease_s:
            raise ValueError("lease_s must be at least four heartbeats")
        if self.suspect_grace_s > self.lease_s:
            raise ValueError("suspect_grace_s must not exceed lease_s")
        if self.flush_timeout_s > self.lease_s:
            raise ValueError("flush_timeout_s must not exceed lease_s")
        if self.reattach_window_s < self.lease_s:
            raise ValueError("reattach_window_s must be at least lease_s")
        if self.coordinator_grace_s < self.reattach_window_s:
            raise ValueError("coordinator_grace_s must be at least reattach_window_s")


LAN: Final = TimeProfile(
    name="lan",
    heartbeat_s=0.25,
    lease_s=3.0,
    flush_timeout_s=2.0,
    suspect_grace_s=2.0,
    # A peer dials again every 2 s at the slowest, so members are back by then; a member that froze
    # while the coordinator was away holds the others up for as long.
    reattach_window_s=6.0,
)
WAN: Final = TimeProfile(
    name="wan",
    heartbeat_s=1.0,
    lease_s=10.0,
    flush_timeout_s=6.0,
    suspect_grace_s=5.0,
    links_timeout_s=15.0,
    initial_settle_s=3.0,
    reattach_window_s=30.0,
    probe_timeout_s=3.0,
    stall_timeout_s=15.0,
    route_timeout_s=8.0,
    enter_timeout_s=30.0,
)
PROFILES: Final = {profile.name: profile for profile in (LAN, WAN)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlLimits:
    """What a control listener grants to strangers and to peers."""

    first_frame_bytes_max: int = 4096  # a hello of either kind is below 1 kB
    frame_bytes_max: int = 1 << 20  # a view of 1024 members is about 100 kB
    first_frame_timeout_s: float = 5.0
    half_open_max: int = 64  # connections that have not yet said who they are
    handshake_burst_max: int = 32  # TLS: sixteen peers that begin together
    handshake_rate_per_s: float = 200.0  # a fifth of a core at 1 ms each, whoever asks
    connections_max: int = 4096  # 1024 peers with two each, and as many on their way in or out
    write_queue_bytes_max: int = 4 << 20  # ten large views; who does not read them is gone
    message_burst_max: int = 1000
    message_rate_per_s: float = 200.0  # a member sends a few per view change
    # Of one peer over all its connections.  It has two, and while it dials again every 0.1 to 2 s
    # those of before may not have ended.
    identity_connections_max: int = 32
    identity_opening_burst_max: int = 100
    identity_opening_rate_per_s: float = 4.0
    # Questions for the status by one ticket from one address, at once.  All ranks of a torch group
    # hold one ticket, and ask as often as an operation takes long: what paces them are handshakes.
    asking_connections_max: int = 128
    native_burst_max: int = 10_000
    native_rate_per_s: float = 5_000.0  # above it the reader pauses; heartbeats are never dropped

    def __post_init__(self) -> None:
        _check_positive(self)
        if self.first_frame_bytes_max > self.frame_bytes_max:
            raise ValueError("first_frame_bytes_max must not exceed frame_bytes_max")
        if self.frame_bytes_max > self.write_queue_bytes_max:
            raise ValueError("write_queue_bytes_max must hold one frame at least")
