"""A coordinator that cannot listen where it was told to says what to do instead."""

from __future__ import annotations

import errno
import os

import pytest

from pccl.cli.coordinator import _instead


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EADDRINUSE, "another coordinator may be running there"),
        (errno.EADDRNOTAVAIL, "none of this machine's"),
        (errno.EACCES, "another address"),
    ],
)
def test_what_to_do_fits_why_it_cannot_listen(number: int, told: str) -> None:
    said = _instead(OSError(number, os.strerror(number)))
    assert told in said and "--listen" in said
    assert ("coordinator may be running" in said) == (number == errno.EADDRINUSE)
