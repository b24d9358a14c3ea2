"""What the harness tells a peer of a churn run: how to live, at its start, and orders later."""

from __future__ import annotations

import os
import queue
import random
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from tests.faults.notes import Note

ALL_REDUCE = "all-reduce"
ORPHANED = 5  # exit code
LEAVE_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the harness tells a peer; the defaults are those of a churn run."""

    address: str
    listen: str = ""  # host, no port; "" leaves it to pccl
    min_world: int = 2
    count: int = 1 << 14  # f32 elements
    pace_s: float = 0.01  # mean pause between steps, so that histories stay readable
    rejoin: bool = False  # connects again in the same process after it was evicted
    method: str = ALL_REDUCE  # or a low-communication method of tests.churn.lessons
    connect: tuple[tuple[str, Any], ...] = ()  # further arguments of pccl.connect


class Orders:
    """What the harness wants of this process, read by a thread of its own."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.leave = threading.Event()
        self.stuck: queue.SimpleQueue[float] = queue.SimpleQueue()
        self._go = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def wait_for_go(self) -> None:
        self._go.wait()

    def _read(self) -> None:
        for line in sys.stdin:
            word, _, argument = line.strip().partition(" ")
            match word:
                case "go":
                    self._go.set()
                case "end":
                    self.end.set()
                case "leave":
                    self.leave.set()
                case "stuck":
                    self.stuck.put(float(argument))
        os._exit(ORPHANED)  # the harness is gone


class Pause:
    """What lies between two steps: a moment, or as long as the harness orders."""

    def __init__(self, config: Config, note: Note, orders: Orders, me: bytes) -> None:
        self._config = config
        self._note = note
        self._orders = orders
        self._dice = random.Random(me)

    def __call__(self) -> None:
        time.sleep(self._dice.uniform(0.0, 2 * self._config.pace_s))
        if not self._orders.stuck.empty():
            stuck_s = self._orders.stuck.get()
            self._note(stuck=stuck_s)
            time.sleep(stuck_s)
