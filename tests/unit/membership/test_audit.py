"""The audit log: whole lines, files of bounded size and number, and floods that are counted."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from pccl.membership import service_audit
from pccl.membership.refusal_pace import BYTES_BURST, SOURCE_BURST
from pccl.membership.service_audit import FILES, Audit

PEER = b"p" * 16
BYTES = 4096


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(path: Path) -> list[Path]:
    """The newest first."""
    older = [path.with_name(f"{path.name}.{n}") for n in range(1, FILES + 3)]
    return [file for file in (path, *older) if file.exists()]


def test_files_are_bounded_in_size_and_number_and_the_newest_lines_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_audit, "BYTES_MAX", BYTES)
    path = tmp_path / "audit.log"
    audit, count = Audit(path), 1000
    for number in range(count):
        audit.admitted(PEER, f"10.0.0.1:{number}", "")
    audit.close()
    kept = files(path)
    assert len(kept) == FILES and all(0 < file.stat().st_size <= BYTES for file in kept)
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in kept)
    told = [entry["from"] for file in reversed(kept) for entry in lines(file)]
    expected = [f"10.0.0.1:{number}" for number in range(count - len(told), count)]
    assert told == expected, "in order, without a gap, to the last one"


def test_a_log_goes_on_where_it_was_left_and_counts_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_audit, "BYTES_MAX", BYTES)
    path = tmp_path / "audit.log"
    for number in range(200):  # a coordinator that starts anew for each line
        audit = Audit(path)
        audit.renewed(PEER, f"10.0.0.1:{number}")
        audit.close()
    kept = files(path)
    assert len(kept) > 1 and all(file.stat().st_size <= BYTES for file in kept)
    assert lines(path)[-1]["from"] == "10.0.0.1:199"


def test_a_flood_of_refusals_is_counted_and_drives_no_admission_out(tmp_path: Path) -> None:
    now = [0.0]
    path = tmp_path / "audit.log"
    audit = Audit(path, clock=lambda: now[0])
    audit.admitted(PEER, "10.0.0.1", "")
    for _ in range(5000):
        audit.refused("ticket", b"", "10.0.0.2", "no such ticket")
    audit.refused("ticket", b"", "10.0.0.3", "no such ticket")  # another has lines of its own
    now[0] = 59.0
    audit.refused("ticket", b"", "10.0.0.2", "no such ticket")
    audit.close()
    written = lines(path)
    assert written[0]["event"] == "admitted"
    *first, other, last = written[1:]
    assert len(first) == SOURCE_BURST and not any("left_out" in entry for entry in written[:-1])
    assert other["from"] == "10.0.0.3" and other["code"] == "ticket"
    assert last["from"] == "10.0.0.2" and last["left_out"] == 5000 - SOURCE_BURST


def test_what_no_line_tells_is_summed_up_once_a_minute_and_at_the_end(tmp_path: Path) -> None:
    now = [0.0]
    path = tmp_path / "audit.log"
    audit = Audit(path, clock=lambda: now[0])
    for number in range(3000):  # each from elsewhere: no source says a second word
        audit.refused("ca", b"", f"10.1.{number >> 8}.{number & 255}", "not believed")
    audit.sum_up()
    now[0] = 61.0
    audit.sum_up()
    audit.sum_up()
    audit.refused("ca", b"", "10.9.9.9", "not believed")
    for _ in range(40):
        audit.refused("ca", b"", "10.9.9.9", "not believed")
    audit.close()
    written = lines(path)
    floods = [entry for entry in written if entry["code"] == "flood"]
    assert [flood["count"] for flood in floods][1:] == [41 - SOURCE_BURST]
    assert floods[1]["from"] == "10.9.9.9" and floods[1]["sources"] == 1
    singles = len(written) - len(floods)
    assert sum(flood["count"] for flood in floods) + singles == 3041
    assert path.stat().st_size < 2 * BYTES_BURST


def test_reasons_of_strangers_are_cut_and_cannot_forge_a_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit = Audit(path)
    audit.refused("ticket", b"", "10.0.0.2:1", '"}\n{"event":"admitted"' + "x" * 10_000)
    audit.close()
    (entry,) = lines(path)
    assert entry["event"] == "refused" and len(entry["reason"]) <= 300


def test_a_log_that_cannot_be_written_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audit = Audit(tmp_path / "not there" / "audit.log")
    with caplog.at_level(logging.ERROR, "pccl.membership"):
        for _ in range(5):
            audit.admitted(PEER, "10.0.0.1:1", "")
    assert len(caplog.records) == 1
    (tmp_path / "not there").mkdir()
    audit.admitted(PEER, "10.0.0.1:2", "")
    audit.close()
    assert [entry["from"] for entry in lines(tmp_path / "not there" / "audit.log")] == [
        "10.0.0.1:2"
    ]
