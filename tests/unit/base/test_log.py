"""What a person gets to see of a library that prints nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import logging
from pccl.base.log import get_logger, warn_aloud
{setup}
get_logger("face").warning("not for the screen")
warn_aloud(get_logger("face"), "no answer from 10.0.0.9 (100 %)")
"""


def shown(setup: str) -> str:
    command = [sys.executable, "-c", CODE.format(setup=setup)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == ""
    return done.stderr


def test_a_warning_aloud_is_shown_where_no_logging_is_configured_and_nothing_else_is() -> None:
    assert shown("") == "pccl: no answer from 10.0.0.9 (100 %)\n"


@pytest.mark.parametrize(
    "setup",
    [
        "logging.lastResort = None",
        'logging.getLogger("pccl").setLevel(logging.ERROR)',
        'logging.basicConfig(filename="/dev/null")',
        'logging.getLogger("pccl").addHandler(logging.FileHandler("/dev/null"))',
    ],
)
def test_an_application_that_says_where_its_log_goes_has_its_way(setup: str) -> None:
    assert shown(setup) == ""
