"""An oracle for output commit that does not rely on it: what is said must be on disk already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pccl.membership.messages import Activate, Admitted, Install, ViewPlan
from pccl.transport.native_frames import Flush

if TYPE_CHECKING:
    from tests.sim.coordinator_process import CoordinatorProcess


def check_is_durable(coordinator: CoordinatorProcess, message: Any) -> None:
    """Asserts I13: nothing is sent that a crash right now would make untrue."""
    disk, durable = coordinator.disk, coordinator.durable
    match message:
        case Install():
            # Records share a write: the run may be over in the one that is on disk.
            over = durable is not None and durable.view is None
            known = message.epoch in disk.views
            assert known or over, f"Install of {message.epoch} is not durable"
            began = disk.first_steps.get(message.epoch)
            first = max(m.first_step for m in message.members)
            assert began is None or first <= began, f"first step {first} is not durable"
        case Activate():
            # Records share a write: the one that is on disk may have it behind itself already.
            view = None if durable is None else durable.view
            over = durable is not None and (view is None or view.epoch >= message.epoch)
            step = disk.activations.get(message.epoch)
            unsaid = step is None and over
            assert step == message.step or unsaid, f"Activate of {message.epoch} is not durable"
        case Admitted():
            known = message.incarnation in disk.incarnations
            assert known, f"incarnation {message.incarnation} is not durable"
        case ViewPlan():
            assert message.epoch <= disk.epochs_reserved, f"epoch {message.epoch} not reserved"
        case Flush():
            assert message.target <= disk.epochs_reserved, f"epoch {message.target} not reserved"
            # Records share a write: the one that is on disk may have it behind itself already.
            assert durable is not None, "nobody would know of this flush"
            over = durable.view is None or durable.view.epoch >= message.target
            assert durable.flushing or over, "nobody would know of this flush"
        case _:
            return
