"""Steps that are bound to their members: they hold operations that mean nothing among others.

A pure function on values; peers are named by their incarnation.
"""

from __future__ import annotations

from collections.abc import Mapping

from pccl.base.ids import short_id
from pccl.membership.view import View
from pccl.transport.native_frames import OpenStep


def missing_of_bound(by_epoch: Mapping[int, View], held: Mapping[int, OpenStep | None]) -> str:
    """Says who is missing of a step that can only be done by the members it was posted for: those
    of one group."""
    for i, attempt in held.items():
        view = by_epoch.get(attempt.epoch) if attempt is not None and attempt.bound else None
        if attempt is None or view is None:
            continue
        group_of = {m.incarnation: m.group for m in view.members}
        names = {m.incarnation: short_id(m.peer_id) for m in view.members}
        together = [j for j in view.participants(attempt.step) if group_of[j] == group_of.get(i)]
        missing = [names[j] for j in together if j not in held]
        if missing:
            return (
                f"the step holds operations whose shapes depend on the {len(together)} members "
                f"of epoch {view.epoch}, and peer {', '.join(missing)} is gone; post them again"
            )
    return ""
