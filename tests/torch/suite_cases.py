"""torch's own distributed tests, from its wheel, with another backend's name put in.

Whether a test applies is decided by torch when its module is imported, from the environment
variable BACKEND: so that is the backend whose gates are used (gloo, or mpi for its all-to-all
tests), and only afterwards does the module learn which backend the tests are to run on.

Imported by the command in `suite` and by the server that ranks are forked from: 0.3 s a test, where
new interpreters take seconds.  Invariant: importing this needs SUITE_GATE and WORLD_SIZE to be set.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

GATE = os.environ["SUITE_GATE"]
BACKEND = os.environ["SUITE_BACKEND"]
os.environ["BACKEND"] = GATE
os.environ.setdefault("TEMP_DIR", "unset")  # the true one is told to each rank as it starts

from torch.testing._internal import common_distributed  # noqa: E402

for _feature in ("ddp", "subgroup", "plugin"):
    common_distributed.DistTestCases.backend_feature[_feature].add(BACKEND)

from torch.testing._internal.distributed import distributed_test  # noqa: E402

distributed_test.BACKEND = BACKEND
TOLD = ("TEMP_DIR", "MASTER_ADDR")


class SuiteCase(distributed_test.TestDistBackend, distributed_test.DistributedTest._DistTestBase):
    """All tests; each starts its ranks from the fork server."""

    def setUp(self) -> None:
        super().setUp()  # type: ignore[no-untyped-call]
        self._spawn_processes()

    def run_test(self, test_name: str, parent_pipe: Any) -> None:
        """The group is made by now.  A few tests ask once more whose gates to go by."""
        if test_name.startswith("test_accumulate_gradients_no_sync"):
            distributed_test.BACKEND = GATE
        super().run_test(test_name, parent_pipe)

    def _spawn_processes(self) -> None:
        context: Any = multiprocessing.get_context("forkserver")
        told = {name: os.environ[name] for name in TOLD if name in os.environ}

        def start(target: Any, name: str, args: tuple[Any, ...], kwargs: Any) -> Any:
            return context.Process(target=_rank, name=name, args=(told, target, args, kwargs))

        self._start_processes(start)


def _rank(
    told: dict[str, str], target: Callable[..., None], args: tuple[Any, ...], kwargs: Any
) -> None:
    os.environ.update(told)
    target(*args, **kwargs)
