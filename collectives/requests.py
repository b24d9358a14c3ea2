"""The requests of all collectives but all-reduce: what may be passed, and what fits a view.

`root` is a rank of the step's view or a peer id.  Counts are rows: sizes along the first dimension.
Every function raises UsageError as soon as it can know, and again from `Request.place` for what
only the view can tell; neither changes anything.
"""

from __future__ import annotations

import ctypes
import math
import sys
from dataclasses import replace
from typing import Any

from pccl.base.errors import UsageError
from pccl.collectives.buffers import Buffer, describe, require_writable
from pccl.collectives.collective import Collective
from pccl.collectives.descriptor import Descriptor
from pccl.collectives.dtypes import ITEM_BYTES, Dtype
from pccl.collectives.ops import (
    COMPLEX_PARTS,
    ReduceOp,
    check_meaning,
    check_weight,
    parse_op,
)
from pccl.collectives.placed import NOTHING, Placed, Request, Seat, check_counts, check_root


def broadcast(array: Any, root: Any) -> Request:
    whose = check_root(root)
    buffer = describe(array)
    descriptor = Descriptor(buffer.dtype, buffer.count, collective=Collective.BROADCAST)

    def place(seat: Seat) -> Placed:
        if not seat.is_root(whose):
            require_writable(buffer, "the array", "only the root's may be")
        return Placed(descriptor, buffer, buffer, array, root=whose)

    return Request(str(descriptor), place)


def reduce(
    array: Any, root: Any, op: str | ReduceOp, weight: float, out: Any, deterministic: bool
) -> Request:
    whose = check_root(root)
    source, reduce_op, share = _contribution(array, op, weight)
    dtype = describe(array).dtype
    descriptor = Descriptor(
        source.dtype, source.count, reduce_op, bool(deterministic), collective=Collective.REDUCE
    )

    def place(seat: Seat) -> Placed:
        if not seat.is_root(whose):
            return Placed(descriptor, source, NOTHING, None, share, whose)
        result = array if out is None else out
        target = source if result is array else _target(out, dtype, source.count, reduce_op)
        if result is array:
            require_writable(source, "the root's array", "pass out=, or a writable copy")
        _check_apart(source, target, same=True)
        return Placed(descriptor, source, target, result, share, whose)

    return Request(str(descriptor), place)


def reduce_scatter(
    array: Any, op: str | ReduceOp, weight: float, out: Any, deterministic: bool, counts: Any
) -> Request:
    rows = None if counts is None else check_counts(counts, "counts")
    source, reduce_op, share = _contribution(array, op, weight)
    dtype, shape = describe(array).dtype, source.shape
    name = Descriptor(
        source.dtype,
        source.count,
        reduce_op,
        bool(deterministic),
        collective=Collective.REDUCE_SCATTER,
        uneven=rows is not None,
    )

    def place(seat: Seat) -> Placed:
        part_rows = _rows_of(shape, rows, seat, "array")
        row = _row_elements(source, shape)
        parts = tuple(count * row for count in part_rows)
        own = seat.rank
        # In floats where elements are complex numbers; shapes stay those of the caller.
        result = _result(array, out, (part_rows[own], *shape[1:]))
        target = _target(result, dtype, parts[own], reduce_op)
        _check_apart(source, target, at=sum(parts[:own]))
        sizes = () if rows is None else parts
        count = 0 if sizes else parts[own]
        return Placed(replace(name, count=count), source, target, result, share, send_counts=sizes)

    return Request(str(name), place)


def all_gather(array: Any, out: Any, counts: Any) -> Request:
    rows = None if counts is None else check_counts(counts, "counts")
    source = describe(array)
    descriptor = Descriptor(
        source.dtype,
        0 if rows is not None else source.count,
        collective=Collective.ALL_GATHER,
        uneven=rows is not None,
    )

    def place(seat: Seat) -> Placed:
        own = seat.rank
        if rows is None:
            shape = (seat.world_size, *source.shape)
            parts = (source.count,) * seat.world_size
        else:
            _check_number(rows, seat, "counts")
            mine = source.shape[0] if source.shape else 1
            if rows[own] != mine:
                raise UsageError(f"the array has {mine} rows, and counts[{own}] is {rows[own]}")
            shape = (sum(rows), *source.shape[1:])
            parts = tuple(count * math.prod(source.shape[1:]) for count in rows)
        result = _result(array, out, shape)
        target = _target(result, source.dtype, sum(parts))
        _check_apart(target, source, at=sum(parts[:own]))
        sizes = () if rows is None else parts
        return Placed(descriptor, source, target, result, receive_counts=sizes)

    return Request(str(descriptor), place)


