"""Events survive the pipe, and nothing else comes through it."""

import pytest

from pccl.demo.events import (
    LINE_BYTES_MAX,
    Admitted,
    Done,
    Entered,
    Failed,
    PeerEvent,
    Ready,
    StepDone,
    format_event,
    parse_event,
)

STEP = StepDone(
    step=3,
    loss=2.5,
    epoch=2,
    world_size=2,
    wire_bytes=4096,
    retries=1,
    step_s=0.25,
    reduce_s=0.125,
    contributors=("aaaa0000", "bbbb0000"),
)
EVENTS = [Ready(), Admitted("aaaa0000"), Entered(7, 5.5), STEP, Done(9, 2.0, "ab"), Failed("gone")]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_arrives_as_it_was_told(event: PeerEvent) -> None:
    line = format_event(event)

    assert "\n" not in line
    assert parse_event(line) == event


@pytest.mark.parametrize(
    "line",
    [
        "",
        "warning: something",
        "[]",
        '{"event":"Exited","code":0}',
        '{"event":"Admitted"}',
        '{"event":"Admitted","id":7}',
        '{"event":"Admitted","id":"a","more":1}',
        '{"event":"Entered","step":true,"held_out_loss":1.0}',
        '{"event":"Entered","step":1.5,"held_out_loss":1.0}',
    ],
)
def test_a_line_that_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        parse_event(line)


def test_a_failure_of_any_length_fits_into_a_line() -> None:
    line = format_event(Failed("x" * (10 * LINE_BYTES_MAX)))

    assert len(line) < LINE_BYTES_MAX
