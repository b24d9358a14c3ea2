"""All-reduce end to end: real processes, the real engine, real kills."""

from __future__ import annotations

import signal
import threading
import time

import numpy as np
import pytest

import pccl
from tests.integration.peer_processes import Run


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_type_operation_and_size_is_exact_on_all_peers(count: int) -> None:
    with Run() as run:
        peers = run.start("exact", count)
        contributors = [peer.fact_with("done")["contributors"] for peer in peers]
        assert all(seen == contributors[0] for seen in contributors)
        assert len(set(contributors[0])) == count
        assert [peer.end() for peer in peers] == [0] * count


@pytest.mark.parametrize("count", [2, 3])
def test_every_form_of_the_call_works(count: int) -> None:
    with Run() as run:
        peers = run.start("forms", count)
        assert all(peer.fact_with("done") for peer in peers)
        assert [peer.end() for peer in peers] == [0] * count


@pytest.mark.parametrize("count", [2, 4])
def test_when_a_peer_is_killed_the_others_go_on_without_it(count: int) -> None:
    with Run() as run:
        peers = run.start("loop", count)
        names = [peer.fact_with("peer")["peer"] for peer in peers]
        for peer in peers:
            peer.until("contributors", count)
        peers[1].send(signal.SIGKILL)
        survivors = [peers[0], *peers[2:]]
        after = [peer.until("contributors", count - 1) for peer in survivors]
        assert len({fact["step"] for fact in after}) == 1  # the same step is the first without it
        assert all(names[1] not in fact["contributors"] for fact in after)
        survivors[0].ask_to_end()
        assert [peer.end() for peer in survivors] == [0] * (count - 1)


def test_a_gap_after_a_kill_is_short() -> None:
    with Run() as run:
        peers = run.start("loop", 3)
        for peer in peers:
            peer.until("contributors", 3)
        killed_at = time.monotonic()
        peers[2].send(signal.SIGKILL)
        peers[0].until("contributors", 2)
        assert time.monotonic() - killed_at < 3.0  # the lease, which connection death must beat
        peers[0].ask_to_end()
        assert [peer.end() for peer in peers[:2]] == [0, 0]


def test_a_newcomer_joins_a_running_loop_and_aborts_nothing() -> None:
    with Run() as run:
        first = run.start("loop", 2)
        for peer in first:
            peer.until("contributors", 2)
        newcomer = run.start_newcomer("loop")
        joined = newcomer.until("contributors", 3)
        facts = [peer.until("contributors", 3) for peer in first]
        assert [fact["step"] for fact in facts] == [joined["step"]] * 2
        assert [fact["retries"] for fact in [joined, *facts]] == [0, 0, 0]
        newcomer.ask_to_end()
        assert [peer.end() for peer in run.peers] == [0, 0, 0]


def test_killed_and_replaced_the_run_is_whole_again() -> None:
    with Run() as run:
        peers = run.start("state", 3)
        for peer in peers:
            peer.until("contributors", 3)
        peers[0].send(signal.SIGKILL)
        for peer in peers[1:]:
            peer.until("contributors", 2)
        newcomer = run.start_newcomer("state")
        facts = [peer.until("contributors", 3) for peer in [*peers[1:], newcomer]]
        assert len({fact["n"] for fact in facts}) == 1  # it begins with the members' state
        newcomer.ask_to_end()
        assert [peer.end() for peer in [*peers[1:], newcomer]] == [0, 0, 0]


@pytest.mark.parametrize("count", [2, 3])
def test_different_operations_are_an_error_on_all_that_names_both(count: int) -> None:
    with Run() as run:
        peers = run.start("mismatch", count)
        facts = [peer.fact_with("error") for peer in peers]
        for fact in facts:
            assert fact["error"] == "DescriptorMismatch"
            assert "i64[4]" in fact["text"] and "f32[4]" in fact["text"]
            assert fact["after"] == [float(count)] * 4
        assert [peer.end() for peer in peers] == [0] * count


def test_different_tags_are_an_error_on_all_and_never_a_wrong_sum() -> None:
    with Run() as run:
        peers = run.start("tags", 2)
        facts = [peer.fact_with("error") for peer in peers]
        assert facts[0]["error"] is not None
        assert facts[0]["error"] == facts[1]["error"]
        assert all(fact["kept"] for fact in facts)


def test_ctrl_c_in_a_wait_is_clean() -> None:
    with Run() as run:
        waiting, other = run.start("alone", 2)
        waiting.fact_with("ready")
        other.fact_with("ready")
        time.sleep(0.2)  # it enters its wait just after it has told us
        waiting.send(signal.SIGINT)
        fact = waiting.fact_with("error")
        assert fact == {"error": "KeyboardInterrupt", "closed": True}
        assert waiting.end() == 0
        other.ask_to_end()
        assert other.end() == 0


def test_one_process_may_be_a_run_and_closes_without_a_trace() -> None:
    with Run() as run:
        with pccl.connect(run.address, timeout_s=20) as comm:
            x = np.arange(10.0)
            outcome = comm.all_reduce(x, op="avg", weight=2.0)
            assert outcome.contributors == (comm.peer_id,)
            assert x.tolist() == list(range(10))
        assert comm.closed
        with pytest.raises(pccl.Closed):
            comm.all_reduce(x)
    assert not [t.name for t in threading.enumerate() if t.name == "pccl-agent"]


def test_another_min_world_is_refused_with_both_values() -> None:
    refused = pytest.raises(pccl.ConnectError, match=r"2.*3|3.*2")
    with Run() as run, pccl.connect(run.address, min_world=2, timeout_s=20), refused:
        pccl.connect(run.address, min_world=3, timeout_s=20)
