"""The audit log of a secured run: one JSON object a line, in files of bounded size.

Every line has `time` (UTC), `event`, `peer` (hex or ""), `from` (an address) and `reason`; some
have more.  Admissions, refusals, evictions and renewals are written; floods of refused strangers
are counted instead of written once they exceed a rate, and the count is written.

Invariant: at most FILES files of BYTES_MAX each, also over restarts; a log that cannot be written
is said once, and never stops a run.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pccl.base.clock import Clock, system_clock
from pccl.base.log import get_logger
from pccl.transport.token_bucket import TokenBucket

BYTES_MAX: Final = 8 << 20
FILES: Final = 5
REFUSALS_BURST: Final = 100
REFUSALS_PER_S: Final = 10.0
TEXT_CHARACTERS_MAX: Final = 300
_log = get_logger("membership")


class Audit:
    """Appends lines; belongs to one event loop (a line costs some 20 us, and no fsync)."""

    def __init__(self, path: Path, *, clock: Clock = system_clock) -> None:
        self._path = path
        self._clock = clock
        self._file = -1
        self._bytes = 0
        self._broken = False
        self._refusals = TokenBucket(burst=REFUSALS_BURST, rate_per_s=REFUSALS_PER_S, now_s=clock())
        self._unwritten = 0

    def admitted(self, peer_id: bytes, host: str, reason: str) -> None:
        self._write("admitted", peer_id, host, reason)

    def enrolled(self, peer_id: bytes, host: str, token_id: bytes, role: str, *, new: bool) -> None:
        reason = "a use of its ticket" if new else "again, by the same key"
        self._write("enrolled", peer_id, host, reason, ticket=token_id.hex(), role=role)

    def renewed(self, peer_id: bytes, host: str) -> None:
        self._write("renewed", peer_id, host, "")

    def evicted(self, peer_id: bytes, reason: str) -> None:
        self._write("evicted", peer_id, "", reason)

    def left(self, peer_id: bytes) -> None:
        self._write("left", peer_id, "", "as it had asked to")

    def refused(self, code: str, peer_id: bytes, host: str, reason: str) -> None:
        """What strangers bring about: written at a bounded rate."""
        if self._refusals.take(self._clock()) > 0:
            self._unwritten += 1
            return
        if self._unwritten:
            count, self._unwritten = self._unwritten, 0
            self._write("refused", b"", "", "too many to be written", code="flood", count=count)
        self._write("refused", peer_id, host, reason, code=code)

    def close(self) -> None:
        if self._unwritten:
            count, self._unwritten = self._unwritten, 0
            self._write("refused", b"", "", "too many to be written", code="flood", count=count)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, event: str, peer_id: bytes, host: str, reason: str, **more: str | int) -> None:
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event,
            "peer": peer_id.hex(),
            "from": host,
            "reason": reason[:TEXT_CHARACTERS_MAX],
            **more,
        }
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        try:
            if self._file < 0:
                self._open()
            if self._bytes and self._bytes + len(data) > BYTES_MAX:
                self._rotate()
            os.write(self._file, data)
            self._bytes += len(data)
        except OSError as error:
            if not self._broken:
                _log.error("the audit log %s cannot be written: %s", self._path, error)
            self._broken = True

    def _rotate(self) -> None:
        os.close(self._file)
        self._file = -1
        for number in range(FILES - 1, 0, -1):
            older = self._path if number == 1 else self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))
        self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self._path, flags, 0o600)
        self._bytes = os.fstat(self._file).st_size
        self._broken = False

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")
