"""Replays committed updates on a newcomer's state, one after another.

Invariant: an update is applied whole, to the revision that it was made for; whether the outcome is
right, the root says afterwards.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from pccl.base.clock import Deadline
from pccl.base.errors import DeadlineExceeded, RemoteError, UsageError
from pccl.base.log import get_logger
from pccl.collectives.buffers import describe
from pccl.state import messages as m
from pccl.state.layout import ENCODED_BYTES_MAX, Layout
from pccl.state.memory import available_bytes
from pccl.state.shared import SharedState
from pccl.state.stream import Stream
from pccl.state.tensors import Bytes, bytes_of

RESULTS_BYTES_MIN = 64 << 20
RESULTS_FACTOR = 4  # results of one update are about as large as what they change
_log = get_logger("state")


@dataclass(slots=True)
class Tally:
    """What was replayed, however it ended."""

    revisions: int = 0
    byte_count: int = 0
    apply_s: float = 0.0  # of the time that it took


def replay(
    state: SharedState,
    stream: Stream,
    deadline: Deadline,
    tally: Tally | None = None,
    pause: Deadline | None = None,
) -> bool:
    """Asks for what came after this state's revision until there is no more; says whether there
    was anything to be replayed.  After `pause` it goes no further than to the next revision.

    Raises:
        StreamLost, RemoteError: the source ended or sent what is no update; the memory is that of
            `state.revision`, or what `apply` has left of it: the root says.
        DeadlineExceeded: updates still came when time was over; the state is at a revision.
    """
    assert state.apply is not None
    done = Tally() if tally is None else tally
    count = 0
    stream.until(deadline)
    while True:
        if count and (pause or deadline).passed():  # who lacks nothing is told so first
            raise DeadlineExceeded(
                f"{count} updates were replayed, and more come as fast as apply= makes them here: "
                "give it more time, or let the members' steps be fewer"
            )
        stream.send(m.question_codec.encode(m.Replay(state.revision)))
        answer = m.answer_codec.decode(stream.receive())
        if isinstance(answer, m.Sorry):
            return count > 0
        if (
            not isinstance(answer, m.Results)
            or answer.revision != state.revision
            or answer.layout_bytes > ENCODED_BYTES_MAX
        ):
            raise RemoteError("a replay of another revision than was asked for")
        layout = Layout.decode(stream.receive_bytes(answer.layout_bytes))
        if layout.byte_count != answer.byte_count or answer.byte_count > max(
            RESULTS_BYTES_MIN, RESULTS_FACTOR * state.layout.byte_count
        ):
            raise RemoteError("an update of an impossible size")
        if 2 * answer.byte_count > available_bytes():
            raise RemoteError(f"no memory for an update of {answer.byte_count} bytes")
        try:
            arrays, memory = results_memory(layout)
        except UsageError as error:
            raise RemoteError(str(error)) from error
        for part in memory:
            stream.receive_into(part.data)
        began_s = time.monotonic()
        with state.writing():
            try:
                state.apply(state.tensors, *arrays)
            except Exception as error:  # the arrays are a stranger's: whatever they did to it
                _log.warning("apply= refused an update that was sent as committed", exc_info=True)
                raise RemoteError(f"an update that apply= refuses: {error}") from error
            state.applied(answer.revision + 1)
        count += 1
        done.revisions, done.byte_count = done.revisions + 1, done.byte_count + answer.byte_count
        done.apply_s += time.monotonic() - began_s


def results_memory(layout: Layout) -> tuple[list[Any], list[Bytes]]:
    """Makes arrays for one update's results, in order, and their memory."""
    arrays = [np.zeros(entry.shape, _numpy_dtype(entry.dtype.label)) for entry in layout.entries]
    return arrays, [bytes_of(describe(array)) for array in arrays]


def _numpy_dtype(label: str) -> Any:
    kinds = {"f": "f", "i": "i", "u": "u", "c": "c"}
    if label == "bool":
        return np.bool_
    if label[0] in kinds and label[1:].isdigit():
        return np.dtype(f"{kinds[label[0]]}{int(label[1:]) // 8}")
    raise UsageError(f"results of type {label} cannot be replayed; pass f32")
