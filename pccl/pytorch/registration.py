"""What torch loads when it is imported: the names `pccl` and `pccl://`, and nothing behind them.

`import torch` calls `autoload` through the entry point `torch.backends`, in every program that has
pccl installed, whether it uses pccl or not.  So this module imports neither the library nor torch
before it must.

Invariant: `autoload` may be called any number of times, and raises nothing that would keep torch
from being imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

NAME = "pccl"
DEVICES = ["cpu", "cuda"]  # a list: torch would take a text for a list of letters


def autoload() -> None:
    """Makes `init_process_group("pccl")` and `init_method="pccl://..."` known to torch."""
    import torch.distributed as dist

    if not dist.is_available():
        return
    from torch.distributed.rendezvous import register_rendezvous_handler

    if NAME not in dist.Backend.backend_list:
        dist.Backend.register_backend(NAME, _create, extended_api=True, devices=DEVICES)
    try:
        register_rendezvous_handler(NAME, _rendezvous)
    except RuntimeError:
        return  # registered by an earlier call


def _create(backend_options: Any, pg_options: object) -> Any:
    from pccl.pytorch.bootstrap import create_group

    return create_group(backend_options, pg_options)


def _rendezvous(
    url: str, timeout: timedelta | None = None, **named: Any
) -> Iterator[tuple[Any, int, int]]:
    from pccl.pytorch.rendezvous import rendezvous

    return rendezvous(url, timeout, **named)
