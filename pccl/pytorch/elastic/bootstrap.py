"""From torch's call to an elastic group: which run, and a seat in it.

A process that comes to an elastic run waits for nobody: it is admitted, and becomes a member when
its program calls `begin`.  Ranks that torch has been told mean nothing here.

Invariant: `create_elastic` returns a group that is connected and alone, or raises in time.
"""

from __future__ import annotations

from pccl.base.errors import PcclError
from pccl.pytorch.elastic.group import ElasticGroup
from pccl.pytorch.elastic.run import ElasticRun, Joining
from pccl.pytorch.errors import Misused, kind_of
from pccl.pytorch.options import Options
from pccl.pytorch.rendezvous import WORLD_MAX, Asked


def create_elastic(
    group_id: str, options: Options, asked: Asked | None, timeout_s: float
) -> ElasticGroup:
    """
    Args:
        asked: what an address `pccl://...` says, if the group is made by one.

    Raises:
        Misused: nothing says where the coordinator is.
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
    joining = Joining(
        asked.addresses,
        asked.job,
        max(asked.least, options.min_world),
        asked.most,
        max(asked.start, options.start_world),
        options,
        timeout_s,
    )
    try:
        run = ElasticRun(joining, group_id, timeout_s)
    except PcclError as error:
        raise kind_of(error)(f"{asked.addresses}: {error}", op="init_process_group") from error
    return ElasticGroup(run, timeout_s)
