"""A secured run inside one process: a CA in a folder, a coordinator on loopback, and peers.

While the native core has no TLS of its own, its connections are plain here and nowhere else: the
switch is private, and both ends must have been told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pccl
from pccl.membership.service import CoordinatorOptions, CoordinatorThread
from pccl.membership.service_ca import CaFolder, init_ca, open_ca
from pccl.transport import engine_tls
from pccl.transport.identity import Role
from pccl.transport.join_ticket import JoinTicket
from pccl.transport.native_core import load_native

WAIT_S = 30.0
CONNECT_S = 60.0
DAY_S = 86_400.0


def native_has_tls() -> bool:
    return engine_tls.has_tls(load_native())


class Laboratory:
    """One CA and, while `coordinator()` runs, one coordinator."""

    def __init__(self, folder: Path, life_s: float = DAY_S) -> None:
        self.folder = folder / "ca"
        self.ca: CaFolder = init_ca(self.folder, life_s=life_s)
        self.address = ""

    def options(self, **changes: Any) -> CoordinatorOptions:
        options = CoordinatorOptions(ca=self.folder, plain_engines=not native_has_tls())
        return replace(options, **changes)

    @contextmanager
    def coordinator(self, **changes: Any) -> Iterator[CoordinatorThread]:
        thread = CoordinatorThread(self.options(**changes)).start()
        self.address = thread.address
        try:
            yield thread
        finally:
            thread.stop()

    def ticket(
        self, role: Role = Role.TRAINER, *, uses: int = 1, expires_in_s: float = DAY_S
    ) -> JoinTicket:
        return self.ca.make_ticket(
            role,
            uses=uses,
            expires_in_s=expires_in_s,
            endpoints=(self.address,) if self.address else (),
        )

    def connect(self, ticket: JoinTicket | str, **arguments: Any) -> pccl.Communicator:
        text = ticket if isinstance(ticket, str) else ticket.text
        arguments = {"timeout_s": CONNECT_S, **arguments}
        return pccl.connect(arguments.pop("address", self.address), ticket=text, **arguments)

    def audit(self, event: str = "") -> list[dict[str, Any]]:
        import json

        file = self.folder / "audit.log"
        lines = file.read_text().splitlines() if file.exists() else []
        entries = [json.loads(line) for line in lines]
        return [entry for entry in entries if not event or entry["event"] == event]


def eventually(holds: Callable[[], bool], wait_s: float = WAIT_S) -> None:
    """Waits until something holds, which it must within `wait_s`."""
    end_s = time.monotonic() + wait_s
    while not holds():
        assert time.monotonic() < end_s, "it does not come to hold"
        time.sleep(0.02)


@pytest.fixture
def laboratory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Laboratory]:
    monkeypatch.delenv("PCCL_TICKET", raising=False)
    monkeypatch.setattr(engine_tls, "plain_engine_in_secured_run", not native_has_tls())
    made = Laboratory(tmp_path)
    yield made
    made.ca.close()


def reopened(laboratory: Laboratory) -> CaFolder:
    """The folder as another process has it open."""
    return open_ca(laboratory.folder)
