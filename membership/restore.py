"""Makes the coordinator's state: of a new run, or of an earlier coordinator's last record."""

from __future__ import annotations

from collections.abc import Callable

from pccl.membership.core import CoordinatorConfig, Core, Peer
from pccl.membership.messages import ID_BYTES
from pccl.membership.record import Record


def restore(
    config: CoordinatorConfig,
    generation: int,
    record: Record | None,
    token_bytes: Callable[[int], bytes],
    now_s: float,
) -> Core:
    """Returns the state; without a record, of a run that begins now."""
    core = Core(
        config=config,
        generation=generation,
        token_bytes=token_bytes,
        started_s=now_s,
        min_world=config.min_world,
        on_underflow=config.on_underflow,
        straggler_s=config.straggler_s,
    )
    if record is None:
        core.run_id = config.run_id or token_bytes(ID_BYTES)
        return core
    core.run_id, core.lineage = record.run_id, record.lineage
    core.min_world = config.min_world or record.min_world
    core.on_underflow = config.on_underflow or record.on_underflow
    core.straggler_s = config.straggler_s or record.straggler_s
    core.incarnations = record.incarnations
    core.epoch_high = core.epochs_reserved = record.epochs_reserved
    core.flushing, core.adopted = record.flushing, record.adopted
    core.view, core.history, core.activation = record.view, record.history, record.activation
    core.note, core.carried = record.note, record.carried
    core.installed_s = now_s
    views = [v for v in (*record.history, record.view) if v is not None]
    if record.activation is not None:
        views.append(record.activation.view)
    members = {i for view in views for i in view.incarnations()}
    for saved in record.peers:
        is_member = saved.incarnation in members
        is_witness = is_member or (not views and saved.was_native)
        peer = Peer.restored(saved, now_s, is_witness=is_witness)
        peer.was_native = saved.was_native or is_member
        core.peers[saved.incarnation] = peer
    return core
