"""Where a libucp is looked for, and what people are told of what UCX chose."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from pccl.transport import ucx
from pccl.transport.engine_events import StepDecided, UcxChose, parse_event


def _with_library(folder: Path) -> Path:
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / ucx.LIBRARY).touch()
    return folder


def _of_wheel(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    """A wheel lies there; returns its library."""
    module = _with_library(folder / "libucx")
    (module / "__init__.py").touch()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "libucx", raising=False)
    return str(module / "lib" / ucx.LIBRARY)


def test_a_named_library_is_the_only_one(tmp_path: Path) -> None:
    own = str(_with_library(tmp_path))
    assert ucx.libraries({ucx.VARIABLE: "/there/libucp.so"}, own) == ["/there/libucp.so"]


def test_the_system_s_comes_first_then_conda_s_then_the_wheel_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = _of_wheel(monkeypatch, tmp_path / "site")
    own, base, active = (_with_library(tmp_path / name) for name in ("own", "base", "active"))
    found = ucx.libraries({"CONDA_PREFIX": str(active)}, str(own), str(base))
    of_conda = [str(place / "lib" / ucx.LIBRARY) for place in (own, base, active)]
    assert found == [ucx.LIBRARY, *of_conda, wheel]


def test_a_conda_environment_that_nobody_activated_is_found_by_its_own_prefix_and_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = _of_wheel(monkeypatch, tmp_path / "site")
    conda = str(_with_library(tmp_path / "conda"))
    library = str(Path(conda, "lib", ucx.LIBRARY))
    # Its own Python; a virtual environment made by that; and the same, activated.
    assert ucx.libraries({}, conda, conda) == [ucx.LIBRARY, library, wheel]
    assert ucx.libraries({}, str(tmp_path / "venv"), conda) == [ucx.LIBRARY, library, wheel]
    activated = {"CONDA_PREFIX": conda}
    assert ucx.libraries(activated, conda, conda) == [ucx.LIBRARY, library, wheel]


def test_what_is_not_there_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = _of_wheel(monkeypatch, tmp_path / "site")
    empty = {ucx.VARIABLE: "", "CONDA_PREFIX": ""}
    assert ucx.libraries(empty, str(tmp_path / "none")) == [ucx.LIBRARY, wheel]


def test_only_the_want_of_a_library_is_an_error_of_connecting() -> None:
    error = ucx.refusal("ucx", "libucp.so.0: cannot open")
    assert error is not None
    assert "pip install 'pccl[ucx]'" in str(error) and "cannot open" in str(error)
    assert ucx.refusal("usage", "the run is secured") is None


def test_rdma_that_was_asked_for_and_not_got_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    wire = ucx.Wire()
    other = StepDecided(3)
    assert wire.note(other) is other and not caplog.records
    event = wire.note(parse_event(["wire", "tcp/lo", False]))
    assert event == UcxChose("tcp/lo", rdma=False) and wire.transports == "tcp/lo"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "found no RDMA and moves the lanes' bytes by tcp/lo" in caplog.text
    wire.note(UcxChose("tcp/lo; tcp/eth0", rdma=False))
    assert len(caplog.records) == 1


def test_rdma_is_no_warning_and_a_peer_without_ucx_is_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    wire = ucx.Wire()
    wire.note(UcxChose("rc_mlx5/mlx5_0:1", rdma=True))
    for _ in range(3):
        wire.note(UcxChose("", rdma=False))
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert "stay on TCP" in caplog.text
    assert wire.transports == "rc_mlx5/mlx5_0:1"
