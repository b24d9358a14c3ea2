"""What a joiner receives, and what all members must hold alike: model, optimizer, loader, and more.

    state = State(model=model, optimizer=optimizer, loader=batches, extra={"scheduler": scheduler})

Each part has `state_dict` and `load_state_dict`.  A part's tensors may be sharded (DTensor): then
this process gives and takes its own shards, from the member of another replica that has the same.

Invariant: a snapshot that does not fit the model, the optimizer or the names of the parts is
refused before anything is written; it holds tensors and plain values only, and runs nothing.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from pccl.pytorch.errors import Mismatch, Misused


class Stateful(Protocol):
    """Anything whose state can be taken and given."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


class State:
    """The training state of one member.

    Attributes:
        step: how many training steps are committed in it.
    """

    def __init__(
        self,
        *,
        model: Stateful,
        optimizer: Stateful | None = None,
        loader: Any = None,
        extra: Mapping[str, Stateful] | None = None,
    ) -> None:
        """
        Args:
            loader: where batches come from (see `steps`); its position is part of the state if it
                has `state_dict` and `load_state_dict`.
            extra: further parts by name, for example a scheduler.

        Raises:
            Misused: a part has no state_dict or no load_state_dict.
        """
        self.step = 0
        self.model = model
        self.optimizer = optimizer
        self.loader = loader
        self._parts: dict[str, Stateful] = {"model": model}
        if optimizer is not None:
            self._parts["optimizer"] = optimizer
        if hasattr(loader, "state_dict"):
            self._parts["loader"] = loader
        for name, part in (extra or {}).items():
            if name in self._parts:
                raise Misused(f"the state has a part {name!r} already")
            self._parts[name] = part
        for name, part in self._parts.items():
            if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
                raise Misused(f"{name!r} has no state_dict and load_state_dict")

    def advance(self, size: int) -> None:
        """What so many members took in a step is behind the loader now."""
        if hasattr(self.loader, "advance"):
            self.loader.advance(size)

    def snapshot(self) -> bytes:
        """Returns the whole state.  Cost: a copy of it."""
        content = {name: _local(part.state_dict()) for name, part in self._parts.items()}
        stream = io.BytesIO()
        torch.save({"step": self.step, "parts": content}, stream)
        return stream.getvalue()

    def restore(self, snapshot: bytes | bytearray | memoryview) -> None:
        """Takes over another member's state.

        Raises:
            Mismatch: it does not fit this process's model, optimizer or parts; nothing was written,
                unless a part's own load_state_dict found the fault.
        """
        try:
            found = torch.load(io.BytesIO(snapshot), map_location="cpu", weights_only=True)
            step, content = int(found["step"]), dict(found["parts"])
        except Exception as error:  # unpickling fails in many ways
            raise Mismatch(f"the members' state cannot be read: {error}", op="heal") from error
        if content.keys() != self._parts.keys():
            raise Mismatch(
                f"the members' state has the parts {sorted(content)}, this process "
                f"{sorted(self._parts)}",
                op="heal",
            )
        self._check_model(content["model"])
        _check_optimizer(self.optimizer, content.get("optimizer"))
        for name, part in self._parts.items():
            mine = part.state_dict()
            try:
                part.load_state_dict(self._global(name, content[name], mine))
            except Exception as error:  # a part of the program's own
                raise Mismatch(
                    f"{name} does not take the members' state: {error}", op="heal"
                ) from error
        self.step = step

    def digest(self) -> bytes:
        """Returns 16 bytes that are equal where parameters, optimizer, loader and `step` are, bit
        by bit.  A module's buffers, such as running means, are each member's own.

        Cost: one pass over their memory.
        """
        digest = hashlib.blake2b(str(self.step).encode(), digest_size=16)
        if isinstance(self.model, torch.nn.Module):
            _feed(digest, dict(self.model.named_parameters()))
        else:
            _feed(digest, self.model.state_dict())
        for name in ("optimizer", "loader"):
            if name in self._parts:
                _feed(digest, self._parts[name].state_dict())
        return digest.digest()

    # ---- shards

    def _check_model(self, theirs: Mapping[str, Any]) -> None:
        mine = _local(self.model.state_dict())
        if mine.keys() != theirs.keys():
            names = sorted(set(mine) ^ set(theirs))[:4]
            raise Mismatch(f"the members' model differs in {', '.join(names)}", op="heal")
        for name, value in mine.items():
            other = theirs[name]
            if not isinstance(value, Tensor) or not isinstance(other, Tensor):
                continue
            if (value.shape, value.dtype) != (other.shape, other.dtype):
                raise Mismatch(
                    f"{name} is {tuple(other.shape)} {other.dtype} among the members, "
                    f"{tuple(value.shape)} {value.dtype} here",
                    op="heal",
                )

    def _global(self, name: str, theirs: Any, mine: Any) -> Any:
        """Returns their shards as DTensors where this process's part has such."""
        if name == "model":
            return {key: _as(value, mine[key]) for key, value in theirs.items()}
        if name == "optimizer":
            return _optimizer_state(self.optimizer, theirs)
        return theirs


def _check_optimizer(optimizer: Any, theirs: Any) -> None:
    """Raises Mismatch if parameters are grouped in another way, or have other options."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        return
    mine = optimizer.state_dict()["param_groups"]
    form = [(len(group["params"]), sorted(group)) for group in mine]
    if not isinstance(theirs, Mapping) or form != [
        (len(group["params"]), sorted(group)) for group in theirs.get("param_groups", ())
    ]:
        raise Mismatch("the members' optimizer has other groups of parameters", op="heal")


def _optimizer_state(optimizer: Any, theirs: Any) -> Any:
    """An optimizer's state is made at its first step: its shards are like its parameters'."""
    if not isinstance(optimizer, torch.optim.Optimizer) or "state" not in theirs:
        return theirs
    numbered = [p for group in optimizer.param_groups for p in group["params"]]
    state = {}
    for number, values in theirs["state"].items():
        like = numbered[number]
        state[number] = {
            key: _as(value, like)
            if isinstance(value, Tensor)
            and isinstance(like, DTensor)
            and value.shape == like.to_local().shape
            else value
            for key, value in values.items()
        }
    return {**theirs, "state": state}


def _as(value: Any, like: Any) -> Any:
    if not (isinstance(like, DTensor) and isinstance(value, Tensor)):
        return value
    return DTensor.from_local(
        value.to(like.to_local().device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def _local(value: Any) -> Any:
    """Returns a state dict with this process's shards in place of DTensors."""
    if isinstance(value, DTensor):
        return value.to_local().detach()
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return {key: _local(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        parts = [_local(item) for item in value]
        return parts if isinstance(value, list) else tuple(parts)
    return value


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, DTensor):
        value = value.to_local()
    if isinstance(value, Tensor):
        dense = value.detach().cpu().contiguous()
        digest.update(f"{dense.dtype}{tuple(dense.shape)}".encode())
        if dense.numel():
            digest.update(dense.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(str(key).encode())
            _feed(digest, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(digest, item)
    else:
        digest.update(repr(value).encode())
