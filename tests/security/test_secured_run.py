"""A secured run from its CA to a reduction: who has a ticket takes part, who has none does not."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import pccl
from tests.security.laboratory import Laboratory, laboratory

__all__ = ["laboratory"]


def together(lab: Laboratory, count: int) -> list[np.ndarray]:
    """Lets `count` peers join by one ticket and reduce once."""
    ticket = lab.ticket(uses=count)
    results: list[np.ndarray] = []
    failures: list[BaseException] = []

    def peer(index: int) -> None:
        try:
            with lab.connect(ticket, min_world=count) as comm:
                value = np.arange(1000, dtype=np.float32) + index
                comm.all_reduce(value)
                results.append(value)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=peer, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures, failures
    return results


def test_peers_with_a_ticket_reduce_together(laboratory: Laboratory) -> None:
    with laboratory.coordinator():
        results = together(laboratory, 2)
    expected = 2 * np.arange(1000, dtype=np.float32) + 1
    assert len(results) == 2 and all(np.array_equal(found, expected) for found in results)
    assert len(laboratory.audit("enrolled")) == len(laboratory.audit("admitted")) == 2


def test_a_program_without_a_ticket_is_told_what_to_do_in_time(laboratory: Laboratory) -> None:
    with laboratory.coordinator():
        began_s = time.monotonic()
        with pytest.raises(pccl.ConnectError, match="pass a join ticket"):
            pccl.connect(laboratory.address, timeout_s=10)
        assert time.monotonic() - began_s < 10


def test_a_secured_run_is_not_carried_by_ucx_which_encrypts_nothing(
    laboratory: Laboratory,
) -> None:
    with laboratory.coordinator():
        ticket = laboratory.ticket()
        with pytest.raises(pccl.UsageError, match="secured, and UCX neither encrypts nor"):
            laboratory.connect(ticket, transport="ucx")
