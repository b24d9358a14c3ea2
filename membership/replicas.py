"""Which newcomers are parts of one replica, and come in together or not at all.

In a run of several peer groups the newcomers of one seat that wait at one entry, each of another
group, hold one model between them.  A part that came in before the others would have to wait for
them inside that model, and members for it.

Invariant: who has no seat, and newcomers of a run of one group, wait for nobody.
"""

from __future__ import annotations

from collections.abc import Iterable

from pccl.membership.peer import Peer
from pccl.membership.view import View


def whole(view: View | None, ready: list[Peer]) -> list[Peer]:
    """Leaves out newcomers that others of their replica are not ready with."""
    return [peer for peer in ready if not missing_groups(view, peer, ready)]


def missing_groups(view: View | None, peer: Peer, waiting: Iterable[Peer]) -> list[int]:
    """Returns the groups whose part of this newcomer's replica does not wait with it."""
    groups = set() if view is None or peer.seat == 0 else {m.group for m in view.members}
    if len(groups) < 2:
        return []
    here = {p.group for p in waiting if (p.seat, p.entry) == (peer.seat, peer.entry)}
    return sorted(groups - here - {peer.group})


def why_apart(view: View | None, peer: Peer, waiting: Iterable[Peer]) -> str:
    """Says what a newcomer waits for whose replica is not there; nothing if it is."""
    missing = missing_groups(view, peer, waiting)
    if not missing:
        return ""
    many = "s" if len(missing) > 1 else ""
    return (
        f"waits at '{peer.entry}' for the other parts of its replica (seat={peer.seat - 1}), which "
        f"are not there: peer group{many} {', '.join(map(str, missing[:8]))}"
    )
