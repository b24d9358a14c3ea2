"""When a newcomer may be started, so that it has a part in the run and nobody waits in vain."""

from __future__ import annotations

from pathlib import Path

import pytest

from pccl.demo.methods import METHODS, all_aboard_at, last_join_at
from pccl.demo.peer_config import ModelShape
from pccl.demo.run import DemoConfig
from pccl.demo.story import Plan


def config(method: str, steps: int, join_at: int | None) -> DemoConfig:
    return DemoConfig(
        plan=Plan(peers=3, steps=steps, kill_at=1, join_at=join_at),
        out=Path("out"),
        seed=1,
        rows=4,
        least_step_s=0.0,
        shape=ModelShape(layers=3, width=32, context=32),
        method=method,
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_newcomer_is_started_before_the_members_wait_for_it(method: str) -> None:
    """A method reports the reduction at which it waits when it has waited: whoever starts the
    newcomer by that report would start it too late."""
    for steps in range(2, 60):
        last, wait_at = last_join_at(method, steps, 3), all_aboard_at(method, steps, 3)
        assert last <= wait_at if method == "ddp" else last < wait_at
        assert wait_at < steps, "and has a part in something"
        if last > 0:
            config(method, steps, last)
        with pytest.raises(ValueError, match="--join-at"):
            config(method, steps, last + 1)


def test_a_run_that_is_too_short_for_a_newcomer_runs_without_one() -> None:
    config("diloco", 2, None)
    with pytest.raises(ValueError, match="--no-join"):
        config("diloco", 2, 1)
