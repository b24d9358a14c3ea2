"""The caller's values as memory: tensors, nested state dicts, modules, optimizers and scalars.

A value that lies in host memory as it is, is used where it lies.  What does not (a tensor of a
device, or one that is not contiguous) has a twin in host memory, and a number has a cell of eight
bytes; `pull` brings both up to date, `push` writes them back.

Invariant: between a pull and a push only this module's memory, or the caller's tensors themselves,
hold the state; names depend on keys and positions alone.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pccl.base.errors import UsageError
from pccl.collectives.buffers import Buffer, describe, require_writable
from pccl.state.layout import Entry
from pccl.state.memory import available_bytes

DEPTH_MAX = 64
Bytes = npt.NDArray[np.uint8]


@dataclass(slots=True)
class Cell:
    """One tensor of the state, in host memory."""

    entry: Entry
    buffer: Buffer
    memory: Bytes
    pull: Callable[[], None] | None = None
    push: Callable[[], None] | None = None


@dataclass(slots=True)
class Holder:
    """A module, an optimizer or the like: what has `state_dict` and `load_state_dict`."""

    target: Any
    values: Mapping[str, Any]
    has_numbers: bool = False
    dirty: bool = False

    def refresh(self) -> None:
        """Numbers in a state_dict are copies, so a new one is asked for."""
        if self.has_numbers:
            self.values = _held_values(self.target)

    def load(self) -> None:
        """Hands back numbers that were received; an optimizer's were written where they live."""
        if self.dirty and not isinstance(self.values, _OptimizerValues):
            self.target.load_state_dict(self.values)
        self.dirty = False


@dataclass(frozen=True, slots=True)
class _Place:
    """A container within the state, found anew whenever it is used."""

    get: Callable[[], Any]
    put: Callable[[Any], None] | None  # puts another container there
    holder: Holder | None

    def child(self, key: Any) -> _Place:
        return _Place(lambda: self.get()[key], lambda value: self.set(key, value), self.holder)

    def set(self, key: Any, value: Any) -> None:
        container = self.get()
        if isinstance(container, tuple) and self.put is not None:
            self.put((*container[:key], value, *container[key + 1 :]))
        else:
            container[key] = value
        if self.holder is not None:
            self.holder.dirty = True


def cells_of(tree: Mapping[str, Any]) -> tuple[list[Cell], list[Holder]]:
    """Returns the state's tensors and the objects that hold some of them.

    Raises:
        UsageError: a value is none that can be shared; names it.
    """
    if not isinstance(tree, Mapping) or not tree:
        raise UsageError("a state is a mapping of names to tensors, with at least one of them")
    holders: list[Holder] = []
    return list(_walk(_Place(lambda: tree, None, None), "", holders, 0)), holders


def _walk(place: _Place, path: str, holders: list[Holder], depth: int) -> Iterator[Cell]:
    if depth > DEPTH_MAX:
        raise UsageError(f"the state is nested deeper than {DEPTH_MAX} levels at {path!r}")
    container = place.get()
    keys = container if isinstance(container, Mapping) else range(len(container))
    for key in list(keys):
        value = container[key]
        name = f"{path}.{key}" if path else str(key)
        if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
            holder = Holder(value, _held_values(value))
            holders.append(holder)
            inner = _Place(lambda holder=holder: holder.values, None, holder)  # type: ignore[misc]
            yield from _walk(inner, name, holders, depth + 1)
        elif isinstance(value, Mapping | list | tuple):
            yield from _walk(place.child(key), name, holders, depth + 1)
        elif isinstance(value, bool | int | float):
            yield _number(place, key, name, value)
        elif value is None or isinstance(value, str):
            continue  # options of an optimizer, alike wherever the program is
        else:
            yield _tensor(name, value)


def _held_values(value: Any) -> Mapping[str, Any]:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.optim.Optimizer):
        return _OptimizerValues(value)
    found = value.state_dict()
    if not isinstance(found, Mapping):
        raise UsageError(f"state_dict() of a {type(value).__name__} is no mapping")
    return found


