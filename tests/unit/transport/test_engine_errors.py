"""What the native engine says, as errors and events of the rooms above."""

from __future__ import annotations

import pytest

from pccl.base import errors
from pccl.transport.engine import Engine, error_of
from pccl.transport.engine_events import (
    EngineExcluded,
    EngineFailed,
    ViewLeft,
    ViewSwitched,
    parse_event,
)


class NoPort:
    """A native core that finds no such address, in the words of its own."""

    EngineError = RuntimeError

    @staticmethod
    def Engine(**_: object) -> None:
        raise OSError(99, "cannot listen on 8.8.8.8 port 0: Cannot assign requested address")


CODES: dict[str, type[errors.PcclError]] = {
    "closed": errors.Closed,
    "evicted": errors.Evicted,
    "left": errors.Left,
    "excluded": errors.Excluded,
    "underflow": errors.WorldTooSmall,
    "memory": errors.OutOfMemory,
    "timeout": errors.DeadlineExceeded,
    "usage": errors.UsageError,
    "forked": errors.Forked,
}


@pytest.mark.parametrize("text", ["", "because"])
@pytest.mark.parametrize("code", CODES)
def test_every_code_is_an_error_that_says_something(code: str, text: str) -> None:
    error = error_of(code, text, deciding=False)
    assert type(error) is CODES[code]
    assert str(error) or code == "usage"


def test_a_lost_coordinator_leaves_the_outcome_of_a_begun_step_unknown() -> None:
    assert type(error_of("coordinator_lost", "", deciding=False)) is errors.CoordinatorLost
    assert type(error_of("coordinator_lost", "", deciding=True)) is errors.OutcomeUnknown


def test_running_out_of_memory_is_a_memory_error_too() -> None:
    assert isinstance(error_of("memory", "", deciding=True), MemoryError)


def test_news_of_views_and_of_the_engine_have_names() -> None:
    assert parse_event(("switched", 3, 7)) == ViewSwitched(3, 7)
    assert parse_event(("left", 3, 7)) == ViewLeft(3, 7)
    assert parse_event(("excluded", 4)) == EngineExcluded(4)
    assert parse_event(("failed", "memory", "none left")) == EngineFailed("memory", "none left")
    with pytest.raises(ValueError, match="reported"):
        parse_event(("left", 3))


def test_an_address_of_another_machine_is_named_once() -> None:
    with pytest.raises(errors.ConnectError) as caught:
        Engine(peer_id=bytes(16), listen_host="8.8.8.8", native=NoPort)
    assert str(caught.value).count("cannot listen") == 1
    assert "Cannot assign requested address; pass listen=" in str(caught.value)
