"""Where a libucp is looked for, and what people are told of what UCX chose."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pccl.transport import ucx
from pccl.transport.engine_events import StepDecided, UcxChose, parse_event


def test_a_named_library_is_the_only_one_and_conda_comes_before_the_wheel(tmp_path: Path) -> None:
    assert ucx.libraries({ucx.VARIABLE: "/there/libucp.so"}, str(tmp_path)) == ["/there/libucp.so"]
    conda, prefix = tmp_path / "conda", tmp_path / "prefix"
    for place in (conda, prefix):
        (place / "lib").mkdir(parents=True)
        (place / "lib" / ucx.LIBRARY).touch()
    found = ucx.libraries({"CONDA_PREFIX": str(conda)}, str(prefix))
    assert found[:3] == [
        ucx.LIBRARY,
        str(conda / "lib" / ucx.LIBRARY),
        str(prefix / "lib" / ucx.LIBRARY),
    ]
    assert ucx.libraries({}, str(tmp_path / "none"))[0] == ucx.LIBRARY


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
