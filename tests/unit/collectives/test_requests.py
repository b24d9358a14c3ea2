"""What each collective takes, where its parts lie, and what is refused before anything is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pccl.base.errors import UsageError
from pccl.collectives import requests
from pccl.collectives.collective import Collective
from pccl.collectives.dtypes import Dtype
from pccl.collectives.placed import NOTHING, Placed, Request, Seat, check_counts, check_root

ME = b"m" * 16
X = np.arange(12, dtype=np.float32)


def at(request: Request, rank: int = 1, world: int = 3) -> Placed:
    return request.place(Seat(rank, world, ME))


def summing(array: Any, out: Any = None, counts: Any = None, op: str = "sum") -> Request:
    return requests.reduce_scatter(array, op, 1.0, out, False, counts)


def to_root(array: Any, root: Any = 0, out: Any = None, op: str = "sum") -> Request:
    return requests.reduce(array, root, op, 1.0, out, False)


def test_a_stand_alone_operation_is_named_alike_on_all_peers() -> None:
    assert requests.broadcast(X, 2).name == "broadcast(f32[12])"
    assert to_root(X, b"r" * 16, op="max").name == "reduce(max, f32[12])"
    assert summing(X).name == "reduce_scatter(sum, f32[12])"
    assert summing(X, counts=[3, 9]).name == "reduce_scatter(sum, f32)"
    assert requests.all_gather(X, None, None).name == "all_gather(f32[12])"
    assert requests.all_gather(X, None, [12, 1]).name == "all_gather(f32)"
    assert requests.gather(X, 0, None, None).name == "gather(f32)"
    assert requests.scatter(X.reshape(3, 4), 0, None).name == "scatter(f32)"
    assert requests.scatter(None, 0, X).name == "scatter(f32)"
    assert requests.all_to_all(X, None, None, None).name == "all_to_all(f32[12])"
    assert requests.all_to_all(X, None, [12], [1]).name == "all_to_all(f32)"
    assert requests.barrier().name == "barrier()"


def test_a_broadcast_is_in_place_and_only_the_root_may_have_a_read_only_array() -> None:
    placed = at(requests.broadcast(X, 0))
    assert placed.source is placed.target and placed.result is X and placed.root == 0
    fixed = X.copy()
    fixed.flags.writeable = False
    assert at(requests.broadcast(fixed, 1)).source.count == 12
    assert at(requests.broadcast(fixed, ME)).root == ME
    with pytest.raises(UsageError, match="read-only"):
        at(requests.broadcast(fixed, 0))


def test_a_reduction_to_a_root_writes_there_only() -> None:
    elsewhere = at(to_root(X, 0))
    assert elsewhere.target is NOTHING and elsewhere.result is None
    in_place = at(to_root(X, 1))
    assert in_place.target is in_place.source and in_place.result is X
    out = np.empty_like(X)
    assert at(to_root(X, 1, out)).result is out
    with pytest.raises(UsageError, match="overlaps"):
        at(to_root(X[:6], 1, X[3:9]))


def test_parts_of_a_reduce_scatter_follow_rank_or_counts() -> None:
    placed = at(summing(X.reshape(6, 2)))
    assert placed.descriptor.count == 4 and placed.result.shape == (2, 2)
    uneven = at(summing(X.reshape(6, 2), counts=[1, 3, 2]))
    assert uneven.send_counts == (2, 6, 4) and uneven.result.shape == (3, 2)
    assert uneven.descriptor.uneven and uneven.descriptor.count == 0
    assert at(summing(X, out=X[4:8])).target.address == X[4:].ctypes.data
    for wrong in (X[0:4], X[3:7]):
        with pytest.raises(UsageError, match="exactly this rank's part"):
            at(summing(X, out=wrong))


def test_complex_numbers_are_summed_as_twice_as_many_floats() -> None:
    z = np.ones((6, 2), np.complex64)
    placed = at(summing(z))
    assert placed.descriptor.dtype is Dtype.F32 and placed.descriptor.count == 8
    assert placed.result.shape == (2, 2) and placed.result.dtype == np.complex64
    assert placed.target.count == 8 and placed.source.count == 24
    with pytest.raises(UsageError, match="c64"):
        to_root(z, op="max")


def test_out_is_of_the_dtype_of_the_array_also_where_one_is_two_of_the_other() -> None:
    z = np.ones(6, np.complex64)
    assert at(to_root(z, 1, np.empty(6, np.complex64))).target.count == 12
    for array, out in ((z, np.empty(12, np.float32)), (X, np.empty(6, np.complex64))):
        with pytest.raises(UsageError, match="out has dtype"):
            at(to_root(array, 1, out))
    with pytest.raises(UsageError, match="out has dtype c64, the array f32"):
        at(requests.all_gather(X[:2], np.empty(3, np.complex64), None))


def test_an_empty_part_overlaps_nothing() -> None:
    whole = np.empty((3, 4), np.float32)
    assert at(requests.all_to_all(whole, whole[1:1], [3, 0, 0], [0, 0, 0])).target.count == 0
    assert at(requests.all_gather(whole[2, 2:2], whole[1:1], None)).source.count == 0


def test_a_result_that_no_memory_can_hold_is_refused() -> None:
    torch = pytest.importorskip("torch")
    for array in (np.empty((0, 4)), torch.empty(0, 4)):
        with pytest.raises(UsageError, match="can be made"):
            at(requests.all_to_all(array, None, [0, 0, 0], [1 << 62, 0, 1 << 62]))


def test_an_all_gather_makes_room_for_all_in_rank_order() -> None:
    placed = at(requests.all_gather(X.reshape(3, 4), None, None))
    assert placed.result.shape == (3, 3, 4) and placed.descriptor.count == 12
    assert placed.receive_counts == ()
    uneven = at(requests.all_gather(X.reshape(3, 4), None, [1, 3, 0]))
    assert uneven.result.shape == (4, 4) and uneven.receive_counts == (4, 12, 0)
    whole = np.empty((3, 12), np.float32)
    assert at(requests.all_gather(whole[1], whole, None)).target.address == whole.ctypes.data
    with pytest.raises(UsageError, match="overlaps"):
        at(requests.all_gather(whole[0], whole, None))
    with pytest.raises(UsageError, match=r"3 rows, and counts\[1\] is 2"):
        at(requests.all_gather(X.reshape(3, 4), None, [1, 2, 0]))


def test_only_the_root_of_a_gather_knows_all_sizes() -> None:
    elsewhere = at(requests.gather(X, 0, None, [1, 12, 3]))
    assert elsewhere.send_counts == (12,) and elsewhere.receive_counts == ()
    assert elsewhere.result is None and elsewhere.target is NOTHING
    root = at(requests.gather(X, 1, None, [1, 12, 3]))
    assert root.receive_counts == (1, 12, 3) and root.result.shape == (16,)
    assert at(requests.gather(X, 1, None, None)).result.shape == (3, 12)
    with pytest.raises(UsageError, match="own array"):
        at(requests.gather(X, 1, None, [1, 11, 3]))


def test_a_scatter_takes_an_array_or_a_list_at_the_root() -> None:
    root = at(requests.scatter(X.reshape(3, 4), 1, None))
    assert root.send_counts == (4, 4, 4) and root.receive_counts == (4,)
    assert root.result.shape == (4,)
    listed = at(requests.scatter([X[:1], X[:5], X[:0]], 1, None))
    assert listed.send_counts == (1, 5, 0) and listed.source.count == 6
    assert (listed.source.owner.view(np.float32) == [0, 0, 1, 2, 3, 4]).all()
    elsewhere = at(requests.scatter(None, 0, X))
    assert elsewhere.source is NOTHING and elsewhere.receive_counts == (12,)
    with pytest.raises(UsageError, match="first dimension"):
        at(requests.scatter(X, 1, None))
    with pytest.raises(UsageError, match="out="):
        at(requests.scatter(X, 0, None))
    with pytest.raises(UsageError, match="the root"):
        at(requests.scatter(None, 1, X))


def test_an_all_to_all_divides_rows_equally_or_by_counts() -> None:
    placed = at(requests.all_to_all(X.reshape(3, 4), None, None, None))
    assert placed.descriptor.count == 4 and placed.result.shape == (3, 4)
    uneven = at(requests.all_to_all(X.reshape(6, 2), None, [1, 2, 3], [0, 2, 5]))
    assert uneven.send_counts == (2, 4, 6) and uneven.receive_counts == (0, 4, 10)
    assert uneven.result.shape == (7, 2)
    nothing = at(requests.all_to_all(np.empty((0, 2)), None, [0, 0, 0], [3, 0, 1]))
    assert nothing.result.shape == (4, 2) and nothing.receive_counts == (6, 0, 2)
    with pytest.raises(UsageError, match="itself"):
        at(requests.all_to_all(X, None, [4, 4, 4], [4, 5, 4]))
    with pytest.raises(UsageError, match="overlaps"):
        at(requests.all_to_all(X, X, None, None))


@pytest.mark.parametrize(
    ("request_of", "said"),
    [
        (lambda: summing(X[:10]), "divisible by the world size, 3"),
        (lambda: requests.all_to_all(X[:10], None, None, None), "divisible"),
        (lambda: requests.broadcast(X, 3), "root 3 is no rank: the step has 3 members"),
        (lambda: requests.all_gather(X, None, [12, 12]), "counts has 2 items"),
        (lambda: requests.all_gather(X, np.empty(35, np.float32), None), "35 elements"),
        (lambda: requests.all_gather(X, np.empty(36), None), "dtype f64, the array f32"),
        (lambda: requests.all_to_all(X, None, [4, 4, 5], [4, 4, 4]), "add up to 13"),
        (lambda: requests.all_to_all(X, None, [4, 4, 4], None), "together"),
        (lambda: requests.scatter(None, 0, None), "out="),
        (lambda: requests.scatter([X, X.astype(int), X], 0, None), "one dtype"),
    ],
)
def test_what_does_not_fit_says_why(request_of: Callable[[], Request], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        at(request_of())


@pytest.mark.parametrize("root", [-1, 1.5, True, None, "0", b"short"])
def test_a_root_is_a_rank_or_a_peer_id(root: Any) -> None:
    with pytest.raises(UsageError, match="root"):
        check_root(root)
    assert check_root(np.int64(2)) == 2 and check_root(ME) == ME


@pytest.mark.parametrize("counts", [[1, -1], [1.5], 3, ["a"]])
def test_counts_are_whole_numbers_that_are_not_negative(counts: Any) -> None:
    with pytest.raises(UsageError, match="counts"):
        check_counts(counts, "counts")


def test_a_result_is_of_the_kind_of_the_array() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(4, dtype=torch.float8_e5m2)
    placed = at(requests.all_gather(tensor, None, None))
    assert placed.result.dtype == torch.float8_e5m2 and placed.result.shape == (3, 4)
    assert placed.descriptor.dtype is Dtype.F8_E5M2
    with pytest.raises(UsageError, match="out="):
        at(requests.all_gather(bytearray(4), None, None))


def test_the_numbers_on_the_wire_are_those_of_the_native_core() -> None:
    assert [c.label for c in Collective] == [
        "all_reduce",
        "reduce_scatter",
        "all_gather",
        "broadcast",
        "reduce",
        "gather",
        "scatter",
        "all_to_all",
        "barrier",
    ]
    assert [c.reduces for c in Collective] == [True, True, False, False, True] + [False] * 4
