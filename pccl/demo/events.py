"""What a peer of the demo tells its parent: one JSON object a line on the peer's standard output.

The pipe is the only way from peer to parent; a line is at most `LINE_BYTES_MAX` long and anything
that is not one of these events is refused by `parse_event` instead of being guessed at.
"""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

LINE_BYTES_MAX = 16 << 10  # a step's event is some 300 bytes; a failure's text is cut at 8 KiB
GO = "go"  # what the parent writes to a peer that is ready


@dataclass(frozen=True, slots=True)
class Ready:
    """Everything is imported and built; the peer waits for the parent's word to connect."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """The coordinator let the peer in."""

    id: str


@dataclass(frozen=True, slots=True)
class Entered:
    """The peer holds the run's state, as it is after `step` updates, and trains from there on."""

    step: int
    held_out_loss: float


@dataclass(frozen=True, slots=True)
class StepDone:
    """One training step, committed and applied; `step` counts updates, so the first one says 1."""

    step: int
    loss: float
    epoch: int
    world_size: int
    wire_bytes: int
    retries: int
    step_s: float
    reduce_s: float
    contributors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """The last step is applied; `digest` is of all parameters."""

    step: int
    held_out_loss: float
    digest: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The peer cannot go on, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The process is gone; said by the parent, never by a peer.  A signal is a negative code."""

    code: int


PeerEvent = Ready | Admitted | Entered | StepDone | Done | Failed
Event = PeerEvent | Exited

_KINDS: dict[str, type[PeerEvent]] = {
    kind.__name__: kind for kind in (Ready, Admitted, Entered, StepDone, Done, Failed)
}


def format_event(event: PeerEvent) -> str:
    """Returns the event as one line, without its end."""
    if isinstance(event, Failed):
        event = Failed(event.reason[: LINE_BYTES_MAX // 2])
    return json.dumps({"event": type(event).__name__, **asdict(event)}, separators=(",", ":"))


def parse_event(line: str) -> PeerEvent:
    """Returns the event in `line`.

    Raises:
        ValueError: it is none, or not exactly with the fields that its kind has.
    """
    told = json.loads(line)
    if not isinstance(told, dict):
        raise ValueError("not an object")
    kind = _KINDS.get(str(told.pop("event", None)))
    if kind is None:
        raise ValueError("no such event")
    expected = {field.name: field.type for field in fields(kind)}
    if told.keys() != expected.keys():
        raise ValueError(f"{kind.__name__} has the fields {', '.join(expected) or 'none'}")
    return kind(**{name: _checked(name, expected[name], value) for name, value in told.items()})


def _checked(name: str, expected: Any, value: Any) -> Any:
    if expected == tuple[str, ...]:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
    elif expected is float and type(value) in (int, float):
        return float(value)
    elif type(value) is expected:
        return value
    raise ValueError(f"{name} is {value!r}")