def gather(array: Any, root: Any, out: Any, counts: Any) -> Request:
    whose = check_root(root)
    rows = None if counts is None else check_counts(counts, "counts")
    source = describe(array)
    descriptor = Descriptor(source.dtype, 0, collective=Collective.GATHER, uneven=True)

    def place(seat: Seat) -> Placed:
        mine = (source.count,)
        if not seat.is_root(whose):
            return Placed(descriptor, source, NOTHING, None, root=whose, send_counts=mine)
        if rows is None:
            shape = (seat.world_size, *source.shape)
            parts = mine * seat.world_size
        else:
            _check_number(rows, seat, "counts")
            shape = (sum(rows), *source.shape[1:])
            parts = tuple(count * math.prod(source.shape[1:]) for count in rows)
        if parts[seat.rank] != source.count:
            raise UsageError(f"the root's own array has not the {rows} rows that counts say")
        result = _result(array, out, shape)
        target = _target(result, source.dtype, sum(parts))
        _check_apart(target, source, at=sum(parts[: seat.rank]))
        return Placed(
            descriptor,
            source,
            target,
            result,
            root=whose,
            send_counts=mine,
            receive_counts=parts,
        )

    return Request(str(descriptor), place)


def scatter(arrays: Any, root: Any, out: Any) -> Request:
    whose = check_root(root)
    if arrays is None and out is None:
        raise UsageError("pass out= to receive into; only the root may do without")
    listed = isinstance(arrays, list | tuple)
    sources = (
        [describe(one) for one in (arrays if listed else [arrays])] if arrays is not None else []
    )
    dtypes = {source.dtype for source in sources}
    if out is not None:
        dtypes.add(describe(out, name="out").dtype)
    if len(dtypes) != 1:
        raise UsageError("all arrays of a scatter have one dtype")
    descriptor = Descriptor(dtypes.pop(), 0, collective=Collective.SCATTER, uneven=True)

    def place(seat: Seat) -> Placed:
        if not seat.is_root(whose):
            if out is None:
                raise UsageError("only the root may do without out=")
            target = _target(out, descriptor.dtype)
            return Placed(
                descriptor, NOTHING, target, out, root=whose, receive_counts=(target.count,)
            )
        if listed:
            _check_number(sources, seat, "arrays")
            parts = tuple(source.count for source in sources)
            source, template = _packed(sources), arrays[seat.rank]
            shape = sources[seat.rank].shape
        elif arrays is None:
            raise UsageError("the root of a scatter passes the array")
        else:
            source, template = sources[0], arrays
            if source.shape[:1] != (seat.world_size,):
                raise UsageError(
                    f"the root's array has shape {list(source.shape)}; its first dimension must be "
                    f"the world size, {seat.world_size} (or pass a list of arrays)"
                )
            shape = source.shape[1:]
            parts = (math.prod(shape),) * seat.world_size
        result = _result(template, out, shape)
        target = _target(result, descriptor.dtype, parts[seat.rank])
        _check_apart(source, target, at=sum(parts[: seat.rank]))
        return Placed(
            descriptor,
            source,
            target,
            result,
            root=whose,
            send_counts=parts,
            receive_counts=(parts[seat.rank],),
        )

    return Request(str(descriptor), place)


def all_to_all(array: Any, out: Any, send_counts: Any, receive_counts: Any) -> Request:
    if (send_counts is None) != (receive_counts is None):
        raise UsageError("pass send_counts and receive_counts together, or neither")
    sends = None if send_counts is None else check_counts(send_counts, "send_counts")
    receives = None if receive_counts is None else check_counts(receive_counts, "receive_counts")
    source = describe(array)
    uneven = sends is not None
    name = Descriptor(source.dtype, source.count, collective=Collective.ALL_TO_ALL, uneven=uneven)

    def place(seat: Seat) -> Placed:
        sent = _rows_of(source.shape, sends, seat, "array")
        received = sent if receives is None else receives
        _check_number(received, seat, "receive_counts")
        own = seat.rank
        if sent[own] != received[own]:
            raise UsageError(
                f"this peer sends itself {sent[own]} rows and expects {received[own]} of itself"
            )
        row = _row_elements(source, source.shape)
        result = _result(array, out, (sum(received), *source.shape[1:]))
        target = _target(result, source.dtype, sum(received) * row)
        _check_apart(source, target)
        if not uneven:
            count = sent[own] * row
            return Placed(replace(name, count=count), source, target, result)
        return Placed(
            replace(name, count=0),
            source,
            target,
            result,
            send_counts=tuple(count * row for count in sent),
            receive_counts=tuple(count * row for count in received),
        )

    return Request(str(name), place)


