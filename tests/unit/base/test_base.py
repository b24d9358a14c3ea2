"""The small words all rooms share: ids, configuration, clocks, loggers."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys

import pytest

from pccl.base.clock import Deadline, ManualClock
from pccl.base.config import LAN, PROFILES, WAN, ControlLimits, TimeProfile
from pccl.base.ids import hex_id, peer_id, short_id
from pccl.base.log import LogWhenChanged, get_logger


def test_an_id_prints_as_hex_and_in_short() -> None:
    value = peer_id(bytes(range(16)))
    assert hex_id(value) == "000102030405060708090a0b0c0d0e0f"
    assert short_id(value) == "00010203"
    with pytest.raises(ValueError, match="16 bytes, not 3"):
        peer_id(b"abc")


def test_the_profiles_have_the_documented_heartbeats_and_leases() -> None:
    assert (LAN.heartbeat_s, LAN.lease_s) == (0.25, 3.0)
    assert (WAN.heartbeat_s, WAN.lease_s) == (1.0, 10.0)
    assert PROFILES == {"lan": LAN, "wan": WAN}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"heartbeat_s": 0.0}, "heartbeat_s must be a positive number"),
        ({"lease_s": float("nan")}, "lease_s must be a positive number"),
        ({"heartbeat_s": 1.0}, "four heartbeats"),
        ({"suspect_grace_s": 3.5}, "suspect_grace_s must not exceed"),
        ({"flush_timeout_s": 3.5}, "flush_timeout_s must not exceed"),
        ({"reattach_window_s": 2.0}, "reattach_window_s must be at least"),
        ({"coordinator_grace_s": 5.0}, "coordinator_grace_s must be at least"),
    ],
)
def test_durations_that_do_not_fit_together_are_refused(
    change: dict[str, float], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        dataclasses.replace(LAN, **change)  # type: ignore[arg-type]


def test_a_configuration_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        LAN.lease_s = 1.0  # type: ignore[misc]
    assert isinstance(LAN, TimeProfile)


@pytest.mark.parametrize(
    "change", [{"frame_bytes_max": 8}, {"write_queue_bytes_max": 8}, {"half_open_max": 0}]
)
def test_limits_that_contradict_each_other_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        dataclasses.replace(ControlLimits(), **change)


def test_a_deadline_counts_down_and_stops_at_zero() -> None:
    clock = ManualClock(100.0)
    deadline = Deadline(2.0, clock)
    clock.advance(1.5)
    assert (deadline.remaining_s(), deadline.passed()) == (0.5, False)
    clock.advance(1.0)
    assert (deadline.remaining_s(), deadline.passed()) == (0.0, True)
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1.0)


def test_the_library_is_silent_until_logging_is_configured() -> None:
    handlers = logging.getLogger("pccl").handlers
    assert any(isinstance(handler, logging.NullHandler) for handler in handlers)
    assert get_logger("transport").name == "pccl.transport"


def test_a_line_is_logged_again_only_when_it_changed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pccl")
    log = LogWhenChanged(get_logger("test"))
    said = [log.log("dial", logging.INFO, text) for text in ("refused", "refused", "no answer")]
    log.forget("dial")
    said.append(log.log("dial", logging.INFO, "no answer"))
    assert said == [True, False, True, True]
    assert caplog.messages == ["refused", "no answer", "no answer"]


def test_a_log_of_endless_keys_forgets_the_oldest() -> None:
    log = LogWhenChanged(get_logger("test"))
    for number in range(LogWhenChanged.KEYS_MAX + 1):
        assert log.log(str(number), logging.DEBUG, "x")
    assert not log.log("1", logging.DEBUG, "x")
    assert log.log("0", logging.DEBUG, "x")


def test_without_uvloop_everything_runs_on_asyncios_own_loop() -> None:
    program = """
import asyncio, sys
sys.modules["uvloop"] = None
import pccl.membership.agent, pccl.membership.service
from pccl.base.event_loop import new_event_loop
with asyncio.Runner(loop_factory=new_event_loop) as runner:
    assert isinstance(runner.get_loop(), asyncio.SelectorEventLoop)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
