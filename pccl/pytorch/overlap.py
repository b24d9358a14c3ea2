"""Which tensors share memory, going by where their elements are.  Pure.

Memory is counted in bytes from address 0; strides of torch are never negative.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Tensor = torch.Tensor


def extent(tensor: Tensor) -> tuple[int, int]:
    """Returns where a dense tensor's first element begins and its last one ends; empty: (0, 0)."""
    if tensor.numel() == 0 or tensor.layout is not torch.strided:
        return 0, 0
    begin = tensor.data_ptr()
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (reach + 1) * tensor.element_size()


def overlap(one: Tensor, other: Tensor) -> bool:
    """Says whether two dense tensors may share an element's memory.

    Exact where both are contiguous, and for views of one form (the columns of a matrix, say) whose
    own elements are apart; else extents decide, so what is apart may be taken for shared.
    """
    begin, end = extent(one)
    first, last = extent(other)
    if not (begin < last and first < end):
        return False
    size = one.element_size()
    distance = abs(first - begin)
    if one.stride() != other.stride() or size != other.element_size() or distance % size:
        return True
    steps = sorted(
        (stride, max(n, m) - 1)
        for stride, n, m in zip(one.stride(), one.shape, other.shape, strict=True)
        if max(n, m) > 1
    )
    return not _nested(steps) or _reaches(distance // size, steps[::-1])


def is_apart(tensor: Tensor) -> bool:
    """Says whether no two elements of a dense tensor share memory; exotic strides are taken to."""
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    return _nested(sorted((stride, size - 1) for stride, size in pairs if size > 1))


def _nested(steps: Sequence[tuple[int, int]]) -> bool:
    """Says whether each stride is beyond all that smaller ones reach together."""
    reach = 0
    for stride, most in steps:
        if stride <= reach:
            return False
        reach += stride * most
    return True


def _reaches(distance: int, steps: Sequence[tuple[int, int]]) -> bool:
    """Says whether a sum of nested strides, each taken -n to n times, gives the distance: of each,
    the largest first, only two counts come near enough."""
    if not steps:
        return distance == 0
    (stride, most), rest = steps[0], steps[1:]
    count = distance // stride
    return any(_reaches(distance - n * stride, rest) for n in (count, count + 1) if abs(n) <= most)


def any_overlap(tensors: Sequence[Tensor]) -> bool:
    """Says whether two of the tensors share memory.  Cost: n log n if their extents are apart."""
    open_ones: list[tuple[int, Tensor]] = []  # with where each ends
    for tensor in sorted((t for t in tensors if extent(t)[1]), key=extent):
        begin, end = extent(tensor)
        open_ones = [(last, other) for last, other in open_ones if last > begin]
        if any(overlap(tensor, other) for _, other in open_ones):
            return True
        open_ones.append((end, tensor))
    return False
