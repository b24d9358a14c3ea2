"""Shared states that misbehave as a donor or a newcomer may, for peers that are processes.

They tell what they are at, as JSON lines, so that a test can kill or stop them right there.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import logging
import os
import sys
import threading
import time
from typing import Any

import pccl
from pccl.state.kept import Pin
from pccl.state.layout import Leaf
from pccl.state.stream import Stream
from pccl.state.tensors import Bytes

HALT_S = 5.0
DRIP_FROM_BYTES = 1 << 16  # what is shorter describes a state


class Odd(pccl.SharedState):
    """Sends other bytes than it has hashed, as faulty memory would."""

    def read(self, pin: Pin, leaf: Leaf, scratch: Bytes | None) -> Bytes | None:
        content = super().read(pin, leaf, scratch)
        if content is None:
            return None
        wrong = content.copy()
        wrong[len(wrong) // 2] ^= 1
        return wrong


class Slow(pccl.SharedState):
    """Takes its time, and says so when it is in the middle of giving."""

    asked = 0

    def read(self, pin: Pin, leaf: Leaf, scratch: Bytes | None) -> Bytes | None:
        self.asked += 1
        if self.asked == 10:
            tell(giving=True)
        time.sleep(0.01)
        return super().read(pin, leaf, scratch)


class Throttled(pccl.SharedState):
    """Gives as over a slow way of its own, which steps do not go; says when it is in the middle of
    giving, and when it is so to a newcomer for which the members wait."""

    rate = float(os.environ.get("PCCL_TEST_RATE", "inf"))
    gives = threading.Lock()
    free_s = 0.0  # when what was asked for before is through
    asked = waited_for = 0

    def read(self, pin: Pin, leaf: Leaf, scratch: Bytes | None) -> Bytes | None:
        with self.gives:
            now_s = time.monotonic()
            self.free_s = max(now_s, self.free_s) + leaf.byte_count / self.rate
            left_s = self.free_s - now_s
            self.asked += 1
            if self.asked == 5:
                tell(giving=True)
        time.sleep(left_s)
        if scratch is None and pin.revision > 0:  # founders wait for each other, too
            self.waited_for += 1
            if self.waited_for == 3:
                tell(holding=True)
        return super().read(pin, leaf, scratch)


class Liar(Throttled):
    """Once the run has begun, claims a revision of its own, and gives nothing of it."""

    def pin(self, *, precious: bool = False) -> Pin:
        pin = super().pin(precious=precious)
        return dataclasses.replace(pin, revision=10**9) if pin.revision else pin

    def unpin(self, pin: Pin) -> None:
        pass

    def read(self, pin: Pin, leaf: Leaf, scratch: Bytes | None) -> Bytes | None:
        if pin.revision == 0:
            return super().read(pin, leaf, scratch)
        tell(asked_to_give=True)
        time.sleep(3600)
        return None


class Halting(Throttled):
    """Once, as members wait for it, it takes its time to hash."""

    halts = False

    def hash(self) -> bytes:
        if self.halts:
            self.halts = False
            halt()
        return super().hash()


class Told(logging.Handler):
    """Tells warnings, which are for people, as facts."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(warning=record.getMessage())


telling = threading.Lock()


def tell(**facts: Any) -> None:
    """One line, also where donors' threads tell at the same time."""
    with telling:
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()


def halt() -> None:
    tell(halting=True)
    time.sleep(HALT_S)


def keep_the_gil() -> None:
    """No thread of this process runs Python meanwhile."""
    tell(halting=True)
    ctypes.PyDLL(None).sleep(int(HALT_S))


def drip() -> None:
    """From now on this process gives one byte of each piece a second."""
    give = Stream.send_bytes

    def send_bytes(stream: Stream, content: Any, pace: Any) -> None:
        view = memoryview(content).cast("B")
        if len(view) < DRIP_FROM_BYTES:
            return give(stream, content, pace)
        for at in range(len(view)):
            give(stream, view[at : at + 1], lambda: 1.0)
            time.sleep(1.0)
        return None

    setattr(Stream, "send_bytes", send_bytes)  # noqa: B010  in this process only
