"""Arrays as callers bring them: what is taken, what is refused, and that nothing is copied."""

from __future__ import annotations

import array
import ctypes
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl.base.errors import UsageError
from pccl.collectives.buffers import Buffer, SpanSet, describe, describe_pair
from pccl.collectives.dtypes import ITEM_BYTES, Dtype

NUMPY_DTYPES = {
    "f8": Dtype.F64,
    "f4": Dtype.F32,
    "f2": Dtype.F16,
    "i1": Dtype.I8,
    "u1": Dtype.U8,
    "i2": Dtype.I16,
    "u2": Dtype.U16,
    "i4": Dtype.I32,
    "u4": Dtype.U32,
    "i8": Dtype.I64,
    "u8": Dtype.U64,
    "?": Dtype.BOOL,
}


@pytest.mark.parametrize(("code", "dtype"), NUMPY_DTYPES.items())
def test_a_numpy_array_is_its_own_memory(code: str, dtype: Dtype) -> None:
    x = np.zeros((3, 4), code)
    buffer = describe(x)
    assert (buffer.dtype, buffer.count, buffer.shape) == (dtype, 12, (3, 4))
    assert buffer.byte_count == x.nbytes
    assert buffer.address == x.ctypes.data


def test_long_and_long_long_are_one_type() -> None:
    assert describe(np.zeros(1, np.longlong)).dtype is describe(np.zeros(1, np.int64)).dtype


def test_bfloat16_of_ml_dtypes_is_known() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert describe(np.zeros(3, ml_dtypes.bfloat16)).dtype is Dtype.BF16


def test_torch_tensors_of_every_supported_type_are_their_own_memory() -> None:
    torch = pytest.importorskip("torch")
    for dtype in Dtype:
        names = {"f": "float", "b": "bfloat", "i": "int", "u": "uint", "c": "complex"}
        name = (
            "bool" if dtype is Dtype.BOOL else names[dtype.label[0]] + dtype.label.lstrip("bcfiu")
        )
        tensor = torch.zeros(2, 3, dtype=getattr(torch, name))
        buffer = describe(tensor)
        assert (buffer.dtype, buffer.count, buffer.address) == (dtype, 6, tensor.data_ptr())
        assert ITEM_BYTES[dtype] == tensor.element_size()


def test_torch_tensors_that_cannot_be_used_are_refused_with_a_remedy() -> None:
    torch = pytest.importorskip("torch")
    for tensor, words in [
        (torch.zeros(4, 4).t()[1:], "contiguous"),
        (torch.zeros(3, dtype=torch.complex64).conj(), "contiguous"),
        (torch.zeros(3).to_sparse(), "layout"),
        (torch.zeros(3, device="meta"), "meta"),
    ]:
        with pytest.raises(UsageError, match=words):
            describe(tensor)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.zeros((4, 4))[:, 1], "contiguous"),
        (np.asfortranarray(np.zeros((4, 4))), "contiguous"),
        (np.zeros(3, np.clongdouble), "complex256"),
        (np.zeros(3, ">f4"), "dtype"),
        (np.zeros(3, object), "object"),
        (np.float32(1), "0-d"),
        ([1.0, 2.0], "list"),
        (None, "NoneType"),
        (3.0, "float"),
        ("abc", "str"),
        (object(), "object"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(value: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        describe(value)


def test_empty_and_zero_dimensional_arrays_are_fine() -> None:
    assert describe(np.zeros((0, 3))).byte_count == 0
    assert describe(np.array(1.0)).count == 1


def test_foreign_memory_is_used_without_a_copy() -> None:
    raw = bytearray(8)
    values = array.array("f", [1.0, 2.0])
    foreign = (ctypes.c_int32 * 4)()
    assert describe(raw).dtype is Dtype.U8
    assert describe(values).address == values.buffer_info()[0]
    assert describe(memoryview(values)).dtype is Dtype.F32
    assert describe(foreign).address == ctypes.addressof(foreign)
    with pytest.raises(BufferError):  # the memory is pinned as long as its Buffer lives
        pinned = describe(raw)
        raw.extend(b"x")
    assert pinned.count == 8


def test_dlpack_is_used_without_a_copy() -> None:
    class Foreign:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __dlpack__(self, **options: Any) -> Any:
            return self.inner.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.inner.__dlpack_device__()

    inner = np.zeros(5, np.float32)
    assert describe(Foreign(inner)).address == inner.ctypes.data


def test_read_only_memory_may_be_an_input_but_never_a_result() -> None:
    x = np.ones(3)
    x.flags.writeable = False
    with pytest.raises(UsageError, match="read-only"):
        describe_pair(x, None)
    with pytest.raises(UsageError, match="read-only"):
        describe_pair(np.ones(3), x)
    with pytest.raises(UsageError, match="read-only"):
        describe_pair(b"abc", None)
    source, target = describe_pair(x, np.zeros(3))
    assert source.address != target.address


def test_out_must_fit_and_must_not_overlap_partly() -> None:
    whole = np.zeros(10)
    with pytest.raises(UsageError, match="overlaps"):
        describe_pair(whole[:6], whole[4:])
    with pytest.raises(UsageError, match=r"out is f64\[5\]"):
        describe_pair(np.zeros(6), whole[:5])
    with pytest.raises(UsageError, match="f32"):
        describe_pair(np.zeros(5), np.zeros(5, np.float32))
    source, target = describe_pair(whole[:5], whole[:5])
    assert source.address == target.address


def test_operations_in_flight_may_share_what_they_read_and_nothing_else() -> None:
    spans = SpanSet()
    shared, first, second = np.zeros(8), np.zeros(8), np.zeros(8)
    spans.add(*describe_pair(shared, first))
    assert not spans.conflict(*describe_pair(shared, second))
    assert spans.conflict(*describe_pair(shared, None))  # writes what another reads
    assert spans.conflict(*describe_pair(second, first))  # writes what another writes
    assert spans.conflict(*describe_pair(first[2:3], second[:1]))  # reads what another writes


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 8), st.integers(0, 60), st.booleans()),
        max_size=30,
    )
)
def test_conflicts_are_found_as_by_comparing_every_pair(
    operations: list[tuple[int, int, int, bool]],
) -> None:
    spans = SpanSet()
    held: list[tuple[Buffer, Buffer]] = []
    for start, count, other, in_place in operations:
        target = Buffer(None, start, count, Dtype.U8, (count,), True)
        source = target if in_place else Buffer(None, other, count, Dtype.U8, (count,), True)

        def touches(a: Buffer, b: Buffer) -> bool:
            return a.count > 0 and b.count > 0 and a.overlaps(b)

        expected = any(
            touches(target, theirs) or touches(target, reads) or touches(source, theirs)
            for reads, theirs in held
        )
        assert spans.conflict(source, target) == expected
        if not expected and (in_place or not touches(source, target)):
            spans.add(source, target)
            held.append((source, target))
