"""What a script can tell by the exit code of `pccl replay`, and what a person reads with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pccl.cli.main import FAILED, MISUSED, main
from pccl.membership.coordinator import Coordinator
from tests.unit.membership.test_flight import a_recording


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    a_recording(tmp_path / "flight", steps=20)
    return tmp_path / "flight"


def test_a_coordinator_that_goes_another_way_gives_1(
    recording: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(recording)]) == 0
    monkeypatch.setattr(Coordinator, "handle", lambda *_: [])
    assert main(["replay", str(recording)]) == FAILED
    assert "the effects are not those that were recorded" in capsys.readouterr().err


def test_a_file_that_is_no_recording_gives_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    for content in (b"", b"something else altogether"):
        file.write_bytes(content)
        assert main(["replay", str(file)]) == MISUSED
        assert "flight recording" in capsys.readouterr().err


def test_damage_gives_2_and_says_where_it_is_and_what_went_well_before(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = bytearray(recording.read_bytes())
    whole[-1000] ^= 4
    recording.write_bytes(whole)
    assert main(["replay", str(recording)]) == MISUSED
    said = " ".join(capsys.readouterr().err.split())
    assert f"{recording.name}: the recording is damaged at byte " in said
    assert "what comes before can be replayed" in said and "on its way" not in said