def barrier() -> Request:
    descriptor = Descriptor(Dtype.U8, 0, collective=Collective.BARRIER)
    return Request(str(descriptor), lambda seat: Placed(descriptor, NOTHING, NOTHING, None))


# ---- what they share


def as_floats(buffer: Buffer, op: ReduceOp) -> Buffer:
    """Returns complex memory as twice as many floats, where that means the same."""
    part = COMPLEX_PARTS.get(buffer.dtype)
    if part is None or op not in (ReduceOp.SUM, ReduceOp.AVG):
        return buffer
    return replace(buffer, dtype=part, count=2 * buffer.count)


def _contribution(array: Any, op: str | ReduceOp, weight: float) -> tuple[Buffer, ReduceOp, float]:
    reduce_op = parse_op(op)
    share = check_weight(weight, reduce_op)
    source = as_floats(describe(array), reduce_op)
    check_meaning(source.dtype, reduce_op)
    return source, reduce_op, share


def _row_elements(source: Buffer, shape: tuple[int, ...]) -> int:
    elements = math.prod(shape)  # as the caller counts: complex ones are two here
    return math.prod(shape[1:]) * (source.count // elements if elements else 1)


def _rows_of(
    shape: tuple[int, ...], rows: tuple[int, ...] | None, seat: Seat, name: str
) -> tuple[int, ...]:
    """Returns how an array's first dimension is divided among the ranks."""
    first = shape[0] if shape else 1
    if rows is not None:
        _check_number(rows, seat, "counts")
        if sum(rows) != first:
            raise UsageError(f"the {name} has {first} rows, the counts add up to {sum(rows)}")
        return rows
    if not shape or first % seat.world_size:
        raise UsageError(
            f"the {name} has shape {list(shape)}; its first dimension must be divisible by the "
            f"world size, {seat.world_size}, or be divided by counts"
        )
    return (first // seat.world_size,) * seat.world_size


def _check_number(items: Any, seat: Seat, name: str) -> None:
    if len(items) != seat.world_size:
        raise UsageError(f"{name} has {len(items)} items; the step has {seat.world_size} members")


def _result(array: Any, out: Any, shape: tuple[int, ...]) -> Any:
    """Returns `out`, or a new array of the kind of `array`."""
    if out is not None:
        return out
    torch: Any = sys.modules.get("torch")
    dtype = getattr(array, "dtype", None)
    try:
        if torch is not None and isinstance(array, getattr(torch, "Tensor", ())):
            return torch.empty(shape, dtype=dtype, device="cpu")
        import numpy  # only here: torch programs may do without

        if isinstance(array, numpy.ndarray):
            return numpy.empty(shape, dtype)
    except (ValueError, OverflowError, TypeError, RuntimeError) as error:
        raise UsageError(f"no array of shape {list(shape)} can be made: {error}") from error
    raise UsageError("pass out=: pccl makes numpy arrays and torch tensors only")


def _target(out: Any, dtype: Dtype, count: int | None = None, op: ReduceOp | None = None) -> Buffer:
    """Returns where a result of that dtype goes; with `op`, as floats where the input is."""
    target = describe(out, name="out")
    require_writable(target, "out", "pass a writable array")
    if target.dtype is not dtype:
        raise UsageError(f"out has dtype {target.dtype.label}, the array {dtype.label}")
    if op is not None:
        target = as_floats(target, op)
    if count is not None and target.count != count:
        raise UsageError(f"out has {target.count} elements, the result has {count}")
    return target


def _check_apart(whole: Buffer, part: Buffer, at: int | None = None, *, same: bool = False) -> None:
    """Memory may be shared only where the part is exactly its place in the whole."""
    if not whole.count or not part.count or not whole.overlaps(part):
        return
    begin = 0 if at is None else at
    placed = whole.address + begin * ITEM_BYTES[whole.dtype]
    if (same or at is not None) and part.address == placed:
        return
    raise UsageError(
        "out overlaps the array; use separate memory"
        + ("" if at is None else ", or exactly this rank's part of the larger of the two")
    )


def _packed(sources: list[Buffer]) -> Buffer:
    """Copies arrays into one, since what is sent lies in one piece."""
    import numpy

    item = ITEM_BYTES[sources[0].dtype]
    packed = numpy.empty(sum(source.count for source in sources) * item, numpy.uint8)
    at = 0
    for source in sources:
        if source.count:
            packed[at : at + source.byte_count] = _bytes_of(source)
        at += source.byte_count
    return Buffer(packed, packed.ctypes.data, at // item, sources[0].dtype, (at // item,), True)


def _bytes_of(source: Buffer) -> Any:
    return memoryview((ctypes.c_char * source.byte_count).from_address(source.address)).cast("B")
