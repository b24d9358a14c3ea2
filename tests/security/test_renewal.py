"""Certificates of a few seconds: peers renew theirs while they work, the coordinator its own."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from pccl.transport import engine_tls
from tests.security.laboratory import Laboratory, eventually, native_has_tls


def test_a_run_outlives_its_first_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_tls, "plain_engine_in_secured_run", not native_has_tls())
    lab = Laboratory(tmp_path, life_s=3.0)
    with lab.coordinator():
        with lab.connect(lab.ticket(), min_world=1) as comm:
            began_s, steps = time.monotonic(), 0
            while time.monotonic() < began_s + 7:
                value = np.ones(16, np.float32)
                comm.all_reduce(value)
                assert (value == 1).all()
                steps += 1
                time.sleep(0.02)
            eventually(lambda: len(lab.audit("renewed")) >= 2)
            # The coordinator's first certificate is over, too; a newcomer finds a valid one.
            with lab.connect(lab.ticket(), min_world=1):
                pass
        assert steps > 10
        assert lab.ca.ledger.tokens()[0].uses == 1
    lab.ca.close()
