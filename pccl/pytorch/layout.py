"""Tensors as the engine wants them: dense, on the CPU, in one piece.

What a caller hands in otherwise is copied before, and copied back when the operation is done; lists
are packed into one buffer, unless they lie in one already.

Invariant: outputs are written at completion and not before; an output whose elements share memory,
or two outputs that do, are refused before anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pccl.pytorch.errors import Misused
from pccl.pytorch.overlap import any_overlap, is_apart

Tensor = torch.Tensor
Finish = Callable[[], None]


def is_plain(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def require_dense(tensor: Tensor, name: str = "the tensor") -> None:
    if not tensor.is_cpu:
        raise Misused(
            f"{name} is on {tensor.device}; the pccl backend takes tensors of the CPU and of CUDA"
        )
    if tensor.layout is not torch.strided:
        raise Misused(f"{name} has layout {tensor.layout}; dense tensors only")


def source_of(tensor: Tensor, name: str = "the input") -> Tensor:
    """Returns the tensor, or a copy of it in one piece."""
    require_dense(tensor, name)
    tensor = tensor.detach()
    if is_plain(tensor):
        return tensor
    return tensor.resolve_conj().resolve_neg().contiguous()


def target_of(tensor: Tensor, finishes: list[Finish], *, read: bool = False) -> Tensor:
    """Returns where the result goes: the tensor itself, or a buffer that is copied back.

    Args:
        finishes: gets what is to be done when the operation is done.
        read: the buffer begins with the tensor's elements (in-place operations).
    """
    require_dense(tensor, "the output")
    tensor = tensor.detach()
    if is_plain(tensor):
        return tensor
    require_own_memory(tensor)
    buffer = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    if read:
        buffer.copy_(tensor)
    finishes.append(lambda: _copy_back(tensor, buffer))
    return buffer


def packed_sources(tensors: Sequence[Tensor]) -> Tensor:
    """Returns one flat tensor with the elements of all."""
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) != 1:
        raise Misused(f"the tensors of one list have one dtype, not {sorted(map(str, dtypes))}")
    flat = _in_one_piece(tensors)
    if flat is not None:
        return flat
    return torch.cat([source_of(tensor).reshape(-1) for tensor in tensors])


def packed_targets(tensors: Sequence[Tensor], finishes: list[Finish]) -> Tensor:
    """Returns one flat tensor whose parts become the tensors when the operation is done."""
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) != 1:
        raise Misused(f"the tensors of one list have one dtype, not {sorted(map(str, dtypes))}")
    refuse_shared(tensors)
    flat = _in_one_piece(tensors)
    if flat is not None:
        return flat
    for tensor in tensors:
        require_dense(tensor, "an output")
        require_own_memory(tensor)
    buffer = torch.empty(
        sum(tensor.numel() for tensor in tensors), dtype=tensors[0].dtype, device="cpu"
    )
    outputs = [tensor.detach() for tensor in tensors]

    def finish() -> None:
        at = 0
        for output in outputs:
            count = output.numel()
            _copy_back(output, buffer[at : at + count].view(output.shape))
            at += count

    finishes.append(finish)
    return buffer


def refuse_shared(outputs: Sequence[Tensor], op: str = "") -> None:
    """Raises Misused if two outputs share memory."""
    if any_overlap(outputs):
        raise Misused("two outputs of one operation share memory; give each its own", op=op)


def _in_one_piece(tensors: Sequence[Tensor]) -> Tensor | None:
    """Returns a flat view of tensors that follow each other in one storage, if they do."""
    first = tensors[0]
    if not all(t.layout is torch.strided and is_plain(t) for t in tensors):
        return None
    at = first.data_ptr()
    storage = first.untyped_storage().data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != at or tensor.untyped_storage().data_ptr() != storage:
            return None
        at += tensor.numel() * tensor.element_size()
    count = sum(tensor.numel() for tensor in tensors)
    require_dense(first)
    return first.detach().as_strided((count,), (1,))


def _copy_back(output: Tensor, buffer: Tensor) -> None:
    with torch.no_grad():
        output.copy_(buffer)


def require_own_memory(output: Tensor) -> None:
    if not is_apart(output):
        raise Misused(
            "elements of an output share memory (it was expanded, or its strides overlap); pass "
            "output.contiguous()"
        )
