"""Arguments that cannot be reduced: refused before anything is sent, with the data untouched.

Two communicators of one process form the run; each is used by a thread of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import pccl
from tests.integration.peer_processes import Run

torch = pytest.importorskip("torch")
Pair = tuple[pccl.Communicator, pccl.Communicator]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with (
        Run() as run,
        pccl.connect(run.address, min_world=2, timeout_s=20) as one,
        pccl.connect(run.address, timeout_s=20) as two,
    ):
        reduce_on_both((one, two))
        yield one, two


def reduce_on_both(pair: Pair) -> tuple[int, int]:
    """A step on both peers, checked; returns its number on each."""

    def reduce(comm: pccl.Communicator) -> int:
        x = np.arange(1000.0)
        with comm.step(timeout_s=20) as step:
            step.all_reduce(x)
        assert (x == 2 * np.arange(1000.0)).all()
        return step.number

    with ThreadPoolExecutor(2) as threads:
        one, two = threads.map(reduce, pair)
    assert one == two
    return one, two


def read_only() -> Any:
    array = np.full(8, 3.0)
    array.setflags(write=False)
    return array


def overlapping() -> tuple[Any, Any]:
    whole = np.full(12, 3.0)
    return whole[:8], whole[4:]


def dlpack_stranger() -> Any:
    class OnAnotherDevice:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    return OnAnotherDevice()


BAD_ARRAYS: dict[str, Callable[[], Any]] = {
    "strided": lambda: np.full(16, 3.0)[::2],
    "reversed": lambda: np.full(8, 3.0)[::-1],
    "transposed": lambda: np.full((2, 3), 3.0).T,
    "column-major": lambda: np.full((2, 3), 3.0, order="F"),
    "broadcast": lambda: np.broadcast_to(np.float64(3), 8),
    "read-only": read_only,
    "long double": lambda: np.full(8, 3, np.longdouble),
    "big-endian": lambda: np.full(8, 3, ">f4"),
    "objects": lambda: np.full(8, 3, object),
    "texts": lambda: np.full(8, "3"),
    "dates": lambda: np.full(8, "2020-01-01", "M8[D]"),
    "records": lambda: np.zeros(8, [("a", "f4"), ("b", "i4")]),
    "numpy scalar": lambda: np.float64(3),
    "list": lambda: [3.0] * 8,
    "number": lambda: 3.0,
    "text": lambda: "3",
    "bytes": lambda: bytes(8),
    "nothing": lambda: None,
    "something": object,
    "on another device": dlpack_stranger,
    "strided tensor": lambda: torch.full((16,), 3.0)[::2],
    "transposed tensor": lambda: torch.full((2, 3), 3.0).T,
    "expanded tensor": lambda: torch.full((1,), 3.0).expand(8),
    "tensor of 8-bit floats": lambda: torch.full((8,), 3.0).to(torch.float8_e5m2),
    "sparse tensor": lambda: torch.full((8,), 3.0).to_sparse(),
    "tensor without memory": lambda: torch.empty(8, device="meta"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_an_array_that_cannot_be_reduced_is_refused_and_untouched(pair: Pair, kind: str) -> None:
    array = BAD_ARRAYS[kind]()
    before = repr(array)
    refused_everywhere(pair, lambda post: post(array))
    assert repr(array) == before


BAD_ARGUMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "out of another shape": lambda: {"out": np.full(9, 3.0)},
    "out of another dtype": lambda: {"out": np.full(8, 3, np.float32)},
    "read-only out": lambda: {"out": read_only()},
    "strided out": lambda: {"out": np.full(16, 3.0)[::2]},
    "unknown op": lambda: {"op": "median"},
    "op by number": lambda: {"op": 17},
    "unknown algorithm": lambda: {"algorithm": "magic"},
    "weight of a sum": lambda: {"weight": 2.0},
    "negative weight": lambda: {"op": "avg", "weight": -1.0},
    "endless weight": lambda: {"op": "avg", "weight": float("inf")},
    "no weight": lambda: {"op": "avg", "weight": float("nan")},
    "weight in words": lambda: {"op": "avg", "weight": "two"},
}


@pytest.mark.parametrize("kind", BAD_ARGUMENTS)
def test_arguments_without_meaning_are_refused(pair: Pair, kind: str) -> None:
    array = np.full(8, 3.0)
    arguments = BAD_ARGUMENTS[kind]()
    before = repr(arguments)
    refused_everywhere(pair, lambda post: post(array, **arguments))
    assert (array == 3).all() and repr(arguments) == before


def test_memory_that_overlaps_is_refused(pair: Pair) -> None:
    array, out = overlapping()
    refused_everywhere(pair, lambda post: post(array, out=out))
    assert (array == 3).all() and (out == 3).all()


def refused_everywhere(pair: Pair, attempt: Callable[[Callable[..., Any]], Any]) -> None:
    """It is a UsageError here, with nothing of it sent; stand-alone, whoever has called it well is
    told at once, and both are at the same step again."""
    one = pair[0]
    number, _ = reduce_on_both(pair)
    before = one._session.engine.stats()["payload_bytes"]

    def refused_alone(comm: pccl.Communicator) -> None:
        if comm is one:
            with pytest.raises(pccl.UsageError):
                attempt(one.all_reduce)
            return
        x = np.full(8, 1.0)
        with pytest.raises(pccl.DescriptorMismatch) as told:
            comm.all_reduce(x, timeout_s=20)
        assert f"peer {one.peer_id}" in str(told.value) and "posted nothing" in str(told.value)
        assert (x == 1).all()

    def refused_inside(comm: pccl.Communicator) -> None:
        x = np.full(8, 1.0)
        with comm.step(timeout_s=20) as step:
            if comm is one:
                with pytest.raises(pccl.UsageError):
                    attempt(step.all_reduce)
            step.all_reduce(x)
        assert step.number == number + 2
        assert (x == 2).all()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(refused_alone, pair))
        assert one._session.engine.stats()["payload_bytes"] == before
        list(threads.map(refused_inside, pair))


@pytest.mark.parametrize("tag", [-1, 1 << 32, 1.5, "one", True])
def test_a_tag_that_is_no_number_of_32_bits_is_refused(pair: Pair, tag: Any) -> None:
    refused_in_step(pair, lambda step, x: step.all_reduce(x, tag=tag))


def test_a_tag_is_used_once_in_a_step(pair: Pair) -> None:
    refused_in_step(
        pair, lambda step, x: step.all_reduce(x, tag=0), lambda step: step.all_reduce(np.ones(4))
    )


def test_memory_in_flight_is_not_posted_again(pair: Pair) -> None:
    shared = np.ones(100)
    refused_in_step(
        pair,
        lambda step, _: step.all_reduce(shared[50:]),
        lambda step: step.all_reduce(shared),
        only_first=False,
    )


def refused_in_step(
    pair: Pair,
    bad: Callable[[pccl.Step, Any], Any],
    first: Callable[[pccl.Step], Any] = lambda step: None,
    only_first: bool = True,
) -> None:
    def act(comm: pccl.Communicator) -> None:
        x = np.full(4, 1.0)
        with comm.step(timeout_s=20) as step:
            if comm is pair[0] or only_first:
                first(step)
            else:
                step.all_reduce(np.ones(100))
            if comm is pair[0]:
                with pytest.raises(pccl.UsageError):
                    bad(step, x)
        assert (x == 1).all()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(act, pair))
    reduce_on_both(pair)


def test_results_cannot_be_waited_for_inside_their_step(pair: Pair) -> None:
    def act(comm: pccl.Communicator) -> None:
        x = np.full(4, 1.0)
        with comm.step(timeout_s=20) as step:
            work = step.all_reduce(x)
            with pytest.raises(pccl.UsageError, match="block has ended"):
                work.wait()
            with pytest.raises(pccl.UsageError):
                _ = step.outcome
        assert work.wait().contributors == step.outcome.contributors
        assert (x == 2).all()
        with pytest.raises(pccl.UsageError):
            step.all_reduce(x)
        with pytest.raises(pccl.UsageError), step:
            pass
        assert (x == 2).all()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(act, pair))


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), "1", True])
def test_a_timeout_that_is_no_time_is_refused(pair: Pair, timeout_s: Any) -> None:
    one, two = pair
    for call in (
        lambda: one.step(timeout_s=timeout_s),
        lambda: one.all_reduce(np.ones(4), timeout_s=timeout_s),
        lambda: two.all_reduce(np.ones(4), timeout_s=timeout_s),
        lambda: one.wait_for(2, timeout_s=timeout_s),
        lambda: pccl.connect("127.0.0.1:1", timeout_s=timeout_s),
    ):
        with pytest.raises(pccl.UsageError):
            call()
    reduce_on_both(pair)


@pytest.mark.parametrize("name", ["", "x" * 257, None, 7])
def test_a_step_without_a_usable_name_does_not_begin(pair: Pair, name: Any) -> None:
    with pytest.raises(pccl.UsageError), pair[0].step(name):
        pass
    reduce_on_both(pair)


def test_after_close_everything_is_closed_and_closing_again_is_nothing() -> None:
    with Run() as run:
        comm = pccl.connect(run.address, timeout_s=20)
        comm.all_reduce(np.ones(4))
        begun = comm.step()
        with begun:
            work = begun.all_reduce(np.ones(4))
        pending = comm.step()
        comm.close()
        comm.close()
        assert comm.closed and work.wait().contributors == (comm.peer_id,)
        x = np.full(4, 3.0)
        for use in (
            lambda: comm.all_reduce(x),
            lambda: comm.all_reduce(x, async_op=True),
            lambda: comm.wait_for(1),
            lambda: comm.rank,
            lambda: comm.world_size,
            lambda: comm.view,
            pending.__enter__,
            comm.__enter__,
            lambda: begun.all_reduce(x),
        ):
            with pytest.raises(pccl.Closed):
                use()
        assert (x == 3).all()
        assert "closed" in repr(comm)


def test_closing_within_a_step_leaves_the_data_and_says_closed() -> None:
    with Run() as run:
        comm = pccl.connect(run.address, timeout_s=20)
        x = np.full(4, 3.0)
        with pytest.raises(pccl.Closed), comm.step() as step:
            comm.close()
            step.all_reduce(x)
        assert (x == 3).all()
