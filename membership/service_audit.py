"""The audit log of a secured run: one JSON object a line, in files of bounded size.

Every line has `time` (UTC), `event`, `peer` (hex or ""), `from` (an address) and `reason`; some
have more.  Admissions, evictions and renewals are written; refusals, which strangers bring about,
at the pace that `RefusalPace` grants.  `left_out` in a line says how many of that source's were not
written before it; a line with code `flood` and a `count`, once a minute, what else was not.

Invariant: at most FILES files of BYTES_MAX each, also over restarts; every refusal is a line or in
one count; no line holds a secret, nor more of what strangers sent than the kind of a message; a log
that cannot be written is said once, and never stops a run.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pccl.base.clock import Clock, system_clock
from pccl.base.log import get_logger
from pccl.membership.refusal_pace import LeftOut, RefusalPace
from pccl.transport.handshake_pace import address_group

BYTES_MAX: Final = 8 << 20
FILES: Final = 5
LEFT_OUT_BYTES: Final = 24  # of what says how many were left out
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
        self._refusals = RefusalPace(clock())

    def admitted(self, peer_id: bytes, host: str, reason: str) -> None:
        self._write("admitted", peer_id, host, reason)

    def enrolled(self, peer_id: bytes, host: str, token_id: bytes, role: str, *, new: bool) -> None:
        reason = "a use of its ticket" if new else "again, by the same key"
        self._write("enrolled", peer_id, host, reason, ticket=token_id.hex(), role=role)

    def renewed(self, peer_id: bytes, host: str) -> None:
        self._write("renewed", peer_id, host, "")

    def evicted(self, peer_id: bytes, reason: str) -> None:
        self._write("evicted", peer_id, "", reason)

    def lost(self, peer_id: bytes, reason: str) -> None:
        """It was given up; where there is a connection to tell it on, `evicted` follows."""
        self._write("lost", peer_id, "", reason)

    def left(self, peer_id: bytes) -> None:
        self._write("left", peer_id, "", "as it had asked to")

    def refused(self, code: str, peer_id: bytes, host: str, reason: str) -> None:
        """What strangers bring about: written at a bounded pace, and else counted."""
        self.sum_up()
        line = _line("refused", peer_id, host, reason, code=code)
        size = len(_encoded(line)) + LEFT_OUT_BYTES
        left_out = self._refusals.grant(address_group(host), size, self._clock())
        if left_out is not None:
            self._append(_encoded({**line, "left_out": left_out} if left_out else line))

    def sum_up(self) -> None:
        """Writes of how many refusals a minute's lines do not tell, once that minute has passed."""
        self._tell(self._refusals.due(self._clock()))

    def close(self) -> None:
        self._tell(self._refusals.rest())
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _tell(self, left_out: LeftOut | None) -> None:
        if left_out is None:
            return
        text = f"too many to be written; {left_out.busiest_count} of them from the busiest source"
        more: dict[str, str | int] = {"code": "flood", "count": left_out.count}
        self._write("refused", b"", left_out.busiest, text, **more, sources=left_out.sources)

    def _write(self, event: str, peer_id: bytes, host: str, reason: str, **more: str | int) -> None:
        self._append(_encoded(_line(event, peer_id, host, reason, **more)))

    def _append(self, data: bytes) -> None:
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


def _line(
    event: str, peer_id: bytes, host: str, reason: str, **more: str | int
) -> dict[str, str | int]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "event": event,
        "peer": peer_id.hex(),
        "from": host,
        "reason": reason[:TEXT_CHARACTERS_MAX],
        **more,
    }


def _encoded(line: dict[str, str | int]) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"
