"""Gradients on their way into a training step: from DDP's buckets, and from FSDP2's shards.

DDP: a comm hook posts each bucket where it lies and hands it on at once; the mean is in it when the
step is committed.  The gradients are views of the buckets, so nothing is copied, and what is
reduced overlaps with the rest of backward.  DDP's own divisor, which would be that of another world
after a loss, is never used.

FSDP2: the shards of one replica stay in their static group; after a shard's gradient is there, the
shard is averaged with the same shard of all other replicas.

Invariant: all members post the same reductions, named by their position in the model and not by the
order in which backward comes to them.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from pccl.pytorch.elastic.group import ElasticGroup
from pccl.pytorch.errors import Misused

BUCKETS_MAX = 1 << 16  # of one DDP module
_DDP_TAKES = inspect.signature(DistributedDataParallel.__init__).parameters


def elastic_group(group: Any = None) -> ElasticGroup:
    """Returns the default group, or the one given, if it is elastic.  Raises Misused if not."""
    found = dist.group.WORLD if group is None else group
    if not isinstance(found, ElasticGroup):
        raise Misused(
            "no elastic group: init_process_group('pccl', init_method='pccl://host:port/job', "
            "pg_options=pccl.pytorch.Options(elastic=True))"
        )
    return found


def elastic_ddp(module: nn.Module, group: Any = None, **named: Any) -> DistributedDataParallel:
    """Wraps a module in DistributedDataParallel for an elastic group.

    Args:
        group: None takes the default group.
        named: passed on to DDP.  Buffers such as running means are each member's own, and part of
            what joiners receive; DDP's broadcasting of them is off and stays off.

    Gradients are those of this member until `group.commit()` has returned True, then the mean.
    A parameter that takes no part in the loss is an error of DDP's, unless `find_unused_parameters`
    is on.
    """
    elastic = elastic_group(group)
    sync = "forward_sync_buffers" if "forward_sync_buffers" in _DDP_TAKES else "broadcast_buffers"
    for name, value in {sync: False, "gradient_as_bucket_view": True}.items():
        if named.setdefault(name, value) is not value:
            raise Misused(f"an elastic group needs {name}={value}")
    if named.get("static_graph"):
        raise Misused("static_graph lets DDP rebuild its buckets, which members do at other times")
    with elastic.alone():
        wrapped = DistributedDataParallel(module, process_group=elastic, **named)
        tags = elastic.reserve_tags(BUCKETS_MAX)
        wrapped.register_comm_hook((elastic, tags), _post_bucket)
        if not named.get("find_unused_parameters"):
            _settle_buckets(wrapped, module)
    return wrapped


def _settle_buckets(wrapped: DistributedDataParallel, module: nn.Module) -> None:
    """Has DDP arrange its buckets now, before this process is a member.

    DDP arranges them anew at its second forward pass, in the order in which the first backward
    came to the parameters.  A joiner's second pass is not the members', so each runs two passes
    alone, of a loss that comes to the parameters from the last to the first.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def touch() -> torch.Tensor:
        total = torch.zeros((), device="cpu")
        for parameter in trained:
            total = total + parameter.reshape(-1)[:1].sum().real.to(total) * 0
        return total

    own = module.__dict__.get("forward")  # torch.compile and others put it there
    hooks = module._forward_pre_hooks, module._forward_hooks
    module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()
    module.forward = touch
    try:
        for _ in range(2):
            wrapped().backward()
    finally:
        del module.forward
        if own is not None:
            module.forward = own
        module._forward_pre_hooks, module._forward_hooks = hooks
    for parameter in trained:
        parameter.grad = None


def _post_bucket(
    wrapped_in: tuple[ElasticGroup, int], bucket: GradBucket
) -> torch.futures.Future[torch.Tensor]:
    group, first_tag = wrapped_in
    buffer = bucket.buffer()
    group.reduce_gradient(buffer, tag=first_tag + bucket.index())
    devices: Any = [buffer.device] if buffer.is_cuda else None
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future(devices=devices)
    done.set_result(buffer)
    return done


# DDP compares the annotations themselves, not their texts.
_post_bucket.__annotations__.update(
    {"bucket": GradBucket, "return": torch.futures.Future[torch.Tensor]}
)


def elastic_fsdp(module: nn.Module, group: Any, shards: Any) -> None:
    """Averages the gradients of an FSDP2 module over the replicas of an elastic group.

    Args:
        module: after `fully_shard` with a mesh over `shards`.
        group: the elastic group; its `Options.peer_group` is this process's rank in `shards`.
        shards: the static group of this replica.

    Call backward once between `begin` and `commit`; earlier micro-batches under
    `set_requires_gradient_sync(False)`.

    Raises:
        Misused: peer_group and rank differ, or no parameter is trained.
    """
    elastic = elastic_group(group)
    rank = int(shards.rank())
    if elastic.run.options.peer_group != rank:
        raise Misused(
            f"this process is rank {rank} of its replica; make the elastic group with "
            f"Options(peer_group={rank}), not {elastic.run.options.peer_group}"
        )
    elastic.replica.bind(shards)
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise Misused("no parameter of the module is trained")
    _Shards(elastic, trained)


class _Shards:
    """Posts each trained parameter's gradient once per step."""

    def __init__(self, group: ElasticGroup, trained: list[nn.Parameter]) -> None:
        self._group = group
        self._trained = trained
        self._first_tag = group.reserve_tags(len(trained))
        self._turn = 0
        self._posted: set[int] = set()
        for number, parameter in enumerate(trained):
            parameter.register_post_accumulate_grad_hook(self._hook(number))
        group.before_commit(self._post_rest)

    def _hook(self, number: int) -> Any:
        def ready(parameter: torch.Tensor) -> None:
            if self._group.run.transaction is None:
                return  # a pass that is not part of a step
            self._heed_turn()
            if number in self._posted:
                raise Misused(
                    "a second backward before commit; for several micro-batches call "
                    "set_requires_gradient_sync(False) before all but the last"
                )
            self._post(number, parameter)

        return ready

    def _heed_turn(self) -> None:
        if self._turn != self._group.turn:
            self._turn = self._group.turn
            self._posted.clear()

    def _post(self, number: int, parameter: torch.Tensor) -> None:
        if parameter.grad is None:  # no sample has come by here
            parameter.grad = torch.zeros_like(parameter)
        self._posted.add(number)
        self._group.reduce_gradient(_memory(parameter.grad), tag=self._first_tag + number)

    def _post_rest(self) -> None:
        self._heed_turn()
        for number, parameter in enumerate(self._trained):
            if number not in self._posted:
                self._post(number, parameter)


def _memory(gradient: torch.Tensor) -> torch.Tensor:
    local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    return local.detach()
