"""From torch's call to an elastic group: which run, and a seat in it.

A process that comes to an elastic run waits for nobody: it is admitted, and becomes a member when
its program calls `begin`.  Ranks that torch has been told mean nothing here.

Invariant: `create_elastic` returns a group that is connected and alone, or raises in time.
"""

from __future__ import annotations

from dataclasses import replace

from pccl.base.errors import PcclError
from pccl.pytorch.elastic.group import ElasticGroup
from pccl.pytorch.elastic.run import ElasticRun, Joining
from pccl.pytorch.errors import Misused, kind_of
from pccl.pytorch.options import Options
from pccl.pytorch.rendezvous import WORLD_MAX, Asked
from pccl.pytorch.waiting import require_reachable, told_if_slow


def create_elastic(
    group_id: str, options: Options, asked: Asked | None, timeout_s: float
) -> ElasticGroup:
    """
    Args:
        asked: what an address `pccl://...` says, if the group is made by one.

    Raises:
        Misused: nothing says where the coordinator is, or address and options contradict.
        PcclDistError: it does not admit this process in time.
    """
    if asked is None and options.coordinator is None:
        raise Misused(
            "an elastic group outlives each of its members, so its coordinator runs by itself: "
            "start `pccl coordinator`, and pass init_method='pccl://host:port/job' or "
            "Options(elastic=True, coordinator='host:port')",
            op="init_process_group",
        )
    if asked is None:
        assert options.coordinator is not None
        asked = Asked(options.coordinator, options.job, 1, WORLD_MAX, None)
    asked = agreed(asked, options)
    joining = Joining(
        asked.addresses, asked.job, asked.least, asked.most, asked.start, options, timeout_s
    )
    try:
        require_reachable(options.host, asked.addresses)
        with told_if_slow(lambda: f"the coordinator at {asked.addresses}", timeout_s):
            run = ElasticRun(joining, group_id, timeout_s)
    except PcclError as error:
        raise kind_of(error)(f"{asked.addresses}: {error}", op="init_process_group") from error
    return ElasticGroup(run, timeout_s)


def agreed(asked: Asked, options: Options) -> Asked:
    """Returns what an address and options say together.  Raises Misused if they contradict."""
    pairs = {
        "coordinator": (True, asked.addresses, options.coordinator, None),
        "job": ("job" in asked.said, asked.job, options.job, "default"),
        "min_world": ("min" in asked.said, asked.least, options.min_world, 1),
        "start_world": ("start" in asked.said, asked.start, options.start_world, 1),
    }
    for name, (said, in_address, in_options, default) in pairs.items():
        if said and in_options not in (in_address, default):
            raise Misused(
                f"the address pccl://... says {in_address!r}, Options({name}={in_options!r}) "
                "something else; say it once",
                op="init_process_group",
            )
    return replace(
        asked,
        job=asked.job if "job" in asked.said else options.job,
        least=max(asked.least, options.min_world),
        start=max(asked.start, options.start_world),
    )