class _OptimizerValues(dict[str, Any]):
    """An optimizer's own containers, so that numbers are read and written where they live.

    An optimizer makes its state at its first step; a newcomer's is made here, since tensors are
    received only where there are some.
    """

    def __init__(self, optimizer: Any) -> None:
        if not optimizer.state:
            _first_step_of_nothing(optimizer)
        state: dict[str, Any] = {}
        groups = []
        index = 0
        for group in optimizer.param_groups:
            groups.append(_Group(group))
            for parameter in group["params"]:
                if parameter in optimizer.state:
                    state[str(index)] = optimizer.state[parameter]
                index += 1
        super().__init__(state=state, param_groups=groups)


class _Group(Mapping[str, Any]):
    """A param group without its parameters, which are the model's."""

    def __init__(self, group: dict[str, Any]) -> None:
        self._group = group

    def __getitem__(self, key: str) -> Any:
        return self._group[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._group[key] = value

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._group if key != "params")

    def __len__(self) -> int:
        return len(self._group) - 1


def _first_step_of_nothing(optimizer: Any) -> None:
    """Makes an optimizer's state: zeros, as before its first step; parameters stay as they are."""
    torch = sys.modules["torch"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    grads = [p.grad for p in parameters]
    before = [p.detach().clone() for p in parameters]
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            rate = group["lr"]
            group["lr"] = torch.zeros_like(rate) if isinstance(rate, torch.Tensor) else 0.0
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    finally:
        with torch.no_grad():
            for parameter, grad, value in zip(parameters, grads, before, strict=True):
                parameter.copy_(value)
                parameter.grad = grad
            for values in optimizer.state.values():
                for key, value in values.items():
                    if isinstance(value, torch.Tensor):
                        value.zero_()
                    elif isinstance(value, int | float):
                        values[key] = type(value)(0)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _number(place: _Place, key: Any, name: str, value: Any) -> Cell:
    kind = type(value)
    dtype: Any = np.bool_ if kind is bool else np.int64 if issubclass(kind, int) else np.float64
    box = np.zeros((), dtype)
    if place.holder is not None:
        place.holder.has_numbers = True

    def pull() -> None:
        now = place.get()[key]
        if type(now) is not kind:
            raise UsageError(f"{name!r} was a {kind.__name__} and is {now!r} now")
        try:
            box[...] = now
        except OverflowError:
            raise UsageError(f"{name!r} does not fit into 64 bits: {now}") from None

    def push() -> None:
        now = kind(box[()])
        if now != place.get()[key]:
            place.set(key, now)

    cell = _cell(name, describe(box), pull, push)
    pull()
    return cell


def _tensor(name: str, value: Any) -> Cell:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        tensor = value.detach()
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            return _twin(name, tensor, torch)
        value = tensor
    buffer = describe(value, name=f"{name!r}")
    require_writable(buffer, repr(name), "share a writable one")
    return _cell(name, buffer)


def _twin(name: str, tensor: Any, torch: Any) -> Cell:
    size, free = tensor.numel() * tensor.element_size(), available_bytes()
    if size > free:
        raise UsageError(
            f"{name!r} needs a twin of {size} bytes in host memory, of which {free} are free; "
            "share less, or in more processes"
        )
    twin = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")

    def settle() -> None:
        """Others read and write on other streams than the program: theirs and its must be over."""
        if tensor.is_cuda:
            torch.cuda.synchronize(tensor.device)

    def pull() -> None:
        settle()
        twin.copy_(tensor)

    def push() -> None:
        tensor.copy_(twin)
        settle()

    cell = _cell(name, describe(twin, name=f"{name!r}"), pull, push)
    pull()
    return cell


def _cell(
    name: str,
    buffer: Buffer,
    pull: Callable[[], None] | None = None,
    push: Callable[[], None] | None = None,
) -> Cell:
    entry = Entry(name, buffer.dtype, buffer.shape)
    return Cell(entry, buffer, bytes_of(buffer), pull, push)


def bytes_of(buffer: Buffer) -> Bytes:
    """Views memory as unsigned bytes; the Buffer must outlive the view."""
    if buffer.byte_count == 0:
        return np.zeros(0, np.uint8)
    raw = (ctypes.c_uint8 * buffer.byte_count).from_address(buffer.address)
    return np.ctypeslib.as_array(raw)
